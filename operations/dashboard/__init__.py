"""The admin's index page: health, usage, cost, and limits that are nearly reached.

`query` reads the address (range and filters), `data` gets the figures for it, `sections` and `limits` prepare what the
page shows, and `views` puts it together.

The cost of a page does not grow with the log: all ranges are read from the rollups. The exception is the last hour of
an account or key, which is added up from at most MOST records of the log (see `data`).
"""
