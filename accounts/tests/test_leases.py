"""Leases: one holder a name, in all processes, until it releases the lease or dies."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import redis as redis_client
from django.conf import LazySettings
from redis.exceptions import RedisError

from accounts.limits import get_limits, reset_limits
from core.redis.leases import Leases
from tests.processes import wait_until
from tests.silent import silent_server


@pytest.fixture
def name() -> str:
    """Name a lease that nobody has."""
    return uuid.uuid4().hex


@pytest.fixture
def process() -> Iterator[Leases]:
    """Return a process's leases."""
    leases = Leases()
    yield leases
    leases.forget()


@pytest.fixture
def store(settings: LazySettings, redis_url: str) -> Iterator[redis_client.Redis]:
    """Let leases be in a Redis, and return a client of that."""
    settings.REDIS_URL = redis_url
    reset_limits()
    with redis_client.Redis.from_url(redis_url) as client:
        yield client
    reset_limits()


def place_of(name: str) -> str:
    """Return the key under which the store has a lease."""
    return f"aiapi:lease:{{{name}}}"


def test_it_gives_a_lease_to_the_first_only(process: Leases, name: str) -> None:
    assert process.take(name, "mine")
    assert not process.take(name, "another's")
    assert process.take(f"{name}-b", "another's")


def test_it_grants_a_holder_what_it_has(process: Leases, name: str) -> None:
    assert all(process.take(name, "mine") for _ in range(2))


def test_it_gives_a_released_lease_to_the_next(process: Leases, name: str) -> None:
    process.take(name, "mine")
    process.release(name, "mine")
    assert process.take(name, "another's")


def test_it_does_not_release_what_another_holds(process: Leases, name: str) -> None:
    process.take(name, "mine")
    process.release(name, "another's")
    assert not process.take(name, "another's")


def test_it_keeps_a_lease_from_other_processes_until_its_own_stops_renewing_it(
    store: redis_client.Redis, name: str
) -> None:
    long, mine, others = Leases(60), Leases(0.5), Leases(0.5)
    assert long.take(f"{name}-long", "mine")
    assert mine.take(name, "mine")
    wait_until(lambda: bool(store.pttl(place_of(name)) < 450), "some of the lease to be over")
    wait_until(lambda: bool(store.pttl(place_of(name)) > 450), "the lease to be renewed")
    assert not others.take(name, "another's")
    mine.forget()
    wait_until(lambda: others.take(name, "another's"), "the lease to expire", 5)
    for leases in (others, long):
        leases.forget()


def test_it_does_not_renew_what_another_holds_by_now(store: redis_client.Redis, name: str) -> None:
    mine = Leases()
    mine.take(name, "mine")
    store.set(place_of(name), "another's", px=100)
    mine.renew(0, [name])
    assert store.pttl(place_of(name)) <= 100
    mine.forget()


def test_it_waits_for_no_store_that_is_known_to_be_away(
    settings: LazySettings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.redis.availability.PROBE_INTERVAL", 60.0)
    with silent_server() as silent:
        settings.REDIS_URL = silent.redis_url
        reset_limits()
        leases = Leases()
        with pytest.raises(RedisError):
            leases.take(name, "mine")
        assert get_limits().is_degraded, "what was noticed here, the limits know"
        assert silent.calls() == 2, "the call, and the probe after it"
        for ask in (leases.take, leases.release):
            with pytest.raises(RedisError):
                ask(f"{name}-b", "mine")
        assert silent.calls() == 0
    reset_limits()
