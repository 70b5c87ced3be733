"""What a month has used so far, by the records: the truth that an emptied limit store is seeded from.

It is read from the rollups of the month, which are written in the same transaction as the records: a few rows an owner,
however many calls there were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby, islice

from django.db.models import F, QuerySet, Sum

from accounts.limits.types import SECOND, Amount, Subject
from accounts.models import ApiKey
from accounts.selectors import api_keys_counted_against
from core.times import month_start
from monitoring.models import Rollup
from monitoring.rollups.periods import hour_of

#: Subjects that one query asks about: a statement holds so many parameters, and plans of longer lists are slow.
AT_ONCE = 1_000


def month_settled(subject: Subject, month: int) -> Amount:
    """Sum the tokens and cost of a subject's records that were admitted in a month (YYYYMM, UTC)."""
    return months_settled([subject], month)[subject]


def months_settled(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
    """Sum the same of many keys, accounts and their budgets for a model, in a few queries for AT_ONCE of them."""
    settled: dict[Subject, Amount] = {}
    for kind, alike in _alike(subjects):
        owners, models = {each.owner_id for each in alike}, {each.model for each in alike} - {None}
        sums = (_sums_of_lineages if kind.startswith("key") else _sums_of_accounts)(owners, models, month)
        settled |= {each: sums.get((each.owner_id, each.model), Amount()) for each in alike}
    return settled


def _alike(subjects: Sequence[Subject]) -> Iterator[tuple[str, list[Subject]]]:
    """List subjects by their kind, AT_ONCE at most at a time."""
    for kind, of_one in groupby(sorted(subjects, key=lambda each: each.kind), key=lambda each: each.kind):
        while some := list(islice(of_one, AT_ONCE)):
            yield kind, some


Sums = dict[tuple[int, str | None], Amount]


def _sums_of_accounts(identifiers: set[int], models: set[str | None], month: int) -> Sums:
    rows = Rollup.objects.filter(grain=Rollup.Grain.ACCOUNT_MONTH, account_id__in=identifiers)
    return _sums(rows, "account_id", models, month)


def _sums_of_lineages(identifiers: set[int], models: set[str | None], month: int) -> Sums:
    """Sum over all the keys that replaced one another, and that these have made, under the id of the first."""
    counted = api_keys_counted_against(identifiers)
    # An account's keys make keys for it alone: rows are found by accounts.
    accounts = set(ApiKey.objects.filter(pk__in=identifiers).values_list("account_id", flat=True))
    rows = Rollup.objects.filter(grain=Rollup.Grain.KEY_MONTH, account_id__in=accounts, key_id__in=list(counted))
    sums: Sums = {}
    for (pk, model), amount in _sums(rows, "key_id", models, month).items():
        for first in counted[pk]:
            sums[first, model] = sums.get((first, model), Amount()) + amount
    return sums


def _sums(rows: QuerySet[Rollup], column: str, models: set[str | None], month: int) -> Sums:
    """Sum by owner, under None, or where models are named by owner and model."""
    rows = rows.filter(start=hour_of(datetime.fromtimestamp(month_start(month) // SECOND, tz=UTC))).order_by()
    if models:
        rows = rows.filter(model__in=models)
    grouped = rows.values(column, *(["model"] if models else []))
    summed = grouped.annotate(tokens=Sum(F("input_tokens") + F("output_tokens")), dollars=Sum("cost"))
    return {(row[column], row.get("model")): Amount(int(row["tokens"]), int(row["dollars"])) for row in summed}
