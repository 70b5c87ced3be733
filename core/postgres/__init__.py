"""Django's PostgreSQL backend with query timeouts (core.database.query_timeout)."""
