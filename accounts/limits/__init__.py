"""Build the limit backend of this process from the settings, on first use.

Settings: `REDIS_URL`, `REDIS_TIMEOUT`, `LIMITS_LEASE_SECONDS`. Apps that import this package install their seeder and
sink when Django starts; see install.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import RedisError

from accounts.limits.backend import LimitBackend, Seeder, Sink
from accounts.limits.types import Amount, Subject
from core.background import PerProcess
from core.redis.client import reset_state_store, state_store

__all__ = [
    "get_limits",
    "install",
    "reset_limits",
    "settled_in_database",
    "write_refusal",
]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Installed:
    seeder: Seeder | None = None
    sink: Sink | None = None


_installed = _Installed()


def install(*, seeder: Seeder | None = None, sink: Sink | None = None) -> None:
    """Install what the limits need from other apps; None leaves a part unchanged. AppConfig.ready calls it.

    `seeder` returns what subjects have settled in a month, from the usage records. `sink` stores a record in the
    database, one row for each id with the highest revision, and raises if it can't. A backend that was built before is
    dropped and rebuilt on next use.
    """
    _installed.seeder, _installed.sink = seeder or _installed.seeder, sink or _installed.sink
    reset_limits()


def settled_in_database(subjects: Sequence[Subject], month: int) -> Mapping[Subject, Amount]:
    """Return what subjects have settled in a month (YYYYMM) according to the records in the database.

    For use while Redis is down. Open calls and records that are not yet ingested are missing from it. Raises
    ImproperlyConfigured if no seeder is installed, and database errors.
    """
    if _installed.seeder is None:
        raise ImproperlyConfigured("accounts.limits needs a seeder: see accounts.limits.install")
    return _installed.seeder(subjects, month)


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
    """Return why the state store refuses writes although it answers; None if it accepts them, or is down."""
    limits = get_limits()
    if limits.is_degraded:
        return None
    try:
        errors = limits.write_errors()
    except RedisError:
        return None
    refusals = [str(error) for error in errors if error is not None]
    if not refusals:
        return None
    logger.error("limits: Redis refuses writes: %s", refusals[0])
    cause = next((cause for word, cause in _CAUSES.items() if word in refusals[0]), "its answer is in the log")
    return WriteRefusal(cause, is_everywhere=len(refusals) == len(errors))


def reset_limits() -> None:
    """Drop the backend with its pending work, and the state store: the next use builds both from the settings."""
    backend = _backend.drop()
    if backend is not None:
        backend.end()
    reset_state_store()


def _build() -> LimitBackend:
    seeder, sink = _installed.seeder, _installed.sink
    if seeder is None or sink is None:
        raise ImproperlyConfigured("accounts.limits needs a seeder and a sink: see accounts.limits.install")
    return LimitBackend(state_store(), seeder=seeder, sink=sink, lease_seconds=settings.LIMITS_LEASE_SECONDS)


_backend = PerProcess(_build)
#: Return the limits of this process, built on first use; a forked process builds its own. Raises ImproperlyConfigured
#: without REDIS_URL, or if no seeder and sink are installed.
get_limits = _backend.get
