"""What a month has used so far, from the records: the truth that an emptied limit store is seeded from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby

from django.db.models import F, Q, Sum

from accounts.limits.bounds import Amount
from accounts.limits.contract import SECOND, Subject
from accounts.limits.months import month_end, month_start
from accounts.models import ApiKey
from accounts.snapshots import nano_dollars
from monitoring.models import RequestRecord


def month_settled(subject: Subject, month: int) -> Amount:
    """Sum the tokens and cost of a subject's records that were admitted in a month (YYYYMM, UTC)."""
    return months_settled([subject], month)[subject]


def months_settled(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
    """Sum the same of many keys, accounts and their budgets for a model, in a few queries however many they are."""
    settled: dict[Subject, Amount] = {}
    for kind, of_one in groupby(sorted(subjects, key=lambda each: each.kind), key=lambda each: each.kind):
        alike = list(of_one)
        owners, models = {each.owner_id for each in alike}, {each.model for each in alike} - {None}
        sums = (_sums_of_lineages if kind.startswith("key") else _sums_of_accounts)(owners, models, month)
        settled |= {each: sums.get((each.owner_id, each.model), Amount()) for each in alike}
    return settled


Sums = dict[tuple[int, str | None], Amount]


def _sums_of_accounts(identifiers: set[int], models: set[str | None], month: int) -> Sums:
    return _sums("account_id", identifiers, models, month)


def _sums_of_lineages(identifiers: set[int], models: set[str | None], month: int) -> Sums:
    """Sum over all the keys that replaced one another, under the id of the first."""
    members = {
        pk: lineage or pk
        for pk, lineage in ApiKey.objects.filter(Q(pk__in=identifiers) | Q(lineage_id__in=identifiers)).values_list(
            "pk", "lineage_id"
        )
    }
    sums: Sums = {}
    for (pk, model), amount in _sums("key_id", set(members), models, month).items():
        first = members[pk], model
        sums[first] = sums.get(first, Amount()) + amount
    return sums


def _sums(column: str, identifiers: set[int], models: set[str | None], month: int) -> Sums:
    """Sum by owner, under None, or where models are named by owner and model."""
    begin, end = (datetime.fromtimestamp(edge // SECOND, tz=UTC) for edge in (month_start(month), month_end(month)))
    records = RequestRecord.objects.filter(
        **{f"{column}__in": identifiers}, admitted_at__gte=begin, admitted_at__lt=end
    )
    if models:
        records = records.filter(model__in=models)
    grouped = records.order_by().values(column, *(["model"] if models else []))
    rows = grouped.annotate(tokens=Sum(F("input_tokens") + F("output_tokens")), dollars=Sum("cost"))
    return {
        (row[column], row.get("model")): Amount(row["tokens"] or 0, nano_dollars(row["dollars"]) or 0) for row in rows
    }
