"""The rows of usage records, and the outcome of a request by HTTP status."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from django.db.models import Q

from accounts.limits.records import FIELDS, UsageRecord
from core.money import NANO_DOLLARS
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
    """Return the outcome (see Rollup.Outcome) of a status; 499, a client that left, is invalid."""
    if status < 400:
        return _OK
    if status >= 500:
        return _FAILED
    return _LIMITED if status == 429 else _INVALID


MICROSECONDS = 1_000_000


def as_row(record: UsageRecord) -> RequestRecord:
    """Return the unsaved row of a record; raises ValueError or TypeError if a field is malformed."""
    values = {name: getattr(record, name) for name in FIELDS}
    values |= {
        "id": UUID(record.id),
        "admitted_at": datetime.fromtimestamp(record.admitted_at / MICROSECONDS, tz=UTC),
        "cost": None if record.cost is None else Decimal(record.cost) / NANO_DOLLARS,
        "saved_cost": Decimal(record.saved_cost) / NANO_DOLLARS,
        "stages": record.stages[:200],
        "failures": record.failures[:500],
    }
    return RequestRecord(**values)


def newest_revisions(records: Iterable[UsageRecord]) -> list[UsageRecord]:
    """Return the record of highest revision for each id: one statement can't write a row twice."""
    newest: dict[str, UsageRecord] = {}
    for record in records:
        known = newest.get(record.id)
        if known is None or known.revision < record.revision:
            newest[record.id] = record
    return list(newest.values())
