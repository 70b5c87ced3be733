"""Django's SQLite backend, whose waits for another's write stop nobody but who waits."""
