"""The database backend with waits in Python. Django requires this module name.

SQLite's own wait for a locked file runs in C. It would block every greenlet of the thread, streams included; if one of
them held the lock, it could never release it. So SQLite's busy timeout is 0, and statements are repeated here instead.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.db.backends.sqlite3 import base

from core.database import current_query_timeout

T = TypeVar("T")
#: Seconds that a statement waits for the write lock without a query timeout (core.database.query_timeout), and seconds
#: between two attempts.
BUSY_SECONDS = 20.0
PAUSE = 0.01
#: Errors for which waiting helps. SQLITE_BUSY_SNAPSHOT lasts until the caller's own read transaction ends.
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY)


class WaitingCursor(base.SQLiteCursorWrapper):
    """A cursor whose statements wait for the write lock, except in a transaction, which already holds it.

    executemany doesn't wait, because it runs a statement for each row and could not be repeated as a whole.
    """

    def execute(self, query: str, params: Any = None) -> Any:
        """Run one statement. Raises sqlite3.OperationalError if the lock isn't free in time."""
        if self.connection.in_transaction:
            return super().execute(query, params)
        return _in_turn(lambda: super(WaitingCursor, self).execute(query, params))


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's SQLite wrapper with these cursors."""

    def get_connection_params(self) -> dict[str, Any]:
        """Return the parameters with SQLite's own busy timeout off."""
        return {**super().get_connection_params(), "timeout": 0}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Open the file and run the init command, which may have to wait for a lock."""
        return _in_turn(lambda: super(DatabaseWrapper, self).get_new_connection(conn_params))

    def create_cursor(self, name: str | None = None) -> Any:
        """Return a cursor that waits for locks."""
        return self.connection.cursor(factory=WaitingCursor)


def _in_turn(act: Callable[[], T]) -> T:
    """Repeat `act` while the file is locked. Raises sqlite3.OperationalError after the query timeout."""
    seconds = current_query_timeout()
    ends = time.monotonic() + (BUSY_SECONDS if seconds is None else seconds)
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in BUSY or time.monotonic() > ends:
                raise
        time.sleep(PAUSE)
