"""A database that is away: one caller asks, the others are told at once, and all ask again when it is back."""

from __future__ import annotations

import threading
import time

import pytest
from django.db import OperationalError
from pytest_django import Settings

from accounts import snapshots
from accounts.exceptions import DependencyUnavailable
from accounts.outage import ASKING, RETRY_AFTER, Outage
from accounts.snapshots import KeyDirectory
from accounts.tests.factories import Cast


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

        def fail(candidates: list[str]) -> None:
            asked.append(candidates[0])
            time.sleep(0.2)
            raise OperationalError("no connection")

        monkeypatch.setattr(snapshots, "_query", fail)
        return asked

    def test_it_makes_nobody_wait_behind_others(self, clock: Clock, slow_failure: list[str]) -> None:
        directory = KeyDirectory(clock)
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

    def test_it_goes_on_with_known_keys_without_asking_each_time(
        self, clock: Clock, cast: Cast, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.AUTH_STALE_SECONDS = 60
        directory = KeyDirectory(clock)
        assert directory.find(cast.owner.plain)
        asked: list[int] = []

        def fail(candidates: list[str]) -> None:
            asked.append(1)
            raise OperationalError("gone")

        with monkeypatch.context() as patched:
            patched.setattr(snapshots, "_query", fail)
            clock.seconds += 1
            assert all(directory.find(cast.owner.plain) for _ in range(10))
            assert len(asked) == 1
        clock.seconds += RETRY_AFTER
        assert directory.find(cast.stranger.plain), "it is back"
