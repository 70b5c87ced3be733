"""No caller keeps a database connection while he waits for anything else: the pool's are few, callers are many.

Who holds one and waits for a lock stops the lock's owner, if that one needs a connection and the pool has no other.
"""

from __future__ import annotations

from django.db import connections


def release_connections() -> None:
    """Give pooled connections back before a wait; SQLite's is the process's own, and a transaction's is in use."""
    for connection in connections.all(initialized_only=True):
        if connection.vendor != "sqlite" and not connection.in_atomic_block:
            connection.close()
