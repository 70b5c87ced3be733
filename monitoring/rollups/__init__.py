"""Rollups: sums of the request log by time, key, endpoint, model and outcome, which are read instead of the log.

**Rows.** A record counts in six rows (Rollup.Grain): its key's and the platform's (all accounts) by quarter hour and
day (UTC), its account's by day, and its key's by month. A recent record also counts in the platform's row of its
minute, for the dashboard's last hour: minutes are written for MINUTES_WRITTEN and deleted after MINUTES_KEPT (see
`store`). Rows are written in the transaction that writes the record, so log and rollups always agree. If a later
revision replaces a record, the old one is subtracted and the new one added.

Other months, totals, and days of other time zones are sums of these rows. A span is composed of whole days and of the
quarter hours before and after them (periods.compose). The database adds up the rows, histograms included.

**Why quarter hours.** They are the longest periods of which the days of all time zones consist. Of 1,000,000 records
in 90 days (bench/log_fill.py), 10,000 keys have 995,000 rows by quarter hour, where hours would be 982,000 (days:
745,000); 100 keys have 738,000, where hours would be 454,000 (days: 67,000). A row takes 210 bytes, and 120 in the
indexes. A record costs the ingester and PostgreSQL together 175 µs of CPU in batches of one account and 440 µs in
mixed ones, itself included; it was 183 and 422 µs with the twelve rows by hour, day and month that there were before
(bench/rollups.py, in turns on a busy machine).

**Why days of accounts.** Of an account with 1,200 keys, /usage by day and model took 114 ms of CPU without them, 46
ms with them.

**Why months of keys.** /stats is all that a key ever asked. With 10,000 keys, two years have some eight million rows of
days, which take PostgreSQL seconds; of months, in one row of all endpoints, models and outcomes, they have 240,000.

**How long they are kept.** A key's quarter hours as long as the log (LOG_RETENTION_DAYS), all others for
ROLLUP_RETENTION_DAYS. A span that needs older quarter hours is refused (queries.TooOld).

**Writers** hold one lock (store.rollups_lock) from just before they read the rows until they commit. They would wait
for one another anyway, because every batch changes the platform's rows of this quarter hour. A single lock can't
deadlock, and nothing can change a row between its reading and its writing.

`store` computes what a record adds to which rows and writes it, `histograms` and `periods` are its units, `queries`
reads rollups and returns `figures`, `log` adds up the log itself, and `verify` compares rollups with the log or
rebuilds them from it.
"""
