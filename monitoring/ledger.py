"""What a month has used so far, from the records: the truth that an emptied limit store is seeded from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from django.db.models import F, Sum

from accounts.limits.bounds import Amount
from accounts.limits.contract import SECOND, Subject
from accounts.limits.months import month_end, month_start
from accounts.snapshots import nano_dollars
from monitoring.models import RequestRecord

_COLUMNS = {"key": "key_id", "account": "account_id"}


def month_settled(subject: Subject, month: int) -> Amount:
    """Sum the tokens and cost of a key's or an account's records that were admitted in a month (YYYYMM, UTC)."""
    return months_settled([subject], month)[subject]


def months_settled(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
    """Sum the same of many keys and accounts, in one query for either kind."""
    found = {kind: _sums([s.id for s in subjects if s.kind == kind], kind, month) for kind in _COLUMNS}
    return {subject: found[subject.kind].get(int(subject.id), Amount()) for subject in subjects}


def _sums(identifiers: list[str], kind: str, month: int) -> dict[int, Amount]:
    if not identifiers:
        return {}
    begin, end = (datetime.fromtimestamp(edge // SECOND, tz=UTC) for edge in (month_start(month), month_end(month)))
    column = _COLUMNS[kind]
    rows = (
        RequestRecord.objects.filter(**{f"{column}__in": identifiers}, admitted_at__gte=begin, admitted_at__lt=end)
        .order_by()
        .values(column)
        .annotate(tokens=Sum(F("input_tokens") + F("output_tokens")), dollars=Sum("cost"))
    )
    return {row[column]: Amount(row["tokens"] or 0, nano_dollars(row["dollars"]) or 0) for row in rows}
