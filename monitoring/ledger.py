"""Usage of a month by key, account and model budget, according to the records. Missing ledgers are seeded with it.

It is read from the rollups of days, which are written in the same transaction as the records: at most 31 rows for each
key or account, endpoint, model and outcome, whatever the number of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, islice

from django.db.models import F, QuerySet, Sum

from accounts.limits.types import SECOND, Amount, Subject
from accounts.models import ApiKey
from accounts.selectors import api_keys_counted_against
from core.times import month_end, month_start
from monitoring.models import Rollup

#: Subjects in one query: the number of parameters is limited, and longer lists get slow query plans.
AT_ONCE = 1_000


Sums = dict[tuple[int, str | None], Amount]


def months_settled(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
    """Return tokens and cost (nano-dollars) of the records of keys, accounts and model budgets in a month.

    The month is in UTC (YYYYMM). A few queries are made for each AT_ONCE of the subjects.
    """
    settled: dict[Subject, Amount] = {}
    for kind, of_one in groupby(sorted(subjects, key=lambda each: each.kind), key=lambda each: each.kind):
        while some := list(islice(of_one, AT_ONCE)):
            owners, models = {each.owner_id for each in some}, {each.model for each in some} - {None}
            if kind.startswith("key"):
                sums = _sums_of_lineages(owners, models, month)
            else:
                rows = Rollup.objects.filter(grain=Rollup.Grain.ACCOUNT_DAY, account_id__in=owners)
                sums = _sums(rows, "account_id", models, month)
            settled |= {each: sums.get((each.owner_id, each.model), Amount()) for each in some}
    return settled


def _sums_of_lineages(identifiers: set[int], models: set[str | None], month: int) -> Sums:
    """Sum over the rotations of each key and the keys made by them, by the id of the first key of the rotation."""
    counted = api_keys_counted_against(identifiers)
    # Keys only make keys of their own account, so the index by account finds all rows.
    accounts = set(ApiKey.objects.filter(pk__in=identifiers).values_list("account_id", flat=True))
    rows = Rollup.objects.filter(grain=Rollup.Grain.KEY_DAY, account_id__in=accounts, key_id__in=list(counted))
    sums: Sums = {}
    for (pk, model), amount in _sums(rows, "key_id", models, month).items():
        for first in counted[pk]:
            sums[first, model] = sums.get((first, model), Amount()) + amount
    return sums


def _sums(rows: QuerySet[Rollup], column: str, models: set[str | None], month: int) -> Sums:
    """Sum by (owner, None), or by (owner, model) if `models` are given."""
    begin, end = (edge(month) // (60 * SECOND) for edge in (month_start, month_end))
    rows = rows.filter(start__gte=begin, start__lt=end).order_by()
    if models:
        rows = rows.filter(model__in=models)
    grouped = rows.values(column, *(["model"] if models else []))
    summed = grouped.annotate(tokens=Sum(F("input_tokens") + F("output_tokens")), dollars=Sum("cost"))
    return {(row[column], row.get("model")): Amount(int(row["tokens"]), int(row["dollars"])) for row in summed}
