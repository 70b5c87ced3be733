"""Django's SQLite backend, in which waiting for a lock doesn't block other greenlets."""
