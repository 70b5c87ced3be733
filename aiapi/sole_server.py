"""One server for a SQLite file: limits that are kept in a process are exact only while there is no other."""

from __future__ import annotations

import fcntl
import os
import time

from django.conf import settings
from django.db import connection

#: Seconds that a worker gets to end whose server was killed.
PATIENCE = 5.0


def hold_database() -> str | None:
    """Keep other servers off the SQLite file for as long as this process and its children live, whatever they become.

    Returns one line that says why the server must not start, or None. Where limits are kept in Redis, servers may be
    many; PostgreSQL without it is not looked at.
    """
    if settings.REDIS_URL or connection.vendor != "sqlite" or connection.is_in_memory_db():  # type: ignore[attr-defined]
        return None
    # Not the file itself: to close it would end the locks that SQLite has on it.
    descriptor = os.open(f"{connection.settings_dict['NAME']}.server", os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                return (
                    "DATABASE_URL: another server works with this SQLite file, and each would keep limits of its own. "
                    "Stop it, name another file, or set REDIS_URL."
                )
            time.sleep(0.1)
        else:
            os.set_inheritable(descriptor, True)
            return None
