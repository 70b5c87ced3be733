"""Repricing: the cost of past calls anew, by the prices that now stand for their time.

Records and rollups change in one transaction, for some records at a time, and the ledgers right after it. So it can be
repeated at any time: what has the right cost does not change. If the process dies between a transaction and the
ledgers, these differ from the records by what was just changed; the next run compares and corrects them.

Kept are the costs that can't be computed from a record: of a charged bound, of a deployment that is gone or has no
price, and of several attempts of which an earlier one was billed as well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from accounts.limits.ledgers import LedgerStore
from accounts.limits.types import SHARDS, Amount
from core.money import NANO_DOLLARS, nano_dollars
from inference.models import Deployment, Price
from inference.prices import Rates
from inference.usage import Usage
from monitoring.models import RequestRecord
from monitoring.reconciliation import Owner, Use, by_owner, ledger_holders
from monitoring.rollups.periods import EPOCH
from monitoring.rollups.store import Change, rollups_apply
from monitoring.rollups.verify import has_usage_between, span_of_log

#: Records that are changed in one transaction.
AT_ONCE = 500
#: Causes of failed attempts that the provider billed: an error in an answer, or an answer that does not fit.
BILLED = ("inside a 200", "vector", "indexes")


class Pruned(Exception):
    """The log no longer has all records of the span."""


@dataclass(slots=True)
class Outcome:
    """What repricing changes, or would change: by account, the records and the difference in nano-dollars.

    `kept` counts the records whose cost can't be computed, by the reason.
    """

    records: Counter[str] = field(default_factory=Counter)
    difference: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, old: RequestRecord, cost: int) -> None:
        """Count a record that gets another cost."""
        self.records[old.account_name] += 1
        self.difference[old.account_name] += cost - (nano_dollars(old.cost) or 0)


def records_of(begin: datetime, end: datetime, model: str = "") -> QuerySet[RequestRecord]:
    """Return the billed records of a span (`end` excluded), of one model or all; raises Pruned."""
    first, _ = span_of_log()
    if first != EPOCH and has_usage_between(begin, min(first, end)):
        raise Pruned
    records = RequestRecord.objects.filter(admitted_at__gte=begin, admitted_at__lt=end)
    records = records.exclude(usage_source__in=["", "cache"]).order_by("admitted_at", "id")
    return records.filter(model=model) if model else records


def preview(records: QuerySet[RequestRecord]) -> Outcome:
    """Return what repricing would change."""
    outcome, prices = Outcome(), PastPrices()
    for record in records.iterator(chunk_size=AT_ONCE):
        cost = prices.cost(record, outcome.kept)
        if cost is not None and cost != nano_dollars(record.cost):
            outcome.add(record, cost)
    return outcome


def reprice(records: QuerySet[RequestRecord], *, wait: Callable[[], object] = lambda: None) -> Outcome:
    """Give records their cost by the prices that now stand for their time, in rollups and ledgers too.

    `wait` is called between two transactions. Raises redis.RedisError.
    """
    outcome, prices = Outcome(), PastPrices()
    subjects = {
        (holder.subject.kind.partition("_")[0], holder.subject.owner_id, holder.subject.model): holder
        for holder in ledger_holders()
    }
    ids = list(records.values_list("pk", flat=True))
    with closing(LedgerStore(settings.REDIS_URL)) as store:
        for at in range(0, len(ids), AT_ONCE):
            changed = _reprice_some(ids[at : at + AT_ONCE], prices, outcome)
            for month, owner, amount in _by_month(changed):
                if (holder := subjects.get(owner)) is not None:
                    shard = holder.account_id % SHARDS
                    store.correct(shard, holder.subject, month, settled=amount, reserved=Amount())
            wait()
    return outcome


@transaction.atomic
def _reprice_some(ids: Sequence[UUID], prices: PastPrices, outcome: Outcome) -> list[Change]:
    changes: list[Change] = []
    for record in RequestRecord.objects.select_for_update().filter(pk__in=ids).order_by("pk"):
        cost = prices.cost(record, outcome.kept)
        if cost is not None and cost != nano_dollars(record.cost):
            outcome.add(record, cost)
            old, record.cost = copy(record), Decimal(cost) / NANO_DOLLARS
            changes.append(Change(old, record))
    RequestRecord.objects.bulk_update([change.new for change in changes if change.new], ["cost"])
    rollups_apply(changes)
    return changes


def _by_month(changes: list[Change]) -> Iterator[tuple[int, Owner, Amount]]:
    """Yield by how much the ledgers change: month (YYYYMM), owner, and money."""
    uses: defaultdict[int, list[Use]] = defaultdict(list)
    for old, new in changes:
        if old is not None and new is not None:
            more = (nano_dollars(new.cost) or 0) - (nano_dollars(old.cost) or 0)
            month = int(f"{new.admitted_at:%Y%m}")
            uses[month].append(Use(new.revision, new.account_id, new.key_id, new.model, Amount(0, more)))
    for month, of_month in uses.items():
        for owner, amount in by_owner(of_month).items():
            if amount.cost:
                yield month, owner, amount


class PastPrices:
    """The costs of past calls, by all prices that were ever in force."""

    def __init__(self) -> None:
        self._prices: defaultdict[int, list[Price]] = defaultdict(list)
        for price in Price.objects.order_by("valid_from", "above_tokens"):
            self._prices[price.deployment_id].append(price)
        deployments = Deployment.objects.select_related("model", "provider")
        self._deployments = {(each.model.public_name, str(each)): each.pk for each in deployments}
        self._rates: dict[tuple[int, int], Rates | None] = {}

    def cost(self, record: RequestRecord, kept: Counter[str]) -> int | None:
        """Return the cost of a record's call in nano-dollars; None, counted in `kept`, if it can't be computed."""
        deployment = self._deployments.get((record.model, record.deployment))
        if record.usage_source == RequestRecord.UsageSource.BOUND:
            kept["charged their bound"] += 1
        elif record.attempts > 1 and any(cause in record.failures for cause in BILLED):
            kept["of several billed attempts"] += 1
        elif deployment is None:
            kept["of a deployment that is gone"] += 1
        elif (rates := self._rates_at(deployment, record.admitted_at)) is None:
            kept["without a price"] += 1
        else:
            usage = Usage(*(getattr(record, name) for name in Usage.__slots__))
            return rates.in_tier(record.service_tier).cost(usage)
        return None

    def _rates_at(self, deployment: int, at: datetime) -> Rates | None:
        begun = [price for price in self._prices[deployment] if price.valid_from <= at]
        key = deployment, len(begun)
        if key not in self._rates:
            latest = max((price.valid_from for price in begun if not price.above_tokens), default=None)
            steps: dict[int, Price] = {}
            for price in begun:  # the latest last; one for all prompts ends the earlier ones for longer prompts
                if latest is not None and price.valid_from >= latest:
                    steps[price.above_tokens] = price
            self._rates[key] = Rates.of(steps.values())
        return self._rates[key]
