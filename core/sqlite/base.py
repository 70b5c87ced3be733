"""The backend itself, which Django finds by this module's name.

SQLite waits by itself for a file that another writes to, but inside of C: that would stop all that share this thread,
streams included, and for good the one of them that is the writer. So it is told not to wait, and is asked again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.db.backends.sqlite3 import base

from core.database import patience

T = TypeVar("T")
#: Seconds that a statement waits for another's write where its caller has no patience of his own (see
#: core.database.impatient), and those between two tries.
BUSY_SECONDS = 20.0
PAUSE = 0.01
#: What passes with time: not SQLITE_BUSY_SNAPSHOT, which lasts for as long as the caller's own read is open.
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY)


class WaitingCursor(base.SQLiteCursorWrapper):
    """A cursor whose statements wait for their turn, unless a transaction has it already.

    Of a statement for many rows (executemany) each is one of its own, and could not be repeated: it doesn't wait.
    """

    def execute(self, query: str, params: Any = None) -> Any:
        """Run one statement."""
        if self.connection.in_transaction:
            return super().execute(query, params)
        return _in_turn(lambda: super(WaitingCursor, self).execute(query, params))


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's, with such cursors."""

    def get_connection_params(self) -> dict[str, Any]:
        """Let SQLite itself not wait at all."""
        return {**super().get_connection_params(), "timeout": 0}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Open the file, and make settings that may have to wait, too."""
        return _in_turn(lambda: super(DatabaseWrapper, self).get_new_connection(conn_params))

    def create_cursor(self, name: str | None = None) -> Any:
        """Make a cursor."""
        return self.connection.cursor(factory=WaitingCursor)


def _in_turn(act: Callable[[], T]) -> T:
    """Do what may find the file busy, again and again. Raises sqlite3.OperationalError."""
    seconds = patience()
    ends = time.monotonic() + (BUSY_SECONDS if seconds is None else seconds)
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in BUSY or time.monotonic() > ends:
                raise
        time.sleep(PAUSE)
