"""Is the service able to answer? Checks by name, registered by the rooms that know.

A check returns OK, DEGRADED or AWAY, never an exception's text: what is wrong is in the log. The service as a whole is
unhealthy only when the database is away; anything else that is away leaves it degraded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Generic, TypeVar

import structlog
from django.conf import settings
from django.core.cache import caches
from django.db import connection

from accounts.limits import get_limits
from monitoring.backlog import ingest_backlog

#: Seconds that a record may wait for the ingester before that is called a lag.
LAG_SECONDS = 30
#: Seconds for which an answer is given again.
REMEMBERED_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Health(StrEnum):
    """What a check can say."""

    OK = "healthy"
    DEGRADED = "degraded"
    AWAY = "unhealthy"


T = TypeVar("T")
Check = Callable[[], Health]
_checks: dict[str, Check] = {}


def register_check(name: str, check: Check) -> None:
    """Add a check; a later one of the same name replaces it."""
    _checks[name] = check


def check_each() -> dict[str, Health]:
    """Run all checks; return what each says."""
    return {name: probe(name, check) for name, check in _checks.items()}


def health_report() -> dict[str, Any]:
    """Run all checks; return `{status, checks, response_time_ms}`."""
    began = time.perf_counter()
    results = {"api": Health.OK} | {name: probe(name, check) for name, check in _checks.items()}
    status = Health.OK if all(result is Health.OK for result in results.values()) else Health.DEGRADED
    if results.get("database") is Health.AWAY:
        status = Health.AWAY
    return {
        "status": str(status),
        "checks": {name: str(result) for name, result in results.items()},
        "response_time_ms": round((time.perf_counter() - began) * 1000, 1),
    }


class Remembered(Generic[T]):
    """What a function said within the last second: anybody may ask for it, and one asks the stores for all."""

    def __init__(self, ask: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._said: tuple[float, T] | None = None

    def __call__(self) -> T:
        """Return what it said, or ask it; others wait for the answer meanwhile."""
        said = self._said
        if said is None or self._clock() - said[0] >= REMEMBERED_SECONDS:
            with self._lock:
                said = self._said
                if said is None or self._clock() - said[0] >= REMEMBERED_SECONDS:
                    answer = self._ask()
                    said = self._said = (self._clock(), answer)
        return said[1]

    def forget(self) -> None:
        """Ask again the next time."""
        self._said = None


def database_health() -> Health:
    """Ask the database for one row."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return Health.OK


def cache_health() -> Health:
    """Write to the cache of answers and read it back."""
    cache = caches[settings.ANSWER_CACHE]
    cache.set("health", "ok", 10)
    return Health.OK if cache.get("health") == "ok" else Health.AWAY


def limits_health() -> Health:
    """Ask the limits' backend whether it does without its store."""
    limits = get_limits()
    limits.now()
    return Health.DEGRADED if getattr(limits, "is_degraded", False) else Health.OK


def ingest_health() -> Health:
    """See whether records wait for the ingester longer than LAG_SECONDS; in process they are written directly."""
    return Health.DEGRADED if ingest_backlog().seconds > LAG_SECONDS else Health.OK


def probe(name: str, check: Check) -> Health:
    """Run one check; whatever it raises means that what it asks is away."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001  # a check fails in whatever way its driver has; the log names it
        log.warning("health_check_failed", check=name, cause=type(error).__name__)
        return Health.AWAY


recent_report = Remembered(health_report)
recent_readiness = Remembered(lambda: probe("database", database_health))

register_check("database", database_health)
register_check("cache", cache_health)
register_check("limits", limits_health)
register_check("ingest", ingest_health)
