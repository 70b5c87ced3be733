"""How callers wait for the database, what they know of it while it is away, and reads of one point in time.

How long callers wait for the database, and what they hold meanwhile.

No caller keeps a connection while he waits for anything else: the pool's are few, callers are many. Who holds one and
waits for a lock stops the lock's owner, if that one needs a connection and the pool has no other.

A database that has stopped without closing its connections (its machine or process is frozen) answers nothing, ever.
So who answers a request gives it some seconds to say something; what the driver does with that is in core.postgres.

A database that is away is asked by one caller at a time, so that nobody waits behind the others for nothing.

A connection that can't be had costs its caller the whole time-out of the pool. Without this, requests of one key would
wait for it one after the other, each of them as long.

Reads that see the database as it is at one moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import structlog
from django.db import Error as DatabaseError
from django.db import OperationalError, connection, connections, transaction

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
    for each in connections.all(initialized_only=True):
        if each.vendor != "sqlite" and not each.in_atomic_block:
            each.close()


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


#: Seconds after a failure in which nobody asks again, and for which others leave one who asks alone.
RETRY_AFTER = 1.0
ASKING = 10.0


class Outage:
    """What a process knows of the database: whether it failed the last time, and when to ask it again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ask_at: float | None = None

    def may_ask(self) -> bool:
        """Say whether the caller should ask the database now: always, unless it failed the last time.

        Who is let through while it is away keeps others from asking meanwhile, until he tells what came of it.
        """
        with self._lock:
            if self._ask_at is None:
                return True
            if self._clock() < self._ask_at:
                return False
            self._ask_at = self._clock() + ASKING
            return True

    @property
    def is_on(self) -> bool:
        """Say whether it failed the last time."""
        return self._ask_at is not None

    def failed(self) -> None:
        """Note that the database could not be asked."""
        with self._lock:
            self._ask_at = self._clock() + RETRY_AFTER

    def over(self) -> None:
        """Note that it answered."""
        self._ask_at = None


#: What this process knows of the database itself, for all who ask it promptly.
database_outage = Outage()


@contextmanager
def one_moment() -> Iterator[None]:
    """See the database as it is at one moment; a transaction that is open already sees what it sees."""
    is_first = not connection.in_atomic_block
    with transaction.atomic():
        if is_first and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield
