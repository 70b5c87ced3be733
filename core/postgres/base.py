"""The database backend with query timeouts. Django requires this module name.

A statement, a commit or the check of a pooled connection fails if PostgreSQL is silent for the query timeout. Its
connection is then closed, because a late answer could otherwise reach another request. The time is counted in the
driver's wait intervals, so that time in which this process was busy doesn't count against the database.
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

from core.database import current_query_timeout

T = TypeVar("T")
#: Seconds of one wait interval of the driver.
INTERVAL = 0.1


class QueryTimeoutConnection(Connection[Any]):
    """A connection that is closed when its server is silent for the query timeout."""

    def wait(self, gen: PQGen[T], interval: float = INTERVAL, timeout: float | None = None) -> T:
        """Run one exchange with the server. Raises OperationalError after the query timeout."""
        seconds = current_query_timeout()
        if seconds is None:
            return super().wait(gen, interval, timeout)
        return super().wait(self._unless_silent(gen, math.ceil(seconds / interval)), interval, timeout)

    def _unless_silent(self, gen: PQGen[T], looks: int) -> Generator[Wait, Ready | int, T]:
        """Run the generator until so many wait intervals in a row have brought no data."""
        silent = 0
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                silent = 0 if ready else silent + 1
                if silent >= looks:
                    self.pgconn.finish()
                    raise OperationalError("the database did not answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer


class _PoolWithQueryTimeout:
    """A pool whose callers wait at most their query timeout for a connection, and never get a closed one."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def getconn(self) -> Any:
        """Return a working connection; broken ones are replaced at once. Raises PoolTimeout.

        The pool's own check pauses for a second after the second broken connection. The first requests of each process
        after a restart of PostgreSQL would exceed their timeout.
        """
        seconds = current_query_timeout()
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
    """Django's PostgreSQL wrapper with timeouts for its connections and its pool."""

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **options: Any) -> None:
        if settings_dict["OPTIONS"].get("pool"):
            settings_dict["OPTIONS"]["pool"]["connection_class"] = QueryTimeoutConnection
        super().__init__(settings_dict, *args, **options)

    @property
    def pool(self) -> Any:
        """Return the process's pool; None if pooling is off."""
        pool: Any = super().pool
        return pool and _PoolWithQueryTimeout(pool)
