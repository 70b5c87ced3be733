"""What a worker knows of a key: for a second, from one query, and as the database has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import key_cache
from accounts.key_cache import AuthenticatedKey, KeyCache, build_authenticated_key
from accounts.limits.types import Limits
from accounts.models import Account, ApiKey, Tier
from accounts.services import api_key_create, api_key_rotate
from accounts.tests.factories import ACTOR, Cast, make_account, make_key, make_tier
from core.errors import DependencyUnavailable
from core.outage import RETRY_AFTER

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


@dataclass
class Clock:
    """A monotonic clock that a test moves."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """Stand still until the test moves it."""
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> KeyCache:
    """Make an empty cache on that clock."""
    return KeyCache(clock)


@pytest.fixture
def database_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what takes the database down."""

    def fail(candidates: list[str]) -> None:
        raise OperationalError("connection refused")

    return lambda: monkeypatch.setattr(key_cache, "_query", fail)


def identity_of(key: ApiKey) -> AuthenticatedKey:
    """Read a key anew and make its identity."""
    return build_authenticated_key(ApiKey.objects.select_related("account", "tier").get(pk=key.pk), timezone.now())


def key_limits(**fields: Any) -> Limits:
    """Return the limits of a key with these fields, of a tier with 5 requests and 100 tokens a minute, 2 at once."""
    tier = make_tier("free", requests_per_minute=5, tokens_per_minute=100, concurrent_requests=2)
    return identity_of(make_key(tier=tier, **fields).key).limits.subjects[0].limits


def test_it_knows_usable_keys_only(cache: KeyCache, cast: Cast) -> None:
    usable = (cast.owner, cast.colleague, cast.stranger)
    assert [(found := cache.find(issued.plain)) and found.key_name for issued in usable] == [
        "owner",
        "colleague",
        "stranger",
    ]
    assert not any(cache.find(issued.plain) for issued in (cast.revoked, cast.expired, cast.disabled))


def test_it_asks_the_database_once_a_second(
    cache: KeyCache, clock: Clock, cast: Cast, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    cache.find(cast.owner.plain)  # writes the time of use as well
    clock.seconds += 1
    with django_assert_num_queries(1):
        for _ in range(100):
            cache.find(cast.owner.plain)
            clock.seconds += 0.009


def test_it_asks_once_a_second_for_unknown_keys_as_well(
    cache: KeyCache, clock: Clock, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(2):
        for _ in range(4):
            assert cache.find("ak_live_unknown") is None
            clock.seconds += 0.5


def revoke(key: ApiKey) -> None:
    """Revoke as another process does."""
    ApiKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now())


def disable(key: ApiKey) -> None:
    """Disable the account as another process does."""
    Account.objects.filter(pk=key.account_id).update(is_active=False)


def expire(key: ApiKey) -> None:
    """Let the key expire as another process does."""
    ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now())


@pytest.mark.parametrize("stop", [revoke, disable, expire])
def test_it_sees_a_change_by_others_within_a_second(
    cache: KeyCache, clock: Clock, cast: Cast, stop: Callable[[ApiKey], None]
) -> None:
    assert cache.find(cast.owner.plain)
    stop(cast.owner.key)
    clock.seconds += 0.999
    assert cache.find(cast.owner.plain)
    clock.seconds += 0.001
    assert cache.find(cast.owner.plain) is None


def test_it_forgets_when_it_is_told(cache: KeyCache, cast: Cast) -> None:
    assert cache.find(cast.owner.plain)
    revoke(cast.owner.key)
    cache.forget()
    assert cache.find(cast.owner.plain) is None


def test_it_refuses_a_key_that_ends_while_it_is_known(
    cache: KeyCache, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = timezone.now() + timedelta(hours=1)
    ApiKey.objects.filter(pk=cast.owner.key.pk).update(expires_at=ends)
    assert cache.find(cast.owner.plain)
    monkeypatch.setattr(key_cache, "datetime", SimpleNamespace(now=lambda zone: ends))
    assert cache.find(cast.owner.plain) is None


def test_it_says_that_the_database_is_away(
    cache: KeyCache, clock: Clock, cast: Cast, database_away: Callable[[], None]
) -> None:
    assert cache.find(cast.owner.plain)
    database_away()
    assert cache.find(cast.owner.plain)
    clock.seconds += 1
    with pytest.raises(DependencyUnavailable):
        cache.find(cast.owner.plain)


def test_it_goes_on_with_known_keys_as_long_as_the_setting_says(
    cache: KeyCache, clock: Clock, cast: Cast, database_away: Callable[[], None], settings: Settings
) -> None:
    settings.AUTH_STALE_SECONDS = 60
    assert cache.find(cast.owner.plain)
    database_away()
    clock.seconds += 60.9
    assert cache.find(cast.owner.plain)
    with pytest.raises(DependencyUnavailable):
        cache.find(cast.stranger.plain)
    clock.seconds += 0.2
    with pytest.raises(DependencyUnavailable):
        cache.find(cast.owner.plain)


@pytest.fixture
def slow_failure(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every query fail after a while, as a pool without connections does; list the queries."""
    asked: list[str] = []

    def fail(candidates: tuple[str, ...]) -> None:
        asked.append(candidates[0])
        time.sleep(0.2)
        raise OperationalError("no connection")

    monkeypatch.setattr(key_cache, "_query", fail)
    return asked


def test_it_makes_nobody_wait_behind_others(cache: KeyCache, slow_failure: list[str]) -> None:
    refused: list[float] = []

    def find() -> None:
        began = time.monotonic()
        with pytest.raises(DependencyUnavailable):
            cache.find("ak_dev_one")
        refused.append(time.monotonic() - began)

    threads = [threading.Thread(target=find) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(slow_failure) == 1
    assert len(refused) == 20
    assert max(refused) < 1


def test_it_keeps_nobody_waiting_for_an_answer_about_a_key_that_is_known(
    cache: KeyCache, clock: Clock, cast: Cast, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AUTH_STALE_SECONDS = 60
    known = cache.find(cast.owner.plain)
    asked, may_fail = threading.Event(), threading.Event()

    def hang(candidates: tuple[str, ...]) -> None:
        asked.set()
        may_fail.wait(20)
        raise OperationalError("silent")

    monkeypatch.setattr(key_cache, "_query", hang)
    clock.seconds += 1
    who_asks = threading.Thread(target=cache.find, args=(cast.owner.plain,))
    who_asks.start()
    assert asked.wait(20)
    for _ in range(3):
        assert cache.find(cast.owner.plain) == known
    assert who_asks.is_alive(), "it still waits for the database"
    may_fail.set()
    who_asks.join()


def test_it_goes_on_with_known_keys_without_asking_each_time(
    cache: KeyCache, clock: Clock, cast: Cast, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AUTH_STALE_SECONDS = 60
    assert cache.find(cast.owner.plain)
    asked: list[int] = []

    def fail(candidates: tuple[str, ...]) -> None:
        asked.append(1)
        raise OperationalError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(key_cache, "_query", fail)
        clock.seconds += 1
        assert all(cache.find(cast.owner.plain) for _ in range(10))
        assert len(asked) == 1
    clock.seconds += RETRY_AFTER
    assert cache.find(cast.stranger.plain), "it is back"


def test_it_writes_the_time_of_use_at_most_once_a_minute(cache: KeyCache, clock: Clock, cast: Cast) -> None:
    cache.find(cast.owner.plain)
    first = ApiKey.objects.get(pk=cast.owner.key.pk).last_used_at
    assert first is not None
    clock.seconds += 1
    cache.find(cast.owner.plain)
    assert ApiKey.objects.get(pk=cast.owner.key.pk).last_used_at == first
    ApiKey.objects.filter(pk=cast.owner.key.pk).update(last_used_at=first - timedelta(minutes=1))
    clock.seconds += 1
    cache.find(cast.owner.plain)
    assert ApiKey.objects.get(pk=cast.owner.key.pk).last_used_at != first - timedelta(minutes=1)


def test_it_writes_no_time_of_use_for_refused_keys(cache: KeyCache, cast: Cast) -> None:
    cache.find(cast.revoked.plain)
    assert ApiKey.objects.get(pk=cast.revoked.key.pk).last_used_at is None


def test_it_knows_keys_under_older_peppers(cache: KeyCache, clock: Clock, cast: Cast, settings: Settings) -> None:
    settings.API_KEY_PEPPERS = ["a new pepper", *settings.API_KEY_PEPPERS]
    assert cache.find(cast.owner.plain)
    settings.API_KEY_PEPPERS = ["a new pepper"]
    clock.seconds += 1
    assert cache.find(cast.owner.plain) is None


def test_it_takes_limits_from_the_tier() -> None:
    assert key_limits() == Limits(requests_per_minute=5, tokens_per_minute=100, concurrent_requests=2)


def test_it_lets_overrides_replace_the_tier_s_limits() -> None:
    limits = key_limits(requests_per_minute_override=50, tokens_per_minute_override=7, concurrent_requests_override=9)
    assert limits == Limits(requests_per_minute=50, tokens_per_minute=7, concurrent_requests=9)


def test_it_ends_overrides_at_their_date() -> None:
    assert key_limits(requests_per_minute_override=50, overrides_until=timezone.now() + HOUR).requests_per_minute == 50
    assert key_limits(requests_per_minute_override=50, overrides_until=timezone.now() - HOUR).requests_per_minute == 5


def test_it_takes_budgets_of_the_key_exactly() -> None:
    limits = key_limits(monthly_token_budget=1000, monthly_cost_budget=Decimal("0.000000001"))
    assert (limits.monthly_tokens, limits.monthly_cost) == (1000, 1)


def test_it_takes_caps_and_budgets_of_the_account() -> None:
    account = make_account(
        requests_per_minute=60,
        tokens_per_minute=6000,
        concurrent_requests=6,
        monthly_token_budget=10,
        monthly_cost_budget=Decimal("2.5"),
    )
    identity = identity_of(make_key(account=account).key)
    assert identity.limits.subjects[1].limits == Limits(60, 6000, 6, 10, 2_500_000_000)
    assert identity.limits.subjects[1].id == str(account.pk)


def test_it_counts_a_made_key_against_those_above_it_as_they_are_now(
    cache: KeyCache, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    key = make_key(tier=make_tier("ten", requests_per_minute=10)).key
    plain, above = "", [key]
    for name in ("first", "second", "third"):
        key, plain = api_key_create(account=key.account, tier=key.tier, name=name, actor=ACTOR, maker=key)
        above.append(key)
    successor, _ = api_key_rotate(key=above[1], grace=timedelta(0), actor=ACTOR)
    ApiKey.objects.filter(pk=successor.pk).update(requests_per_minute_override=3, revoked_at=timezone.now())
    ApiKey.objects.update(last_used_at=timezone.now())
    with django_assert_num_queries(4):  # the key, those above it, the successor, budgets for single models
        found = cache.find(plain)
    assert found is not None
    *keys, account = found.limits.subjects
    assert account.kind == "account"
    assert [subject.maker for subject in keys] == ["", "second", "first-2", above[0].name]
    assert [subject.id for subject in keys] == [str(each.pk) for each in reversed(above)]
    assert [subject.limits.requests_per_minute for subject in keys] == [10, 10, 3, 10]


@pytest.mark.parametrize(
    ("tier_models", "key_models", "allowed"),
    [([], [], "ab"), (["a"], [], "a"), ([], ["b"], "b"), (["a"], ["a", "b"], "a"), (["a"], ["b"], "")],
)
def test_it_allows_models_that_tier_and_key_allow(tier_models: list[str], key_models: list[str], allowed: str) -> None:
    tier = Tier.objects.create(name="some", models=tier_models)
    identity = identity_of(make_key(tier=tier, models=key_models).key)
    assert "".join(name for name in "ab" if identity.may_use_model(name)) == allowed


def test_it_gives_every_scope_but_key_management_unless_some_are_named() -> None:
    assert identity_of(make_key().key).scopes == {"chat", "summarize", "embeddings", "usage"}
    assert identity_of(make_key(scopes=["keys:manage"]).key).scopes == {"keys:manage"}


def test_it_reads_every_field_as_django_does(cache: KeyCache) -> None:
    tier = make_tier("some", requests_per_minute=5, models=["a", "b"], cache_any_temperature=True, max_output_tokens=7)
    account = make_account(monthly_cost_budget=Decimal("2.000000001"), cache_generations={"a": "1"}, logs_content=True)
    issued = make_key(
        tier=tier,
        account=account,
        models=["a"],
        scopes=["chat"],
        allowed_ips=["192.0.2.0/24"],
        expires_at=timezone.now() + HOUR,
        overrides_until=timezone.now() + HOUR,
        tokens_per_minute_override=3,
        monthly_token_budget=9,
    )
    assert cache.find(issued.plain) == identity_of(issued.key)


@pytest.mark.django_db(transaction=True)
def test_it_reads_and_touches_at_once_what_many_callers_need(cache: KeyCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [make_key() for _ in range(9)]
    lists: list[int] = []
    read = key_cache._query

    def slowly(asked: Sequence[tuple[str, ...]]) -> dict[str, key_cache.StoredKey]:
        lists.append(len(asked))
        time.sleep(0.5)
        return read(asked)

    monkeypatch.setattr(key_cache, "_query", slowly)
    with ThreadPoolExecutor(max_workers=10) as threads:
        found = list(threads.map(cache.find, [*(issued.plain for issued in keys), "ak_live_unknown"]))
    assert [each and each.key_id for each in found] == [*(issued.key.pk for issued in keys), None]
    assert sum(lists) == 10
    assert len(lists) <= 3
    assert not ApiKey.objects.filter(last_used_at=None).exists()


@pytest.mark.django_db(transaction=True)
def test_it_waits_for_no_lock_to_write_the_time_of_use(cache: KeyCache) -> None:
    issued = make_key()
    with ThreadPoolExecutor(max_workers=1) as threads, transaction.atomic():
        ApiKey.objects.select_for_update().get(pk=issued.key.pk)
        assert threads.submit(cache.find, issued.plain).result(20) is not None
    assert connection.vendor == "sqlite" or ApiKey.objects.get(pk=issued.key.pk).last_used_at is None


@pytest.mark.django_db(transaction=True)
def test_it_keeps_no_connection_of_the_pool_once_a_key_is_read(cache: KeyCache) -> None:
    issued = make_key()
    assert cache.find(issued.plain) is not None
    assert connection.vendor == "sqlite" or connection.connection is None
