"""Usage records as JSON-able dicts, their conversion to rows, and the outcome of a request by HTTP status.

The keys of such a dict are the fields of RequestRecord, apart from `cost` and `saved_cost` (integer nano-dollars),
`unpriced` (true if the cost is unknown; `cost` is 0 then), `admitted_at` (µs since the epoch), `partial` and `overrun`.
accounts.limits adds `id`, `revision` and `overrun` when it emits the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db.models import Q

from accounts.key_cache import AuthenticatedKey
from core.money import NANO_DOLLARS
from core.telemetry.trace import Trace
from monitoring.models import RequestRecord, Rollup

Outcome = Rollup.Outcome

#: Outcomes that are errors, the caller's or ours.
ERRORS = (Outcome.INVALID, Outcome.LIMITED, Outcome.FAILED)
#: Outcomes whose times are measured: a refusal takes almost no time, and one row may stand for many of them.
TIMED = (Outcome.OK, Outcome.FAILED)
#: Query conditions by outcome.
OUTCOMES = {
    Outcome.OK: Q(status__lt=400),
    Outcome.INVALID: Q(status__gte=400, status__lt=500) & ~Q(status=429),
    Outcome.LIMITED: Q(status=429),
    Outcome.FAILED: Q(status__gte=500),
}

#: What /stats and the dashboard count as cache hits: cached and coalesced answers.
FOUND = (RequestRecord.Cache.HIT, RequestRecord.Cache.COALESCED)

_OK, _INVALID, _LIMITED, _FAILED = (str(outcome) for outcome in Outcome)  # str() for each record would be measurable


def outcome_of(status: int) -> str:
    """Return the outcome (see Rollup.Outcome) of a request with this HTTP status."""
    if status < 400:
        return _OK
    if status >= 500:
        return _FAILED
    return _LIMITED if status == 429 else _INVALID


MICROSECONDS = 1_000_000


def begin_record(*, trace: Trace, identity: AuthenticatedKey, endpoint: str, admitted_at: int) -> dict[str, Any]:
    """Return the part of a record that is known when a request is admitted (`admitted_at` in µs)."""
    return {
        "label": trace.label,
        "admitted_at": admitted_at,
        "account_id": identity.account_id,
        "account_name": identity.account_name,
        "key_id": identity.key_id,
        "key_name": identity.key_name,
        "endpoint": endpoint,
    }


def as_row(record: Mapping[str, Any]) -> RequestRecord:
    """Return the unsaved row of a complete record; raises KeyError or ValueError if it is malformed."""
    return RequestRecord(
        id=UUID(record["id"]),
        revision=record["revision"],
        label=record["label"],
        admitted_at=_datetime(record["admitted_at"]),
        account_id=record["account_id"],
        account_name=record["account_name"],
        key_id=record["key_id"],
        key_name=record["key_name"],
        endpoint=record["endpoint"],
        model=record.get("model", ""),
        deployment=record.get("deployment", ""),
        status=record.get("status", 500),
        error_code=record.get("error_code", ""),
        cache=record.get("cache", ""),
        input_tokens=record.get("input_tokens", 0),
        cached_tokens=record.get("cached_tokens", 0),
        output_tokens=record.get("output_tokens", 0),
        cost=None if record.get("unpriced") else Decimal(record.get("cost", 0)) / NANO_DOLLARS,
        usage_source=record.get("usage_source", ""),
        is_partial=record.get("partial", False),
        is_overrun=record.get("overrun", False),
        latency_ms=record.get("latency_ms", 0.0),
        first_token_ms=record.get("first_token_ms"),
        attempts=record.get("attempts", 0),
        stages=record.get("stages", "")[:200],
        failures=record.get("failures", "")[:500],
        saved_cost=Decimal(record.get("saved_cost", 0)) / NANO_DOLLARS,
        count=record.get("count", 1),
    )


def newest_revisions(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the record of highest revision for each id: one statement can't write a row twice."""
    newest: dict[str, Mapping[str, Any]] = {}
    for record in records:
        known = newest.get(record["id"])
        if known is None or known["revision"] < record["revision"]:
            newest[record["id"]] = record
    return list(newest.values())


def _datetime(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / MICROSECONDS, tz=UTC)
