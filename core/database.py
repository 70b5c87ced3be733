"""Query timeouts, connection release, outage detection and snapshot reads for the database.

- A request gives its pooled connection back before it waits for anything else. Connections are few; a request that
  held one while it waited for a lock could deadlock with the lock's owner, if that one needed a connection.
- A frozen database (its machine or process has stopped without closing connections) never answers. Requests therefore
  have a query timeout, which the driver applies in core.postgres and core.sqlite.
- While the database is unavailable, one request at a time tries it and the others fail at once. A failed connection
  attempt takes the whole timeout of the pool, and requests of one key would otherwise wait for it one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import structlog
from django.db import Error as DatabaseError
from django.db import OperationalError, connection, connections, transaction

from core.outage import Outage

#: Query timeouts in seconds: for queries that every model call waits for, and for all others of a request.
PROMPT_SECONDS = 1.0
REQUEST_SECONDS = 5.0

log = structlog.get_logger(__name__)

T = TypeVar("T")
#: Whether this process finds the database down: the one place that knows it.
database_outage = Outage()
_query_timeout: ContextVar[float | None] = ContextVar("query_timeout", default=None)


def release_connections() -> None:
    """Give pooled connections back to the pool, except those in a transaction. SQLite connections stay open."""
    for each in connections.all(initialized_only=True):
        if each.vendor != "sqlite" and not each.in_atomic_block:
            each.close()


def current_query_timeout() -> float | None:
    """Return the current query timeout in seconds; None for no timeout."""
    return _query_timeout.get()


class query_timeout:  # noqa: N801  (a context manager)
    """Set the query timeout within the block, unless an outer one is shorter. Queries then raise OperationalError."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        outer = _query_timeout.get()
        self._token = _query_timeout.set(self._seconds if outer is None else min(self._seconds, outer))

    def __exit__(self, *_: object) -> None:
        _query_timeout.reset(self._token)


def query_promptly(query: Callable[[], T], outage: Outage, *, failed: str) -> T:
    """Run a query within PROMPT_SECONDS, give the connection back, and return the query's result.

    Raises DatabaseError: at once during an outage, otherwise after the timeout. `failed` is the log event of a failure.
    """
    if not outage.may_try():
        raise OperationalError("the database was unavailable a second ago")
    try:
        with query_timeout(PROMPT_SECONDS):
            answer = query()
    except DatabaseError as error:
        outage.failed()
        log.error(failed, cause=type(error).__name__)
        raise
    except BaseException:
        if outage.is_on:  # nothing is known of the database, but another caller may try
            outage.failed()
        raise
    finally:
        release_connections()
    outage.succeeded()
    return answer


@contextmanager
def repeatable_read() -> Iterator[None]:
    """Run the block's queries on one snapshot of the database. An open transaction keeps its own isolation level."""
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "sqlite":
        wrapper: Any = connection
        wrapper.ensure_connection()  # which sets the mode of the settings
        mode, wrapper.transaction_mode = wrapper.transaction_mode, "DEFERRED"  # writers need not wait
        try:
            with transaction.atomic():
                yield
        finally:
            wrapper.transaction_mode = mode
    else:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
