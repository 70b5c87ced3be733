"""How requests end, by their HTTP status: of single records, and as conditions for queries of the log.

The usage record on its way from a request to the database: a JSON-able dict, and the row that it becomes.

Its keys are the fields of RequestRecord, apart from `cost` and `saved_cost` (integer nano-dollars), `unpriced` (the
cost is unknown, and `cost` is 0), `admitted_at` (µs since the epoch), `partial` and `overrun`. `id`, `revision` and
`overrun` are added by accounts.limits when it emits the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db.models import Q

from accounts.key_cache import Identity
from core.money import NANO_DOLLARS
from core.telemetry.trace import Trace
from monitoring.models import RequestRecord, Rollup

Outcome = Rollup.Outcome

#: Those that are errors, the caller's or ours.
ERRORS = (Outcome.INVALID, Outcome.LIMITED, Outcome.FAILED)
#: Those whose times are worth telling: a refusal takes next to none, and one row may stand for many.
TIMED = (Outcome.OK, Outcome.FAILED)
#: What selects the records of each.
OUTCOMES = {
    Outcome.OK: Q(status__lt=400),
    Outcome.INVALID: Q(status__gte=400, status__lt=500) & ~Q(status=429),
    Outcome.LIMITED: Q(status=429),
    Outcome.FAILED: Q(status__gte=500),
}

#: What /stats and the dashboard count as found in the cache: answers of it, and those shared in flight.
FOUND = (RequestRecord.Cache.HIT, RequestRecord.Cache.COALESCED)

_OK, _INVALID, _LIMITED, _FAILED = (str(outcome) for outcome in Outcome)  # a call of str for each record would show


def outcome_of(status: int) -> str:
    """Name how a request of an HTTP status ended (see Rollup.Outcome)."""
    if status < 400:
        return _OK
    if status >= 500:
        return _FAILED
    return _LIMITED if status == 429 else _INVALID


MICROSECONDS = 1_000_000


def begin_record(*, trace: Trace, identity: Identity, endpoint: str, admitted_at: int) -> dict[str, Any]:
    """Make the part of a record that is known when a request has been admitted (at `admitted_at`, in µs)."""
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
    """Make the row of a complete record; raises KeyError or ValueError for one that is none."""
    return RequestRecord(
        id=UUID(record["id"]),
        revision=record["revision"],
        label=record["label"],
        admitted_at=_moment(record["admitted_at"]),
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
    """Keep of each id the record with the highest revision: one statement can't write a row twice."""
    newest: dict[str, Mapping[str, Any]] = {}
    for record in records:
        known = newest.get(record["id"])
        if known is None or known["revision"] < record["revision"]:
            newest[record["id"]] = record
    return list(newest.values())


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / MICROSECONDS, tz=UTC)
