"""Values kept for a short time: loaded once for all, bounded in number and in who waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import OperationalError

from core.database import query_promptly
from core.errors import DependencyUnavailable
from core.outage import Outage
from core.ttl_cache import TtlCache


class Clock:
    """A monotonic clock that a test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def together(call: Callable[[int], None], threads: int) -> None:
    """Call a function with the numbers from 0 in threads of their own, and wait for all."""
    callers = [threading.Thread(target=call, args=(number,)) for number in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)


def test_it_loads_once_for_all_who_ask_together_and_again_after_its_time() -> None:
    clock, loads, may_answer, answers = Clock(), [], threading.Event(), []

    def load(key: str) -> int:
        loads.append(key)
        may_answer.wait(5)
        clock.seconds += 3
        return len(loads)

    cache = TtlCache(load, from_end=True, clock=clock)
    threading.Timer(0.1, may_answer.set).start()
    together(lambda _: answers.append(cache.get("a")), 10)
    assert answers == [1] * 10
    clock.seconds += 0.99
    assert cache.get("a") == 1
    clock.seconds += 0.01
    assert cache.get("a") == 2
    cache.clear()
    assert cache.get("a") == 3


def test_it_counts_the_age_of_a_value_from_before_its_load() -> None:
    clock, loads = Clock(), []

    def load(key: str) -> int:
        loads.append(key)
        clock.seconds += 0.5
        return len(loads)

    cache = TtlCache(load, clock=clock)
    assert cache.get("a") == 1
    clock.seconds += 0.49
    assert cache.get("a") == 1
    clock.seconds += 0.01
    assert cache.get("a") == 2


def test_it_keeps_a_bounded_number_of_values() -> None:
    cache: TtlCache[int, int] = TtlCache(lambda key: key, size=3)
    for number in range(10):
        assert cache.get(number) == number
    assert len(cache) == 3


def test_it_lets_only_some_wait_when_the_database_falls_silent() -> None:
    loads, refused, all_load = [], [], threading.Barrier(4, timeout=20)

    def fail(key: int) -> None:
        loads.append(key)
        all_load.wait()
        raise OperationalError("silent")

    outage = Outage(Clock())
    cache: TtlCache[int, None] = TtlCache(
        lambda key: query_promptly(lambda: fail(key), outage, failed="failed"), outage=outage
    )

    def get(number: int) -> None:
        with pytest.raises(DependencyUnavailable):
            cache.get(number)
        refused.append(number)

    together(get, 20)
    assert (len(loads), len(refused)) == (4, 20)


def test_it_passes_other_errors_on_and_keeps_nothing() -> None:
    cache = TtlCache({"a": 1}.__getitem__)
    with pytest.raises(KeyError):
        cache.get("b")
    assert len(cache) == 0
