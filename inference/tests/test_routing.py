"""Which deployment is asked, in which order, and what follows a failure."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.errors import ApiError, UpstreamBusy, UpstreamFailed
from inference.call import Call
from inference.catalog import Route
from inference.prices import Rates
from inference.upstream.breaker import FAILURES_TO_OPEN, BreakerState, breakers
from inference.upstream.errors import (
    BROKEN,
    BUSY,
    FAILED,
    MISCONFIGURED,
    REJECTED,
    TIMED_OUT,
    UNCONNECTED,
    UNREACHED,
    AttemptFailed,
    Deadline,
    Verdict,
)
from inference.upstream.preference import by_weight
from inference.upstream.routing import ROUNDS, with_fallback


def route(number: int, *, order: int = 0, weight: int = 1, at: str = "") -> Route:
    """Make a deployment at an address of its own, or at another's."""
    return Route(
        number, f"p/{number}", "p", f"http://{at or f'p{number}'}/v1", "", (), "m", "max_tokens", order, weight, Rates()
    )


FIRST, SECOND, THIRD = (route(number, order=number) for number in (1, 2, 3))


class Provider:
    """Fails by the verdicts that it was given for a deployment, one a call, and answers after that."""

    def __init__(self, **verdicts: list[Verdict]) -> None:
        self._verdicts = {int(name.removeprefix("d")): list(given) for name, given in verdicts.items()}
        self.asked: list[int] = []

    def __call__(self, to: Route) -> int:
        """Answer with the deployment's number."""
        self.asked.append(to.deployment_id)
        waiting = self._verdicts.get(to.deployment_id)
        if waiting:
            raise AttemptFailed(waiting.pop(0))
        return to.deployment_id


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect how long routing waits, instead of waiting."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append, monotonic=time.monotonic)
    monkeypatch.setattr("inference.upstream.routing.time", clock)
    return waited


def a_call(*routes: Route, account: int = 1, covers: Callable[[], bool] = lambda: True) -> Call:
    """Make what routing takes of a call."""
    call: Any = SimpleNamespace(
        routes=routes, identity=SimpleNamespace(account_id=account), end_attempt=lambda: None, covers_another=covers
    )
    call.model, call.payload, call.session, call.is_stream = SimpleNamespace(routing="weighted"), {}, "", False
    call.note, call.provider_failed = str, lambda error: error
    return cast("Call", call)


def ask(
    provider: Provider,
    *routes: Route,
    seconds: float = 60,
    covers: Callable[[], bool] = lambda: True,
    account: int = 1,
) -> int:
    """Ask the deployments."""
    return with_fallback(a_call(*routes, account=account, covers=covers), provider, Deadline(seconds))


def open_breakers(*deployments: Route) -> None:
    """Let deployments fail until their breakers are open."""
    for each in deployments:
        for account in range(FAILURES_TO_OPEN):
            breakers.failed(each, account)


def test_it_asks_the_first_in_order(pauses: list[float]) -> None:
    provider = Provider()
    assert ask(provider, SECOND, THIRD, FIRST) == 1
    assert provider.asked == [1]
    assert pauses == []


@pytest.mark.parametrize("verdict", [UNREACHED, BROKEN, FAILED, BUSY, MISCONFIGURED])
def test_it_goes_to_the_next_at_once(pauses: list[float], verdict: Verdict) -> None:
    provider = Provider(d1=[verdict])
    assert ask(provider, FIRST, SECOND) == 2
    assert provider.asked == [1, 2]
    assert pauses == []


@pytest.mark.parametrize("verdict", [REJECTED, TIMED_OUT])
def test_it_goes_nowhere_after_a_no_or_when_the_time_is_up(pauses: list[float], verdict: Verdict) -> None:
    provider = Provider(d1=[verdict])
    with pytest.raises(ApiError):
        ask(provider, FIRST, SECOND)
    assert provider.asked == [1]


@pytest.mark.parametrize("verdict", [FAILED, BUSY])
def test_it_repeats_the_round_where_a_failure_may_pass(pauses: list[float], verdict: Verdict) -> None:
    provider = Provider(d1=[verdict] * 2, d2=[verdict] * 2)
    assert ask(provider, FIRST, SECOND) == 1
    assert provider.asked == [1, 2, 1, 2, 1]
    assert len(pauses) == 2


@pytest.mark.parametrize("verdict", [UNREACHED, BROKEN, MISCONFIGURED])
def test_it_asks_once_where_a_failure_stays(pauses: list[float], verdict: Verdict) -> None:
    provider = Provider(d1=[verdict] * 9, d2=[verdict] * 9)
    with pytest.raises(ApiError):
        ask(provider, FIRST, SECOND)
    assert provider.asked == [1, 2]


def test_it_gives_up_after_a_few_rounds(pauses: list[float]) -> None:
    provider = Provider(d1=[FAILED] * 99)
    with pytest.raises(ApiError):
        ask(provider, FIRST)
    assert len(provider.asked) == ROUNDS


def test_it_waits_at_random_up_to_twice_as_long_each_time(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        ranges.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", uniform)
    ask(Provider(d1=[FAILED] * 2), FIRST)
    assert ranges == [(0, 0.25), (0, 0.5)]
    assert pauses == [0.25, 0.5]


def test_it_waits_as_long_as_the_provider_asks(pauses: list[float]) -> None:
    asks = replace(BUSY, retry_after=3)
    assert ask(Provider(d1=[asks]), FIRST) == 1
    assert pauses == [pytest.approx(3, abs=0.1)]


@pytest.mark.parametrize(("retry_after", "seconds"), [(6, 60), (3, 2)])
def test_it_does_not_wait_longer_than_makes_sense(pauses: list[float], retry_after: float, seconds: float) -> None:
    asks = replace(BUSY, retry_after=retry_after)
    provider = Provider(d1=[asks])
    with pytest.raises(ApiError):
        ask(provider, FIRST, seconds=seconds)
    assert pauses == []
    assert provider.asked == [1]


def test_it_stops_when_the_deadline_is_over(pauses: list[float]) -> None:
    provider = Provider(d1=[FAILED])
    with pytest.raises(ApiError):
        ask(provider, FIRST, SECOND, seconds=0)
    assert provider.asked == [1]


def test_it_asks_the_caller_s_limits_before_it_goes_on_after_what_may_be_billed(pauses: list[float]) -> None:
    asked: list[bool] = []

    def refuse() -> bool:
        asked.append(True)
        return False

    provider = Provider(d1=[UNREACHED], d2=[BROKEN])
    with pytest.raises(ApiError):
        ask(provider, FIRST, SECOND, THIRD, covers=refuse)
    assert provider.asked == [1, 2]
    assert len(asked) == 1


def test_it_skips_a_deployment_whose_breaker_is_open(pauses: list[float]) -> None:
    open_breakers(FIRST)
    provider = Provider()
    assert ask(provider, FIRST, SECOND) == 2
    assert provider.asked == [2]


def test_it_says_when_to_come_back_while_every_breaker_is_open(pauses: list[float]) -> None:
    open_breakers(FIRST, SECOND)
    with pytest.raises(ApiError) as refused:
        ask(Provider(), FIRST, SECOND)
    assert isinstance(refused.value, UpstreamBusy)
    assert refused.value.headers["Retry-After"] == "5"


def test_it_fails_where_there_is_no_deployment(pauses: list[float]) -> None:
    with pytest.raises(ApiError) as refused:
        ask(Provider())
    assert isinstance(refused.value, UpstreamFailed)


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (UNREACHED, BreakerState.OPEN),
        (BROKEN, BreakerState.OPEN),
        (FAILED, BreakerState.OPEN),
        (TIMED_OUT, BreakerState.OPEN),
        (BUSY, BreakerState.CLOSED),
        (MISCONFIGURED, BreakerState.CLOSED),
        (REJECTED, BreakerState.CLOSED),
    ],
)
def test_it_opens_the_breaker_for_a_provider_that_fails_and_for_nothing_else(
    pauses: list[float], verdict: Verdict, state: BreakerState
) -> None:
    for account in range(FAILURES_TO_OPEN):
        with pytest.raises(ApiError):
            ask(Provider(d1=[verdict] * ROUNDS), FIRST, account=account)
    assert breakers.state(FIRST) is state


@pytest.mark.parametrize("verdict", [BROKEN, FAILED, TIMED_OUT])
def test_it_lets_no_account_close_a_deployment_to_others_by_what_it_asks(pauses: list[float], verdict: Verdict) -> None:
    for _ in range(3 * FAILURES_TO_OPEN):
        with pytest.raises(ApiError):
            ask(Provider(d1=[verdict] * ROUNDS), FIRST, account=7)
    assert breakers.state(FIRST) is BreakerState.CLOSED
    provider = Provider()
    with pytest.raises(ApiError):
        ask(provider, FIRST, account=7)
    assert provider.asked == []
    assert ask(Provider(), FIRST, account=8) == 1


def test_it_closes_the_breaker_after_an_answer(pauses: list[float]) -> None:
    for account in range(FAILURES_TO_OPEN - 1):
        breakers.failed(FIRST, account)
    ask(Provider(), FIRST)
    breakers.failed(FIRST, FAILURES_TO_OPEN)
    assert breakers.state(FIRST) is BreakerState.CLOSED


def test_it_passes_by_all_deployments_at_an_address_that_it_could_not_reach(pauses: list[float]) -> None:
    there = [route(number, order=number, at="dead") for number in (1, 2)]
    provider = Provider(d1=[UNREACHED], d2=[UNREACHED])
    assert ask(provider, *there, THIRD) == 3
    assert provider.asked == [1, 3]
    assert ask(provider, *there, THIRD, account=8) == 3
    assert provider.asked == [1, 3, 3]
    with pytest.raises(ApiError) as refused:
        ask(provider, *there)
    assert isinstance(refused.value, UpstreamBusy)


@pytest.mark.parametrize("verdict", [FAILED, BUSY, BROKEN, TIMED_OUT])
def test_it_passes_by_no_address_for_another_failure(pauses: list[float], verdict: Verdict) -> None:
    with pytest.raises(ApiError):
        ask(Provider(d1=[verdict] * ROUNDS), FIRST)
    assert breakers.state(FIRST) is not BreakerState.OPEN


@pytest.mark.parametrize(("seconds", "is_aside"), [(60, True), (0.1, False)])
def test_it_blames_no_address_for_a_call_whose_time_was_up(pauses: list[float], seconds: float, is_aside: bool) -> None:
    def time_out(to: Route) -> int:
        raise AttemptFailed(UNCONNECTED)

    with pytest.raises(ApiError):
        with_fallback(a_call(FIRST), time_out, Deadline(seconds))
    assert (breakers.state(FIRST) is BreakerState.OPEN) is is_aside


def test_it_takes_an_address_back_once_something_answers(pauses: list[float]) -> None:
    breakers.eject(FIRST)
    with_fallback(a_call(SECOND), lambda to: breakers.eject(SECOND), Deadline(5))
    assert breakers.state(FIRST) is BreakerState.OPEN
    assert breakers.state(SECOND) is not BreakerState.OPEN, "a call that was on its way was answered"


def test_it_tells_a_breaker_that_a_trial_came_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_up: list[tuple[Route, int]] = []
    monkeypatch.setattr(breakers, "gave_up", lambda *whose: gave_up.append(whose))

    def leave(to: Route) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_fallback(a_call(FIRST, account=7), leave, Deadline(1))
    assert gave_up == [(FIRST, 7)]


def test_it_shares_an_order_by_weight() -> None:
    chance = random.Random(7)
    heavy, light, last = route(1, weight=3), route(2), route(3, order=1, weight=100)
    found = [by_weight([last, light, heavy], lambda _: chance.random()) for _ in range(4000)]
    counted = Counter(routes[0].deployment_id for routes in found)
    assert counted[1] / 4000 == pytest.approx(0.75, abs=0.03)
    assert counted[2] / 4000 == pytest.approx(0.25, abs=0.03)
    assert {routes[-1].deployment_id for routes in found} == {3}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Leave no breaker open behind."""
    yield
    breakers.forget()
