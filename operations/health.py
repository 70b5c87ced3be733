"""Health checks by name, and the health and readiness of the service.

A check returns a Finding. The text of an exception that it raises is not shown; its type is logged. The service is
unhealthy, and not ready, only if every call gets 503: if the database is down, or a store that each call writes to
takes no writes. Anything else that is down makes it degraded.

The check `llm` asks the default model's provider for its list of models, which costs no tokens.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
from django.conf import settings
from django.core.cache import caches
from django.db import Error as DatabaseError
from django.db import connection, transaction

from accounts.limits import get_limits, write_refusal
from core.database import PROMPT_SECONDS, database_outage, query_timeout
from core.ttl_cache import TtlCache
from inference.catalog import Route, catalog
from inference.upstream.client import upstream
from monitoring.ingester import ingest_backlog

#: Seconds that a record may wait for the ingester before it counts as a lag.
LAG_SECONDS = 30

log = structlog.get_logger(__name__)


class Health(StrEnum):
    """The result of a check."""

    OK = "healthy"
    DEGRADED = "degraded"
    AWAY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check, and the reason if one is known: a sentence without addresses and names, for anybody."""

    health: Health
    reason: str = ""


#: Checks of what every call needs.
VITAL = ("database", "limits")
Check = Callable[[], Finding]
HEALTHY = Finding(Health.OK)


def check_each() -> dict[str, Finding]:
    """Run all checks; return their findings by name."""
    return {name: probe(name, check) for name, check in CHECKS.items()}


def health_report() -> dict[str, Any]:
    """Run all checks; return `{status, checks, response_time_ms}`, and `reasons` if any are known."""
    began = time.perf_counter()
    results = {"api": HEALTHY} | check_each()
    status = Health.OK if all(found.health is Health.OK for found in results.values()) else Health.DEGRADED
    if any(results[name].health is Health.AWAY for name in VITAL):
        status = Health.AWAY
    reasons = {name: found.reason for name, found in results.items() if found.reason}
    return {
        "status": str(status),
        "checks": {name: str(found.health) for name, found in results.items()},
        **({"reasons": reasons} if reasons else {}),
        "response_time_ms": round((time.perf_counter() - began) * 1000, 1),
    }


def readiness() -> Health:
    """Run the VITAL checks; return AWAY if one of them does, else OK."""
    is_away = any(probe(name, CHECKS[name]).health is Health.AWAY for name in VITAL)
    return Health.AWAY if is_away else Health.OK


def database_health() -> Finding:
    """Read from the database and write to it. If it does not answer, note the outage so that other checks don't wait.

    If it can't be written to, it is only degraded: calls are answered, and their records wait in Redis.
    """
    try:
        with query_timeout(PROMPT_SECONDS), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        database_outage.failed()
        raise
    try:
        with query_timeout(PROMPT_SECONDS):
            is_written = _write_to_sqlite() if connection.vendor == "sqlite" else _write_to_postgres()
    except DatabaseError as error:
        log.warning("database_not_written", cause=str(error))
        is_written = False
    if is_written:
        return HEALTHY
    refusal = "The database takes no writes: its disk is full, or it is read-only."
    consequence = "Records wait in the state store, and nothing can be changed until it does."
    return Finding(Health.DEGRADED, f"{refusal} {consequence}")


def _write_to_sqlite() -> bool:
    """Write a page without changing it, and commit. Return True also if another connection is writing now."""
    try:
        with query_timeout(0), connection.cursor() as cursor:
            cursor.execute("PRAGMA user_version")
            (version,) = cursor.fetchone()
            cursor.execute(f"PRAGMA user_version = {version}")
    except DatabaseError as error:
        code = getattr(error.__cause__, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code & 0xFF != sqlite3.SQLITE_BUSY:  # the higher bits are the kind of busy
            raise
    return True


def _write_to_postgres() -> bool:
    """Have PostgreSQL write a temporary file; return False if it is read-only. Raises DatabaseError on a full disk.

    Writing a row would not show a full disk: it may fit into an existing page. These 5,000 rows exceed 64 kB.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL work_mem = '64kB'")
        cursor.execute(
            "SELECT current_setting('transaction_read_only') = 'off', (SELECT count(*) FROM generate_series(1, 5000))"
        )
        return bool(cursor.fetchone()[0])


def cache_health() -> Finding:
    """Write to the answer cache and read it back."""
    cache = caches[settings.ANSWER_CACHE]
    cache.set("health", "ok", 10)
    return HEALTHY if cache.get("health") == "ok" else Finding(Health.AWAY)


def limits_health() -> Finding:
    """Check that the state store answers and can be written to."""
    limits = get_limits()
    limits.now()
    if limits.is_degraded:
        return Finding(
            Health.DEGRADED, "The state store is down: rates are kept per process, and calls under a budget get 503."
        )
    refusal = write_refusal()
    if refusal is None:
        return HEALTHY
    health = Health.AWAY if refusal.is_everywhere else Health.DEGRADED
    return Finding(health, f"The state store takes no writes: {refusal.cause}. New calls get 503 until it does.")


def ingest_health() -> Finding:
    """Return DEGRADED if records wait for the ingester longer than LAG_SECONDS."""
    return Finding(Health.DEGRADED) if ingest_backlog().seconds > LAG_SECONDS else HEALTHY


def probe(name: str, check: Check) -> Finding:
    """Run one check. Any exception means AWAY."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001  # drivers raise errors of many types; the type is logged
        log.warning("health_check_failed", check=name, cause=type(error).__name__)
        return Finding(Health.AWAY)


#: Reports by the function that makes them, so that public probes put almost no load on the stores.
recent_reports: TtlCache[Callable[[], Any], Any] = TtlCache(lambda make: make(), from_end=True)

#: Seconds for which a provider's answer is cached, so that health checks put almost no load on it.
MODEL_SECONDS = 30
PROBE_SECONDS = 2.0
reachable_routes: TtlCache[Route, bool] = TtlCache(
    lambda route: upstream.list_models(route, seconds=PROBE_SECONDS) is None, max_age=MODEL_SECONDS, from_end=True
)


def llm_health() -> Finding:
    """Return whether the provider of the default model can be reached."""
    model = catalog.default()
    is_reached = model is not None and bool(model.routes) and reachable_routes.get(model.routes[0])
    return HEALTHY if is_reached else Finding(Health.AWAY)


#: The checks of GET /health by name; alerts use the same ones.
CHECKS: dict[str, Check] = {
    "database": database_health,
    "cache": cache_health,
    "limits": limits_health,
    "ingest": ingest_health,
    "llm": llm_health,
}
