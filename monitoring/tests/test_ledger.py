"""What a month has used, as the records say: the truth that an emptied state store is seeded from."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from accounts.limits.backend import LimitBackend
from accounts.limits.types import Amount, Limits, Subject
from accounts.models import ApiKey
from accounts.services import api_key_create, api_key_rotate
from accounts.tests.factories import ACTOR, Cast, IssuedKey
from core.times import month_of
from monitoring import ledger
from monitoring.ingester import Ingester
from monitoring.ledger import months_settled
from monitoring.recorder import write_records
from monitoring.tests.samples import a_draft, a_record, micros_at, now_micros, open_call, recorded, scope_of

pytestmark = pytest.mark.django_db
NOVEMBER = 202611


def of_key(issued: IssuedKey) -> Subject:
    """Return the subject of a key."""
    return Subject("key", str(issued.key.pk), Limits())


def settled(subject: Subject, month: int) -> Amount:
    """Return what one subject has settled."""
    return months_settled([subject], month)[subject]


def test_it_sums_what_a_key_and_its_account_used_in_a_month_of_utc(cast: Cast) -> None:
    account = Subject("account", str(cast.owner.key.account_id), Limits())
    assert settled(of_key(cast.owner), NOVEMBER) == Amount(0, 0)
    for at in (micros_at(11, 1) - 1, micros_at(12, 1)):
        recorded(cast.owner, admitted_at=at, cost=999)
    recorded(cast.owner, admitted_at=micros_at(11, 1), input_tokens=20, output_tokens=10, cost=25_000)
    recorded(cast.owner, admitted_at=micros_at(12, 1) - 1, input_tokens=1, output_tokens=2, cost=1)
    recorded(cast.colleague, admitted_at=micros_at(11, 15), input_tokens=100, output_tokens=0, cost=7)
    recorded(cast.stranger, admitted_at=micros_at(11, 15), input_tokens=5_000, output_tokens=0, cost=1_000_000)
    assert settled(of_key(cast.owner), NOVEMBER) == Amount(33, 25_001)
    assert settled(account, NOVEMBER) == Amount(133, 25_008)


def test_it_sums_money_to_the_nano_dollar(cast: Cast) -> None:
    at, costs = micros_at(11, 15), [100_000_000 * number + number for number in range(1, 200)]
    write_records([a_record(cast.owner, admitted_at=at, cost=cost) for cost in costs])
    assert settled(of_key(cast.owner), NOVEMBER).cost == sum(costs)


def test_it_seeds_an_emptied_store_before_the_next_call(cast: Cast, redis_limits: LimitBackend, store: Any) -> None:
    recorded(cast.owner, admitted_at=now_micros(), input_tokens=20, output_tokens=10, cost=25_000)
    store.flushdb()
    open_call(redis_limits, cast.owner, tokens=100)
    for usage in redis_limits.usage(scope_of(cast.owner), month_of(now_micros())):
        assert usage.settled == Amount(30, 25_000)
        assert usage.reserved.tokens == 100


def test_it_agrees_with_the_store_once_the_records_came_in(cast: Cast, redis_limits: LimitBackend) -> None:
    scope = scope_of(cast.owner)
    for used in (Amount(30, 400), Amount(7, 9)):
        operation = open_call(redis_limits, cast.owner)
        record = a_draft(cast.owner, input_tokens=used.tokens, output_tokens=0, cost=used.cost)
        redis_limits.settle(scope, operation, admitted_at=record.admitted_at, used=used, record=record)
    Ingester().run_once()
    key, account = redis_limits.usage(scope)
    assert key.settled == account.settled == Amount(37, 409)
    assert settled(of_key(cast.owner), month_of(now_micros())) == Amount(37, 409)


def test_it_counts_made_keys_against_all_those_above_them(cast: Cast) -> None:
    at, account, tier = micros_at(11, 15), cast.owner.key.account, cast.owner.key.tier
    chain = [cast.owner]
    for name in ("child", "grandchild"):
        made = api_key_create(account=account, tier=tier, name=name, actor=ACTOR, maker=chain[-1].key)
        chain.append(IssuedKey(*made))
    successor, _ = api_key_rotate(key=chain[1].key, grace=timedelta(0), actor=ACTOR)
    late = IssuedKey(*api_key_create(account=account, tier=tier, name="late", actor=ACTOR, maker=successor))
    for cost, issued in enumerate([*chain, late, cast.colleague]):
        recorded(issued, admitted_at=at, model="a", input_tokens=1, output_tokens=0, cost=10**cost)
    subjects = [of_key(issued) for issued in (*chain, late)]
    of_model = Subject("key_model", f"{cast.owner.key.pk}:1:a", Limits())
    found = months_settled([*subjects, of_model], NOVEMBER)
    assert [found[each].cost for each in (*subjects, of_model)] == [1111, 1110, 100, 1000, 1111]


@pytest.mark.parametrize("at_once", [1, 2, 1_000])
def test_it_sums_the_use_of_one_model_by_key_and_by_account(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(ledger, "AT_ONCE", at_once)
    at = micros_at(11, 15)
    key, account = cast.owner.key.pk, cast.owner.key.account_id
    recorded(cast.owner, admitted_at=at, model="a", input_tokens=20, output_tokens=10, cost=25)
    recorded(cast.owner, admitted_at=at, model="b", input_tokens=1, output_tokens=2, cost=1)
    recorded(cast.colleague, admitted_at=at, model="a", input_tokens=100, output_tokens=0, cost=7)
    ApiKey.objects.filter(pk=cast.colleague.key.pk).update(lineage_id=key)
    subjects = [
        Subject("key_model", f"{key}:1:a", Limits()),
        Subject("key_model", f"{key}:2:b", Limits()),
        Subject("account_model", f"{account}:3:a", Limits()),
        Subject("account_model", f"{account}:4:c:1", Limits()),
        Subject("account", str(account), Limits()),
    ]
    found = months_settled(subjects, NOVEMBER)
    assert [found[each].tokens for each in subjects] == [130, 3, 130, 0, 133]
    assert [found[each].cost for each in subjects] == [32, 1, 32, 0, 33]
