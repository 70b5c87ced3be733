"""Rollups: sums of the request log by time, caller, endpoint, model and outcome, which are read instead of the log.

**Rows.** A record counts in nine rows (Rollup.Grain): its key's, its account's and the platform's (all accounts), each
by hour, day and month (UTC). They are written in the transaction that writes the record, so log and rollups always
agree. If a later revision replaces a record, the old one is subtracted and the new one added.

The platform's rows of a period add up to totals, one for each outcome. Queries without a caller, endpoint or model read
the totals: a total has one histogram, where the rows by model have one for each model.

A recently admitted record also counts in the platform's row and the total of its minute. Minutes are for the
dashboard's last hour: they are written for MINUTES_WRITTEN and deleted after MINUTES_KEPT (see `store`).

**Why there are coarser rows than a key's hours.** So that the cost of reading depends on what is shown, not on what was
logged. A span is composed of the largest whole periods (periods.compose): 30 days of the platform are 30 totals for
each outcome, where the hours of a hundred keys would be tens of thousands of rows; all time is one row a month.

**Writers** hold one lock (store.rollups_lock) from just before they read the rows until they commit. They would wait
for one another anyway, because every batch changes the platform's rows of this hour. A single lock can't deadlock, and
nothing can change a row between its reading and its writing.

`store` computes what a record adds to which rows and writes it, `histograms` and `periods` are its units, `queries`
reads rollups and returns `figures`, `parameters` validates the parameters of GET /usage, and `verify` compares rollups
with the log or rebuilds them from it.
"""
