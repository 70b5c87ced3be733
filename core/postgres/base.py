"""The backend itself, which Django finds by this module's name.

A statement, a commit or a look at a pooled connection is broken off when PostgreSQL has been silent for the caller's
patience, and its connection closed: nobody else gets one with an answer still to come. The seconds are counted in the
driver's own waits, so that a process that was busy meanwhile doesn't take its own time for the database's.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from time import monotonic
from typing import Any, TypeVar

from django.db.backends.postgresql import base
from psycopg import Connection, Error, OperationalError
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait
from psycopg_pool import ConnectionPool

from core.database import patience

T = TypeVar("T")
#: Seconds between two looks of the driver.
INTERVAL = 0.1


class ImpatientConnection(Connection[Any]):
    """A connection that is closed when its server is silent for the caller's patience."""

    def wait(self, gen: PQGen[T], interval: float = INTERVAL, timeout: float | None = None) -> T:
        """Do one exchange with the server."""
        seconds = patience()
        if seconds is None:
            return super().wait(gen, interval, timeout)
        return super().wait(self._unless_silent(gen, math.ceil(seconds / interval)), interval, timeout)

    def _unless_silent(self, gen: PQGen[T], looks: int) -> Generator[Wait, Ready | int, T]:
        """Do what the generator does, until so many looks in a row have found nothing."""
        silent = 0
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                silent = 0 if ready else silent + 1
                if silent >= looks:
                    self.pgconn.finish()
                    raise OperationalError("the database is silent")
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer


class _ImpatientPool:
    """The pool, in which nobody waits longer for a connection than his patience, or gets one that was closed since."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def getconn(self) -> Any:
        """Give a connection that works; one that does not is replaced at once.

        The pool's own check takes a second's pause after the second that does not: the first callers of each process
        after a restart of PostgreSQL would run out of patience. Raises PoolTimeout.
        """
        seconds = patience()
        ends = monotonic() + (self._pool.timeout if seconds is None else min(seconds, self._pool.timeout))
        while True:
            connection = self._pool.getconn(ends - monotonic())
            try:
                self._pool.check_connection(connection)
            except Error:
                self._pool.putconn(connection)
            else:
                return connection


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's own, with that pool of those connections."""

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **options: Any) -> None:
        if settings_dict["OPTIONS"].get("pool"):
            settings_dict["OPTIONS"]["pool"]["connection_class"] = ImpatientConnection
        super().__init__(settings_dict, *args, **options)

    @property
    def pool(self) -> Any:
        """Give the process's pool; None without one."""
        pool: Any = super().pool
        return pool and _ImpatientPool(pool)
