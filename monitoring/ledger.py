"""What a month has used so far, from the records: the truth that an emptied limit store is seeded from."""

from __future__ import annotations

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
    begin, end = (datetime.fromtimestamp(edge // SECOND, tz=UTC) for edge in (month_start(month), month_end(month)))
    sums = RequestRecord.objects.filter(
        **{_COLUMNS[subject.kind]: int(subject.id)}, admitted_at__gte=begin, admitted_at__lt=end
    ).aggregate(tokens=Sum(F("input_tokens") + F("output_tokens")), cost=Sum("cost"))
    return Amount(sums["tokens"] or 0, nano_dollars(sums["cost"]) or 0)
