"""The admin's index: is it healthy, who uses what, what does it cost.

`asked` reads the address (range and filters), `readings` gets the figures of that, `tiles` and `charts` show them;
`nearly`, `providers` and `lists` are the sections that are not about figures over time; `views` puts it all together.

What it costs does not grow with the log: all ranges are read from the rollups, but for the last hour of an account or
key, which needs minutes and is read from the newest part of the log, up to a number of rows (see `minutes`).
"""
