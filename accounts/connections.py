"""How long callers wait for the database, and what they hold meanwhile.

No caller keeps a connection while he waits for anything else: the pool's are few, callers are many. Who holds one and
waits for a lock stops the lock's owner, if that one needs a connection and the pool has no other.

A database that has stopped without closing its connections (its machine or process is frozen) answers nothing, ever.
So who answers a request gives it some seconds to say something; what the driver does with that is in aiapi.postgres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import structlog
from django.db import Error as DatabaseError
from django.db import OperationalError, connections

from accounts.outage import Outage

#: Seconds for what every model call waits for, and for any other question of a request.
PROMPT_SECONDS = 1.0
REQUEST_SECONDS = 5.0
#: Seconds that a caller waits behind others who ask, where what is known already is good enough for him.
KNOWN_WAIT = 0.1

log = structlog.get_logger(__name__)

T = TypeVar("T")
_patience: ContextVar[float | None] = ContextVar("patience", default=None)


def release_connections() -> None:
    """Give pooled connections back before a wait; SQLite's is the process's own, and a transaction's is in use."""
    for connection in connections.all(initialized_only=True):
        if connection.vendor != "sqlite" and not connection.in_atomic_block:
            connection.close()


def patience() -> float | None:
    """Return for how many seconds PostgreSQL may be silent; None: for any time."""
    return _patience.get()


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Within the block, take a database that is silent for so many seconds for one that is away (OperationalError)."""
    outer = _patience.get()
    token = _patience.set(seconds if outer is None else min(seconds, outer))
    try:
        yield
    finally:
        _patience.reset(token)


def ask_promptly(query: Callable[[], T], outage: Outage, *, failed: str) -> T:
    """Ask the database something that many wait for, and give the connection back.

    Raises a DatabaseError: at once if it was away a moment ago, and in PROMPT_SECONDS if it is silent. `failed` is what
    the log says of one that was asked.
    """
    if not outage.may_ask():
        raise OperationalError("the database was away a moment ago")
    try:
        with impatient(PROMPT_SECONDS):
            answer = query()
    except DatabaseError as error:
        outage.failed()
        log.error(failed, cause=type(error).__name__)
        raise
    finally:
        release_connections()
    outage.over()
    return answer
