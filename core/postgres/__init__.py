"""Django's PostgreSQL backend, for callers who don't wait for ever (core.database.impatient)."""
