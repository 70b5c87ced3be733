"""What the records that wait for the ingester will add to the sums of those in the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from accounts.limits.bounds import Amount
from accounts.limits.contract import Subject
from accounts.limits.months import month_of
from accounts.models import ApiKey
from accounts.refusals import nano
from accounts.selectors import api_key_makers
from monitoring.models import RequestRecord

#: Records of a shard, which are all held in memory. An ingester that is further behind has to catch up first.
MOST = 100_000
IDS_AT_A_TIME = 2_000

#: Whose ledger: `key` or `account`, its id, and of a budget for one model the model.
Place = tuple[str, int, str | None]


class TooManyWaiting(Exception):
    """Raised where so many records wait for the ingester that ledgers can't be compared with them."""


class Use(NamedTuple):
    """What a record says was used, by whom."""

    revision: int
    account_id: int
    key_id: int
    model: str
    amount: Amount


Uses = dict[UUID, Use]


def place_of(subject: Subject) -> Place:
    """Name the place of a subject's ledger."""
    return subject.kind.partition("_")[0], subject.owner_id, subject.model


def newest_uses(records: Iterable[Mapping[str, Any]], month: int) -> Uses:
    """Take of the records of a month (YYYYMM) what was used, by id; of several of an id the highest revision counts.

    Raises TooManyWaiting.
    """
    uses: Uses = {}
    for record in records:
        with suppress(KeyError, ValueError, TypeError):  # it is no record: the ingester will put it aside
            if month_of(record["admitted_at"]) == month:
                identifier, use = UUID(record["id"]), _use(record)
                if identifier not in uses or uses[identifier].revision < use.revision:
                    uses[identifier] = use
        if len(uses) > MOST:
            raise TooManyWaiting
    return uses


def unwritten(uses: Uses) -> dict[Place, Amount]:
    """Sum up what uses will add to the records in the database, by place; nothing where the database has them."""
    changes = dict(uses)
    replaced: list[Use] = []
    for identifier, written in _written(uses):
        if written.revision < uses[identifier].revision:
            replaced.append(written._replace(amount=Amount() - written.amount))
        else:
            del changes[identifier]
    sums: dict[Place, Amount] = defaultdict(Amount)
    every = [*changes.values(), *replaced]
    counted = _counted_against({use.key_id for use in every})
    for use in every:
        for model in (None, use.model):
            sums["account", use.account_id, model] += use.amount
            for first in counted.get(use.key_id, [use.key_id]):
                sums["key", first, model] += use.amount
    return sums


def _use(record: Mapping[str, Any]) -> Use:
    tokens = record.get("input_tokens", 0) + record.get("output_tokens", 0)
    model = str(record.get("model", ""))
    amount = Amount(tokens, record.get("cost", 0))
    return Use(record["revision"], record["account_id"], record["key_id"], model, amount)


def _written(uses: Uses) -> Iterable[tuple[UUID, Use]]:
    """Read those of the ids that the database has."""
    identifiers = iter(uses)
    while some := list(islice(identifiers, IDS_AT_A_TIME)):
        for row in RequestRecord.objects.filter(pk__in=some).order_by():
            amount = Amount(row.input_tokens + row.output_tokens, nano(row.cost or Decimal(0)))
            yield row.pk, Use(row.revision, row.account_id, row.key_id, row.model, amount)


def _counted_against(key_ids: set[int]) -> dict[int, list[int]]:
    """Map keys to those that they count against: to the first of those that replaced one another."""
    keys = ApiKey.objects.filter(pk__in=key_ids)
    makers = api_key_makers(keys)
    return {key.pk: [each.limits_id for each in (key, *makers[key.pk])] for key in keys}
