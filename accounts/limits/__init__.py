"""Build the limit backend of this process from the settings, on first use.

Settings: `REDIS_URL`, `REDIS_TIMEOUT`, `LIMITS_LEASE_SECONDS`. Apps that import this package install their seeder and
sink when Django starts; see install.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from accounts.limits.failover import FailoverBackend
from accounts.limits.records import UsageRecord
from accounts.limits.redis import BulkSeeder, RedisBackend, Seeder
from accounts.limits.types import DEFAULT_LEASE_SECONDS, Amount, Subject, Unavailable
from core.redis.client import redis_client, wire_for
from core.redis.wire import PROBE_TIMEOUT, READ_TIMEOUT

__all__ = [
    "ask_state_store",
    "get_limits",
    "install",
    "reset_limits",
    "same_server",
    "settled_in_database",
    "state_store_is_away",
    "write_refusal",
]

REDIS_PORT = 6379
logger = logging.getLogger(__name__)
T = TypeVar("T")
Sink = Callable[[UsageRecord], None]


@dataclass(frozen=True, slots=True)
class _Parts:
    seeder: Seeder | None = None
    bulk_seeder: BulkSeeder | None = None
    sink: Sink | None = None


@dataclass(slots=True)
class _Process:
    """The installed parts, and the backend with the id of the process that built it."""

    parts: _Parts
    backend: FailoverBackend | None = None
    pid: int = 0


_process = _Process(_Parts())
_lock = threading.Lock()


def install(
    *,
    seeder: Seeder | None = None,
    bulk_seeder: BulkSeeder | None = None,
    sink: Sink | None = None,
) -> None:
    """Install what the limits need from other apps; None leaves a part unchanged. AppConfig.ready calls it.

    `seeder` returns what a subject has settled in a month, from the usage records; `bulk_seeder` does so for many
    subjects. `sink` stores a record in the database, one row for each id with the highest revision, and raises if it
    can't. A backend that was built before is dropped and rebuilt on next use.
    """
    parts = _process.parts
    _process.parts = _Parts(seeder or parts.seeder, bulk_seeder or parts.bulk_seeder, sink or parts.sink)
    reset_limits()


def get_limits() -> FailoverBackend:
    """Return the backend of this process, building it if needed; a forked process builds its own.

    Raises ImproperlyConfigured without REDIS_URL, or if no seeder and sink are installed.
    """
    backend = _process.backend
    if backend is None or _process.pid != os.getpid():
        with _lock:
            if _process.backend is None or _process.pid != os.getpid():
                _process.backend, _process.pid = _build(_process.parts), os.getpid()
            backend = _process.backend
    return backend


def settled_in_database(subjects: Sequence[Subject], month: int) -> Mapping[Subject, Amount]:
    """Return what subjects have settled in a month (YYYYMM) according to the records in the database.

    For use while Redis is away. Open calls and records that are not yet ingested are missing from it. Raises
    ImproperlyConfigured if no bulk seeder is installed, and database errors.
    """
    if _process.parts.bulk_seeder is None:
        raise ImproperlyConfigured("accounts.limits needs a bulk seeder: see accounts.limits.install")
    return _process.parts.bulk_seeder(subjects, month)


def ask_state_store(call: Callable[[], T]) -> T:
    """Make another call to the Redis of the limits; fail at once while Redis is known to be away.

    The call may be repeated if its reply was lost, so it must be idempotent. Raises RedisError.
    """
    try:
        return get_limits().either(call, _raise_away)
    except Unavailable as error:
        raise error.__cause__ if isinstance(error.__cause__, RedisError) else RedisConnectionError() from error


def _raise_away() -> NoReturn:
    raise RedisConnectionError("the Redis of the limits is away")


def state_store_is_away(*, beside: str) -> bool:
    """Return whether the limits know that their Redis is away, and the URL `beside` names the same server."""
    return bool(settings.REDIS_URL) and same_server(settings.REDIS_URL, beside) and get_limits().is_degraded


#: Why Redis refuses writes, by a word of its error message; redis-py may have removed the error code from that.
_CAUSES = {
    "maxmemory": "its memory is full (maxmemory)",
    "read only replica": "it is a replica (READONLY)",
    "MISCONF": "it can't write to its disk (MISCONF)",
}


@dataclass(frozen=True, slots=True)
class WriteRefusal:
    """Why Redis refuses writes, and whether all of its nodes do."""

    cause: str
    is_everywhere: bool


def write_refusal() -> WriteRefusal | None:
    """Return why the Redis of the limits refuses writes although it answers; None if it accepts them, or is away."""
    limits = get_limits()
    if not isinstance(limits.primary, RedisBackend) or limits.is_degraded:
        return None
    try:
        errors = limits.primary.write_errors()
    except RedisError:
        return None
    refusals = [str(error) for error in errors if error is not None]
    if not refusals:
        return None
    logger.error("limits: Redis refuses writes: %s", refusals[0])
    cause = next((cause for word, cause in _CAUSES.items() if word in refusals[0]), "its answer is in the log")
    return WriteRefusal(cause, is_everywhere=len(refusals) == len(errors))


@lru_cache(maxsize=8)
def same_server(url: str, other: str) -> bool:
    """Return whether two URLs name the same Redis server."""
    return _server(url) == _server(other)


def _server(url: str) -> tuple[str | None, int | str]:
    """Return a server's host and port, or the path of its socket."""
    parts = urlsplit(url)
    return (None, parts.path) if parts.scheme == "unix" else (parts.hostname, parts.port or REDIS_PORT)


def reset_limits() -> None:
    """Drop the backend and its pending work, so that the next get_limits builds one from the current settings."""
    backend, _process.backend = _process.backend, None
    if backend is not None and _process.pid == os.getpid():
        backend.end()


def _build(parts: _Parts) -> FailoverBackend:
    if parts.seeder is None or parts.sink is None:
        raise ImproperlyConfigured("accounts.limits needs a seeder and a sink: see accounts.limits.install")
    lease_seconds: int = getattr(settings, "LIMITS_LEASE_SECONDS", DEFAULT_LEASE_SECONDS)
    url: str = settings.REDIS_URL
    if not url:
        raise ImproperlyConfigured("REDIS_URL is not set, and limits are kept there")
    # A call without a reply is followed by a probe: together they may take REDIS_TIMEOUT.
    wait: float = getattr(settings, "REDIS_TIMEOUT", READ_TIMEOUT + PROBE_TIMEOUT)
    wire = wire_for(redis_client(url, read_timeout=max(wait - PROBE_TIMEOUT, PROBE_TIMEOUT)))
    primary = RedisBackend(wire, seeder=parts.seeder, bulk_seeder=parts.bulk_seeder, lease_seconds=lease_seconds)
    return FailoverBackend(primary, probe=wire.ping, sink=parts.sink)
