"""An outage: one caller tries, the others fail at once, and all try again when the dependency is back."""

from __future__ import annotations

from core.outage import LONGEST_ATTEMPT, RETRY_AFTER, Outage


class Clock:
    """A monotonic clock that a test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_it_lets_everybody_try_while_nothing_failed() -> None:
    outage = Outage(Clock())
    assert all(outage.may_try() for _ in range(3))
    outage.succeeded()
    assert outage.may_try()


def test_it_lets_one_try_a_second_after_a_failure() -> None:
    clock = Clock()
    outage = Outage(clock)
    outage.failed()
    assert not outage.may_try()
    clock.seconds += RETRY_AFTER
    assert [outage.may_try() for _ in range(3)] == [True, False, False]
    outage.failed()
    clock.seconds += RETRY_AFTER
    assert outage.may_try()
    outage.succeeded()
    assert all(outage.may_try() for _ in range(3))


def test_it_does_not_wait_for_ever_for_an_attempt_without_a_result() -> None:
    clock = Clock()
    outage = Outage(clock)
    outage.failed()
    clock.seconds += RETRY_AFTER
    assert outage.may_try()
    clock.seconds += LONGEST_ATTEMPT
    assert outage.may_try()
