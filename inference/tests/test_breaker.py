"""The breakers: when one opens, whom it lets pass, how it closes again."""

from __future__ import annotations

import pytest

from inference.upstream.breaker import COOL_DOWN, FAILURES, LONGEST_COOL_DOWN, Breakers, BreakerState

DEPLOYMENT, OTHER = 1, 2


class Clock:
    """A clock in seconds that only the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """Return a clock that only the test moves."""
    return Clock()


@pytest.fixture
def breakers(clock: Clock) -> Breakers:
    """Return breakers of a process that has called nobody yet."""
    return Breakers(clock)


def fail(breakers: Breakers, times: int) -> None:
    """Let calls to the deployment fail."""
    for _ in range(times):
        breakers.failed(DEPLOYMENT)


def test_it_lets_everything_pass_at_first(breakers: Breakers) -> None:
    assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED
    assert all(breakers.admits(DEPLOYMENT) for _ in range(100))


def test_it_opens_after_failures_in_a_row(breakers: Breakers) -> None:
    fail(breakers, FAILURES - 1)
    assert breakers.admits(DEPLOYMENT)
    fail(breakers, 1)
    assert breakers.state(DEPLOYMENT) is BreakerState.OPEN
    assert not breakers.admits(DEPLOYMENT)


def test_it_begins_to_count_anew_after_a_success(breakers: Breakers) -> None:
    fail(breakers, FAILURES - 1)
    breakers.succeeded(DEPLOYMENT)
    fail(breakers, FAILURES - 1)
    assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED


def test_it_keeps_a_breaker_for_each_deployment(breakers: Breakers) -> None:
    fail(breakers, FAILURES)
    assert breakers.admits(OTHER)


def test_it_lets_one_trial_pass_once_it_has_cooled_down(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES)
    clock.advance(COOL_DOWN - 0.001)
    assert not breakers.admits(DEPLOYMENT)
    clock.advance(0.001)
    assert breakers.state(DEPLOYMENT) is BreakerState.HALF_OPEN
    assert [breakers.admits(DEPLOYMENT) for _ in range(5)] == [True, False, False, False, False]


def test_it_closes_after_a_trial_that_went_well(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES)
    clock.advance(COOL_DOWN)
    assert breakers.admits(DEPLOYMENT)
    breakers.succeeded(DEPLOYMENT)
    assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED
    assert all(breakers.admits(DEPLOYMENT) for _ in range(5))


def test_it_stays_open_twice_as_long_after_each_trial_that_failed_up_to_a_longest(
    breakers: Breakers, clock: Clock
) -> None:
    fail(breakers, FAILURES)
    for seconds in (5, 10, 20, 40, 60, 60):
        assert not breakers.admits(DEPLOYMENT)
        clock.advance(seconds)
        assert breakers.admits(DEPLOYMENT), seconds
        breakers.failed(DEPLOYMENT)
    assert LONGEST_COOL_DOWN == 60


def test_it_takes_late_failures_of_calls_that_began_before_for_no_new_reason(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES)
    clock.advance(1)
    fail(breakers, 20)
    clock.advance(COOL_DOWN - 1)
    assert breakers.state(DEPLOYMENT) is BreakerState.HALF_OPEN


def test_it_lets_another_try_after_a_trial_that_told_nothing(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES)
    clock.advance(COOL_DOWN)
    assert breakers.admits(DEPLOYMENT)
    breakers.gave_up(DEPLOYMENT)
    assert breakers.admits(DEPLOYMENT)


def test_it_knows_nothing_of_a_deployment_whose_caller_left(breakers: Breakers) -> None:
    breakers.gave_up(OTHER)
    assert breakers.state(OTHER) is BreakerState.CLOSED
