"""The bound on open calls: never exceeded, fair to those who wait, and soon said no."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import LazySettings

from core.errors import UpstreamBusy
from inference.upstream.routing import Capacity, capacity
from tests.processes import wait_until


def test_it_gives_places_until_all_are_taken() -> None:
    places = Capacity(2)
    with places.place(0), places.place(0):
        assert places.taken == 2
        with pytest.raises(UpstreamBusy) as refused, places.place(0):
            pass
    assert refused.value.headers["Retry-After"] == "1"
    assert (places.taken, places.queued) == (0, 0)


def test_it_gives_a_place_back_when_its_call_fails() -> None:
    places = Capacity(1)
    with pytest.raises(ZeroDivisionError), places.place(0):
        raise ZeroDivisionError
    with places.place(0):
        assert places.taken == 1


def test_it_loses_no_place_to_a_call_that_is_broken_off_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(event: threading.Event, seconds: float) -> bool:
        raise KeyboardInterrupt

    places = Capacity(1)
    with places.place(0):
        monkeypatch.setattr(threading.Event, "wait", break_off)
        with pytest.raises(KeyboardInterrupt), places.place(1):
            pass
    assert (places.taken, places.queued) == (0, 0)


def test_it_says_no_within_the_time_that_it_was_given() -> None:
    places = Capacity(1)
    with places.place(0):
        began = time.monotonic()
        with pytest.raises(UpstreamBusy), places.place(0.05):
            pass
        assert 0.04 < time.monotonic() - began < 1
    assert places.queued == 0


def test_it_gives_free_places_in_the_order_in_which_they_were_asked_for() -> None:
    places = Capacity(1)
    served: list[int] = []

    def work(number: int) -> None:
        with places.place(10):
            served.append(number)

    with places.place(0):
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=work, args=[number]))
            threads[-1].start()
            wait_until(lambda queued=number + 1: places.queued == queued, "a call to wait")  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, 3, 4]
    assert (places.taken, places.queued) == (0, 0)


def test_it_never_has_more_open_than_places() -> None:
    places, lock = Capacity(3), threading.Lock()
    state = {"open": 0, "most": 0, "served": 0, "refused": 0}

    def work(number: int) -> None:
        try:
            with places.place(0.02 if number % 3 else 0):
                with lock:
                    state["open"] += 1
                    state["most"] = max(state["most"], state["open"])
                time.sleep(0.001)
                with lock:
                    state["open"] -= 1
                    state["served"] += 1
        except UpstreamBusy:
            with lock:
                state["refused"] += 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(300)))
    assert state["most"] == 3
    assert state["served"] + state["refused"] == 300
    assert (places.taken, places.queued) == (0, 0)


def test_it_is_as_large_as_the_setting_says(settings: LazySettings) -> None:
    settings.UPSTREAM_CONCURRENCY = 7
    assert capacity().places == 7
    assert capacity() is capacity()
