"""Looks at ledgers, streams and records in the order that tells whether they agree (see monitoring.ledger_check)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta

from django.conf import settings
from django.db.models import F, Sum

from accounts.audit import audit_event
from accounts.limits.bounds import Amount
from accounts.limits.contract import SECOND, SHARDS
from accounts.limits.ledgers import LedgerStore
from accounts.selectors import api_keys_counted_against
from monitoring.ledger import months_settled
from monitoring.ledger_check.excess import Excess, LedgerDifference
from monitoring.ledger_check.holders import Holder, ledger_holders
from monitoring.ledger_check.waiting import newest_uses, place_of, unwritten
from monitoring.models import Rollup
from monitoring.one_moment import one_moment
from monitoring.rollups.periods import EPOCH, HOUR, hour_of

#: How often a ledger is looked at, and seconds between: all together longer than Redis takes to be used again (5 s).
LOOKS, PAUSE = 4, 3.0
AT_ONCE = 500  # ledgers of a shard
MENDER = "command:check_rollups"
#: Of a budget for one model that is made in the middle of a month, calls are missing that were open or on their way to
#: the database then: what was used in the hours of these moments around it may be lacking.
AROUND = (-HOUR, timedelta(0), timedelta(seconds=2))

Pause = Callable[[float], object]
#: By holder: how far its ledger is off, and when (µs) it began.
Looked = dict[Holder, tuple[Excess, int]]


def ledger_differences(months: Iterable[int], *, pause: Pause = time.sleep) -> Iterator[LedgerDifference]:
    """Compare the ledgers in Redis of some months (YYYYMM) with the records; yield those that are wrong.

    Raises redis.RedisError, and TooManyWaiting.
    """
    holders = ledger_holders()
    with closing(LedgerStore(settings.REDIS_URL)) as store:
        for month in months:
            yield from _differences(store, month, holders, pause)


def ledgers_mend(differences: Iterable[LedgerDifference]) -> list[LedgerDifference]:
    """Correct ledgers by what they are off, as far as that is known exactly; return those, which the audit log names.

    Calls that go on meanwhile move the ledgers, too: a correction is a movement like theirs. Raises redis.RedisError.
    """
    certain = [each for each in differences if each.excess.is_certain]
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


def _differences(store: LedgerStore, month: int, holders: Iterable[Holder], pause: Pause) -> Iterator[LedgerDifference]:
    suspects = _unclear(_look(store, month, holders))
    for _ in range(LOOKS - 1):
        if not suspects:
            return
        pause(PAUSE)
        again = _look(store, month, suspects)
        suspects = _unclear(
            {holder: (suspects[holder][0].narrowed(excess), at) for holder, (excess, at) in again.items()}
        )
    for holder, (excess, seeded_at) in suspects.items():
        allowed = excess.lacking(_used_around(holder, seeded_at)) if holder.subject.model else excess
        if allowed.is_wrong:
            yield LedgerDifference(holder, month, allowed)


def _unclear(looked: Looked) -> Looked:
    return {holder: seen for holder, seen in looked.items() if not seen[0].is_nothing}


def _look(store: LedgerStore, month: int, holders: Iterable[Holder]) -> Looked:
    """Look once at each ledger that there is. One that is begun anew meanwhile holds what the database says."""
    by_shard: dict[int, list[Holder]] = defaultdict(list)
    for holder in holders:
        by_shard[holder.account_id % SHARDS].append(holder)
    looked: Looked = {}
    for shard, its in by_shard.items():
        for start in range(0, len(its), AT_ONCE):
            looked |= _look_at_some(store, month, shard, its[start : start + AT_ONCE])
    return looked


def _look_at_some(store: LedgerStore, month: int, shard: int, holders: list[Holder]) -> Looked:
    before = store.read(shard, [holder.subject for holder in holders], month)
    if not before:
        return {}
    uses = newest_uses(store.waiting(shard), month)
    with one_moment():
        written, waiting = months_settled(list(before), month), unwritten(uses)
    after = store.read(shard, list(before), month)
    looked = {}
    for holder in holders:
        was, now = before.get(holder.subject), after.get(holder.subject)
        if was is not None and now is not None and was.seeded_at == now.seeded_at:
            found = written[holder.subject] + waiting.get(place_of(holder.subject), Amount())
            looked[holder] = Excess.seen(was, now, found), now.seeded_at
    return looked


def _used_around(holder: Holder, seeded_at: int) -> Amount:
    """Sum up what was used of a budget's model in the hours around the moment at which its ledger began."""
    subject, began = holder.subject, EPOCH + timedelta(seconds=seeded_at / SECOND)
    rows = Rollup.objects.filter(
        start__in={hour_of(began + around) for around in AROUND}, account_id=holder.account_id, model=subject.model
    )
    if subject.kind.startswith("key"):
        keys = api_keys_counted_against({subject.owner_id})
        rows = rows.filter(grain=Rollup.Grain.KEY_HOUR, key_id__in=list(keys))
    else:
        rows = rows.filter(grain=Rollup.Grain.ACCOUNT_HOUR)
    sums = rows.aggregate(tokens=Sum(F("input_tokens") + F("output_tokens"), default=0), cost=Sum("cost", default=0))
    return Amount(int(sums["tokens"]), int(sums["cost"]))
