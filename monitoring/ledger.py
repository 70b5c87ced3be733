"""What a month has used so far, from the records: the truth that an emptied limit store is seeded from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from django.db.models import F, Q, Sum

from accounts.limits.bounds import Amount
from accounts.limits.contract import SECOND, Subject
from accounts.limits.months import month_end, month_start
from accounts.models import ApiKey
from accounts.snapshots import nano_dollars
from monitoring.models import RequestRecord


def month_settled(subject: Subject, month: int) -> Amount:
    """Sum the tokens and cost of a key's or an account's records that were admitted in a month (YYYYMM, UTC)."""
    return months_settled([subject], month)[subject]


def months_settled(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
    """Sum the same of many keys and accounts, in one query for either kind."""
    accounts = [int(subject.id) for subject in subjects if subject.kind == "account"]
    keys = [int(subject.id) for subject in subjects if subject.kind == "key"]
    found = {"account": _sums("account_id", accounts, month), "key": _sums_of_lineages(keys, month)}
    return {subject: found[subject.kind].get(int(subject.id), Amount()) for subject in subjects}


def _sums_of_lineages(identifiers: list[int], month: int) -> dict[int, Amount]:
    """Sum over all the keys that replaced one another, under the id of the first."""
    members = {
        pk: lineage or pk
        for pk, lineage in ApiKey.objects.filter(Q(pk__in=identifiers) | Q(lineage_id__in=identifiers)).values_list(
            "pk", "lineage_id"
        )
    }
    sums: dict[int, Amount] = {}
    for pk, amount in _sums("key_id", list(members), month).items():
        sums[members[pk]] = sums.get(members[pk], Amount()) + amount
    return sums


def _sums(column: str, identifiers: list[int], month: int) -> dict[int, Amount]:
    if not identifiers:
        return {}
    begin, end = (datetime.fromtimestamp(edge // SECOND, tz=UTC) for edge in (month_start(month), month_end(month)))
    rows = (
        RequestRecord.objects.filter(**{f"{column}__in": identifiers}, admitted_at__gte=begin, admitted_at__lt=end)
        .order_by()
        .values(column)
        .annotate(tokens=Sum(F("input_tokens") + F("output_tokens")), dollars=Sum("cost"))
    )
    return {row[column]: Amount(row["tokens"] or 0, nano_dollars(row["dollars"]) or 0) for row in rows}
