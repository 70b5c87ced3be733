"""What the log adds up to, by time, caller, endpoint, model and outcome: what is read instead of the log.

**Rows.** A record counts in nine rows (Rollup.Grain): those of its key, its account and of all accounts, each by hour,
by day and by month (UTC). They are written in the transaction that writes the record, so log and rollups agree at any
moment, whoever dies when. A record that is replaced by a later revision is taken out and the later one put in.

The platform's rows of a period add up to totals, one for each outcome. Whoever asks for no caller, endpoint or model
reads those: a histogram of all takes as long to read as one of a single model, and there are many models.

Lately admitted, a record counts in the platform's row and the total of its minute as well. Minutes are for who looks at
the last hour: they are written for MINUTES_WRITTEN and deleted after MINUTES_KEPT (see tallies).

**Why coarser rows than hours of a key.** So that reading costs by what is shown and not by what was logged. A span of
time is put together from the largest whole periods (periods.compose): 30 days of the platform are 30 totals for each
outcome, where the hours of a hundred keys would be tens of thousands of rows; all time is a row a month.

**Writers** take turns at the rollups (store.rollups_lock) from just before they read them until they commit. They would
wait for one another in any case, at the platform's rows of this hour, which every batch changes; one lock instead of
many can't deadlock, and makes what was read true until it is written.

`tallies` says what a record adds to which row, `store` writes that, `figures` is what readers get, `selectors`,
`rankings` and `minutes` are what they ask, `rebuild` computes it all again from the log, or compares.
"""
