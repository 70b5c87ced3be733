"""Reconciliation: compares the ledgers in Redis of keys, accounts and model budgets with the usage records.

A call is charged and its record is queued in one step, so a ledger equals the sum of the records in the database and
in the stream. Redis and the database can't be read at the same time, so the order is: the ledgers, the stream, the
database, the ledgers again. Everything in the ledger at the first reading is found in the stream or in the database
(or in both: records are matched by id), and everything found there is in the ledger at the second reading. A ledger
that did not change in between must equal what was found. For one in use, the two readings give a lower and an upper
bound of the difference.

A ledger is wrong if it is so in each of LOOKS looks: calls that are charged late because Redis was down have been
charged by the last one. Reservations are compared with the sum held by open calls, which Redis returns in one step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db.models import F, Sum

from accounts.audit import audit_event
from accounts.key_cache import account_subject, key_ledger, model_subject
from accounts.limits.ledgers import LedgerStore
from accounts.limits.local import wall_clock
from accounts.limits.records import UsageRecord
from accounts.limits.types import SECOND, SHARDS, Amount, Subject
from accounts.models import Account, ApiKey, ModelBudget
from accounts.selectors import api_key_makers, api_keys_counted_against
from core.database import repeatable_read
from core.money import dollars, nano
from core.times import month_of, month_start
from monitoring.ledger import months_settled
from monitoring.models import RequestRecord, Rollup
from monitoring.retention import rollup_cutoff
from monitoring.rollups.periods import EPOCH, HOUR, QUARTER, floor

#: Waiting records of a shard that are held in memory. If there are more, the ingester has to catch up first.
MOST = 100_000
IDS_AT_A_TIME = 2_000
#: Readings of a ledger, and seconds between them: together longer than it takes to use Redis again (5 s).
LOOKS, PAUSE = 3, 3.0
AT_ONCE = 500  # ledgers of a shard
MENDER = "command:check_rollups"
#: The ledger of a model budget that is created during a month lacks the calls that were open, or not yet in the
#: database, when it was seeded. Usage between these offsets from the seeding may be missing.
AROUND = (-HOUR, timedelta(seconds=2))

Pause = Callable[[float], object]


class TooManyWaiting(Exception):
    """Too many records wait for the ingester to compare them with the ledgers."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The owner of a ledger; `name` is for display."""

    subject: Subject
    account_id: int
    name: str


class Bounds(NamedTuple):
    """How much an amount is too high: at least `low`, at most `high`; negative if it is too low."""

    low: int
    high: int

    @property
    def is_wrong(self) -> bool:
        """Return whether the amount is wrong for certain."""
        return self.low > 0 or self.high < 0

    def lacking(self, most: int) -> Bounds:
        """Allow the amount to be too low by `most`."""
        return Bounds(min(0, self.low + most), min(0, self.high + most)) if self.high < 0 else self


class Excess(NamedTuple):
    """How much a ledger is too high: tokens and cost (nano-dollars), settled and reserved."""

    tokens: Bounds
    cost: Bounds
    reserved_tokens: Bounds
    reserved_cost: Bounds

    @property
    def is_wrong(self) -> bool:
        """Return whether any amount is wrong for certain."""
        return any(bounds.is_wrong for bounds in self)


@dataclass(frozen=True, slots=True)
class LedgerDifference:
    """A ledger that differs from the records of a month (YYYYMM)."""

    holder: Holder
    month: int
    excess: Excess

    def __str__(self) -> str:
        parts = []
        for name, bounds in self.excess._asdict().items():
            if bounds.is_wrong:
                amount = bounds.low if bounds.low > 0 else -bounds.high
                text = f"${dollars(amount)}" if name.endswith("cost") else f"{amount:,} tokens"
                least = "" if bounds.low == bounds.high else "at least "
                what = "has reserved" if name.startswith("reserved") else "was charged"
                parts.append(f"{what} {least}{text} too {'much' if bounds.low > 0 else 'little'}")
        return f"ledger of {self.month}: {self.holder.name} ({self.holder.subject.name}) {', '.join(parts)}"


def ledger_months(begin: datetime, until: datetime) -> list[int]:
    """List the months (YYYYMM) in a span of time whose ledgers are in use: this and, for late calls, the last."""
    pruned = rollup_cutoff(settings.ROLLUP_RETENTION_DAYS)
    first, last = int(f"{max(begin, pruned or begin):%Y%m}"), int(f"{until - timedelta(microseconds=1):%Y%m}")
    present = month_of(wall_clock())
    return [month for month in (month_of(month_start(present) - 1), present) if first <= month <= last]


def ledger_differences(months: Iterable[int], *, pause: Pause = time.sleep) -> Iterator[LedgerDifference]:
    """Compare the ledgers of some months (YYYYMM) with the records; yield those that are wrong for certain.

    Raises redis.RedisError and TooManyWaiting.
    """
    holders = ledger_holders()
    with closing(LedgerStore(settings.REDIS_URL)) as store:
        for month in months:
            suspects = _look(store, month, holders)
            for _ in range(LOOKS - 1):
                if suspects:
                    pause(PAUSE)
                    suspects = _look(store, month, suspects)
            for holder, (excess, seeded_at) in suspects.items():
                allowed = excess
                if holder.subject.model:
                    most = _used_around(holder, seeded_at)
                    tokens, cost = excess.tokens.lacking(most.tokens), excess.cost.lacking(most.cost)
                    allowed = excess._replace(tokens=tokens, cost=cost)
                if allowed.is_wrong:
                    yield LedgerDifference(holder, month, allowed)


def ledgers_fix(differences: Iterable[LedgerDifference]) -> list[LedgerDifference]:
    """Correct the ledgers whose difference is known exactly, write audit entries, and return them.

    A correction adds the difference, so calls may settle at the same time. Raises redis.RedisError.
    """
    certain = [each for each in differences if all(bounds.low == bounds.high for bounds in each.excess)]
    with closing(LedgerStore(settings.REDIS_URL)) as store:
        for each in certain:
            excess, holder = each.excess, each.holder
            store.correct(
                holder.account_id % SHARDS,
                holder.subject,
                each.month,
                settled=Amount(-excess.tokens.low, -excess.cost.low),
                reserved=Amount(-excess.reserved_tokens.low, -excess.reserved_cost.low),
            )
            audit_event(actor=MENDER, action="corrected", kind="ledger", details={"difference": str(each)})
    return certain


def ledger_holders() -> list[Holder]:
    """List all owners of ledgers. The rotations of a key share one ledger, under the name of the last key."""
    found = [Holder(account_subject(each), each.pk, f"account {each.name}") for each in Account.objects.order_by("pk")]
    keys = ApiKey.objects.select_related("account").order_by("pk").iterator()
    found += [Holder(key_ledger(key), key.account_id, _key_name(key)) for key in keys]
    for budget in ModelBudget.objects.select_related("account", "key__account").order_by("pk").iterator():
        name = _key_name(budget.key) if budget.key else f"account {budget.account}"
        account_id = budget.key.account_id if budget.key else budget.account_id or 0
        found.append(Holder(model_subject(budget), account_id, f"{name} for model {budget.model}"))
    return list({holder.subject.name: holder for holder in found}.values())


def _key_name(key: ApiKey) -> str:
    return f"key {key.account.name}/{key.name}"


def _look(store: LedgerStore, month: int, holders: Iterable[Holder]) -> dict[Holder, tuple[Excess, int]]:
    """Return the ledgers that are wrong for certain: how much each is too high, and when it was seeded (µs).

    Skip those that are seeded meanwhile: they hold what the database says.
    """
    by_shard: dict[int, list[Holder]] = defaultdict(list)
    for holder in holders:
        by_shard[holder.account_id % SHARDS].append(holder)
    parts = (
        (shard, of_shard[start : start + AT_ONCE])
        for shard, of_shard in by_shard.items()
        for start in range(0, len(of_shard), AT_ONCE)
    )
    wrong = {}
    for shard, some in parts:
        before = store.read(shard, [holder.subject for holder in some], month)
        if not before:
            continue
        uses = newest_uses(store.waiting(shard), month)
        with repeatable_read():
            written, waiting = months_settled(list(before), month), unwritten(uses)
        after = store.read(shard, list(before), month)
        for holder in some:
            was, now = before.get(holder.subject), after.get(holder.subject)
            if was is not None and now is not None and was.seeded_at == now.seeded_at:
                owner = holder.subject.kind.partition("_")[0], holder.subject.owner_id, holder.subject.model
                found = written[holder.subject] + waiting.get(owner, Amount())
                first, last, reserved = was.settled - found, now.settled - found, now.reserved - now.held
                excess = Excess(
                    Bounds(*sorted((first.tokens, last.tokens))),
                    Bounds(*sorted((first.cost, last.cost))),
                    Bounds(reserved.tokens, reserved.tokens),
                    Bounds(reserved.cost, reserved.cost),
                )
                if excess.is_wrong:
                    wrong[holder] = excess, now.seeded_at
    return wrong


class Use(NamedTuple):
    """The caller, model and amount of a record."""

    revision: int
    account_id: int
    key_id: int
    model: str
    amount: Amount


Uses = dict[UUID, Use]
#: The owner of a ledger: `key` or `account`, its id, and the model of a model budget (else None).
Owner = tuple[str, int, str | None]


def newest_uses(records: Iterable[UsageRecord], month: int) -> Uses:
    """Return the uses of a month's (YYYYMM) records by id, each of the highest revision; skip malformed records.

    Raises TooManyWaiting.
    """
    uses: Uses = {}
    for record in records:
        with suppress(ValueError, TypeError):  # malformed: the ingester will put it aside
            if month_of(record.admitted_at) == month:
                amount = Amount(record.input_tokens + record.output_tokens, record.cost or 0)
                use = Use(record.revision, record.account_id, record.key_id, record.model, amount)
                identifier = UUID(record.id)
                if identifier not in uses or uses[identifier].revision < use.revision:
                    uses[identifier] = use
        if len(uses) > MOST:
            raise TooManyWaiting
    return uses


def unwritten(uses: Uses) -> dict[Owner, Amount]:
    """Return what uses will add to the records in the database, by owner; uses that are there already add nothing."""
    changes = dict(uses)
    replaced: list[Use] = []
    identifiers = iter(uses)
    while some := list(islice(identifiers, IDS_AT_A_TIME)):
        for row in RequestRecord.objects.filter(pk__in=some).order_by():
            if row.revision < uses[row.pk].revision:
                amount = Amount(-row.input_tokens - row.output_tokens, -nano(row.cost or Decimal(0)))
                replaced.append(Use(row.revision, row.account_id, row.key_id, row.model, amount))
            else:
                del changes[row.pk]
    return by_owner([*changes.values(), *replaced])


def by_owner(uses: Sequence[Use]) -> dict[Owner, Amount]:
    """Sum uses by the owners of the ledgers that they count against."""
    sums: dict[Owner, Amount] = defaultdict(Amount)
    keys = ApiKey.objects.filter(pk__in={use.key_id for use in uses})
    makers = api_key_makers(keys)
    # The keys that a key's use counts against, each by the first key of its rotation.
    counted = {key.pk: [each.limits_id for each in (key, *makers[key.pk])] for key in keys}
    for use in uses:
        for model in (None, use.model):
            sums["account", use.account_id, model] += use.amount
            for first in counted.get(use.key_id, [use.key_id]):
                sums["key", first, model] += use.amount
    return sums


def _used_around(holder: Holder, seeded_at: int) -> Amount:
    """Return the usage of a budget's model in the quarter hours around the seeding of its ledger."""
    subject, began = holder.subject, EPOCH + timedelta(seconds=seeded_at / SECOND)
    first, last = (floor(began + around, QUARTER) for around in AROUND)
    rows = Rollup.objects.filter(
        grain=Rollup.Grain.KEY_QUARTER,
        start__range=(first, last),
        account_id=holder.account_id,
        model=subject.model,
    )
    if subject.is_of_key:
        rows = rows.filter(key_id__in=list(api_keys_counted_against({subject.owner_id})))
    sums = rows.aggregate(tokens=Sum(F("input_tokens") + F("output_tokens"), default=0), cost=Sum("cost", default=0))
    return Amount(int(sums["tokens"]), int(sums["cost"]))
