"""A database that is away: one caller asks, the others are told at once, and all ask again when it is back."""

from __future__ import annotations

import threading
import time

import pytest
from django.db import OperationalError
from pytest_django import Settings

from accounts import key_cache
from accounts.key_cache import KeyCache
from accounts.tests.factories import Cast
from core.database import ASKING, RETRY_AFTER, Outage
from core.errors import DependencyUnavailable


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_it_lets_everybody_ask_while_nothing_failed() -> None:
    outage = Outage(Clock())
    assert all(outage.may_ask() for _ in range(3))
    outage.over()
    assert outage.may_ask()


def test_it_lets_one_ask_a_while_after_a_failure() -> None:
    clock = Clock()
    outage = Outage(clock)
    outage.failed()
    assert not outage.may_ask()
    clock.seconds += RETRY_AFTER
    assert [outage.may_ask() for _ in range(3)] == [True, False, False]
    outage.failed()
    clock.seconds += RETRY_AFTER
    assert outage.may_ask()
    outage.over()
    assert all(outage.may_ask() for _ in range(3))


def test_it_does_not_wait_for_ever_for_one_who_never_tells() -> None:
    clock = Clock()
    outage = Outage(clock)
    outage.failed()
    clock.seconds += RETRY_AFTER
    assert outage.may_ask()
    clock.seconds += ASKING
    assert outage.may_ask()


@pytest.mark.django_db
class TestDirectory:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def slow_failure(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Let every query fail after a while, as a pool without connections does; list who asked."""
        asked: list[str] = []

        def fail(candidates: tuple[str, ...]) -> None:
            asked.append(candidates[0])
            time.sleep(0.2)
            raise OperationalError("no connection")

        monkeypatch.setattr(key_cache, "_query", fail)
        return asked

    def test_it_makes_nobody_wait_behind_others(self, clock: Clock, slow_failure: list[str]) -> None:
        directory = KeyCache(clock)
        refused: list[float] = []

        def find() -> None:
            began = time.monotonic()
            with pytest.raises(DependencyUnavailable):
                directory.find("ak_dev_one")
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
        self, clock: Clock, cast: Cast, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.AUTH_STALE_SECONDS = 60
        directory = KeyCache(clock)
        known = directory.find(cast.owner.plain)
        asked, may_fail = threading.Event(), threading.Event()

        def hang(candidates: tuple[str, ...]) -> None:
            asked.set()
            may_fail.wait(20)
            raise OperationalError("silent")

        monkeypatch.setattr(key_cache, "_query", hang)
        clock.seconds += 1
        who_asks = threading.Thread(target=directory.find, args=(cast.owner.plain,))
        who_asks.start()
        assert asked.wait(20)
        for _ in range(3):
            assert directory.find(cast.owner.plain) == known
        assert who_asks.is_alive(), "he waits for the database still"
        may_fail.set()
        who_asks.join()

    def test_it_goes_on_with_known_keys_without_asking_each_time(
        self, clock: Clock, cast: Cast, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.AUTH_STALE_SECONDS = 60
        directory = KeyCache(clock)
        assert directory.find(cast.owner.plain)
        asked: list[int] = []

        def fail(candidates: tuple[str, ...]) -> None:
            asked.append(1)
            raise OperationalError("gone")

        with monkeypatch.context() as patched:
            patched.setattr(key_cache, "_query", fail)
            clock.seconds += 1
            assert all(directory.find(cast.owner.plain) for _ in range(10))
            assert len(asked) == 1
        clock.seconds += RETRY_AFTER
        assert directory.find(cast.stranger.plain), "it is back"
