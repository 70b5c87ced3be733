"""The breakers: when one opens, whom it lets pass, how it closes again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

import pytest

from inference.catalog import Route
from inference.prices import Rates
from inference.upstream.breaker import COOL_DOWN, FAILURES_TO_OPEN, LONGEST_PAUSE, STILL_FAILING, Breakers, BreakerState

DEPLOYMENT, OTHER = (
    Route(number, f"p/{number}", "p", f"http://p{number}/v1", "", (), "m", "max_tokens", 0, 1, Rates())
    for number in (1, 2)
)
ACCOUNT, STRANGER, THIRD = 7, 8, 9
#: Accounts that nobody has met before.
strangers = count(100)


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


class Provider:
    """Says what is wrong with its list of models, and counts how often it was asked for."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.listed = 0

    def __call__(self, route: Route) -> str | None:
        """List the models."""
        self.listed += 1
        return self.trouble


@pytest.fixture
def provider() -> Provider:
    """Return a provider whose list of models comes."""
    return Provider()


@pytest.fixture
def breakers(clock: Clock, provider: Provider) -> Iterator[Breakers]:
    """Return breakers of a process that has called nobody yet."""
    breakers = Breakers(clock, lambda *_, **__: None, listing=provider, served=lambda: [DEPLOYMENT, OTHER])
    yield breakers
    breakers.forget()


def probe(breakers: Breakers) -> None:
    """Probe the deployment as its thread does after a pause."""
    circuit = breakers._shared[DEPLOYMENT.deployment_id]
    if breakers._is_well(circuit):
        breakers._close(DEPLOYMENT.deployment_id)


def fail(breakers: Breakers, times: int) -> None:
    """Let calls to the deployment fail, each of another account."""
    for _ in range(times):
        breakers.failed(DEPLOYMENT, next(strangers))


def fail_trials(breakers: Breakers) -> None:
    """Let the trials of two accounts fail, one after the other."""
    for _ in range(2):
        account = next(strangers)
        assert breakers.admits(DEPLOYMENT, account)
        breakers.failed(DEPLOYMENT, account)


def test_it_lets_everything_pass_at_first(breakers: Breakers) -> None:
    assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED
    assert all(breakers.admits(DEPLOYMENT, ACCOUNT) for _ in range(100))


def test_it_opens_after_failures_in_a_row(breakers: Breakers) -> None:
    fail(breakers, FAILURES_TO_OPEN - 1)
    assert breakers.admits(DEPLOYMENT, ACCOUNT)
    fail(breakers, 1)
    assert breakers.state(DEPLOYMENT) is BreakerState.OPEN
    assert not breakers.admits(DEPLOYMENT, ACCOUNT)


def test_it_begins_to_count_anew_after_a_success(breakers: Breakers) -> None:
    fail(breakers, FAILURES_TO_OPEN - 1)
    breakers.answered(DEPLOYMENT, ACCOUNT)
    fail(breakers, FAILURES_TO_OPEN - 1)
    assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED


def test_it_keeps_a_breaker_for_each_deployment(breakers: Breakers) -> None:
    fail(breakers, FAILURES_TO_OPEN)
    assert breakers.admits(OTHER, ACCOUNT)


def test_it_lets_one_trial_pass_once_it_has_cooled_down(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES_TO_OPEN)
    clock.advance(COOL_DOWN - 0.001)
    assert not breakers.admits(DEPLOYMENT, ACCOUNT)
    clock.advance(0.001)
    assert breakers.state(DEPLOYMENT) is BreakerState.HALF_OPEN
    assert [breakers.admits(DEPLOYMENT, ACCOUNT) for _ in range(5)] == [True, False, False, False, False]


def test_it_closes_after_a_trial_that_went_well(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES_TO_OPEN)
    clock.advance(COOL_DOWN)
    assert breakers.admits(DEPLOYMENT, ACCOUNT)
    breakers.answered(DEPLOYMENT, ACCOUNT)
    assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED
    assert all(breakers.admits(DEPLOYMENT, ACCOUNT) for _ in range(5))


def test_it_stays_open_twice_as_long_after_each_trial_that_failed_up_to_a_longest(
    breakers: Breakers, clock: Clock
) -> None:
    fail(breakers, FAILURES_TO_OPEN)
    for seconds in (5, 10, 20, 40, 60, 60):
        assert not breakers.admits(DEPLOYMENT, ACCOUNT)
        clock.advance(seconds)
        fail_trials(breakers)
    assert LONGEST_PAUSE == 60


def test_it_takes_late_failures_of_calls_that_began_before_for_no_new_reason(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES_TO_OPEN)
    clock.advance(1)
    fail(breakers, 20)
    clock.advance(COOL_DOWN - 1)
    assert breakers.state(DEPLOYMENT) is BreakerState.HALF_OPEN


def test_it_lets_another_try_after_a_trial_that_told_nothing(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, FAILURES_TO_OPEN)
    clock.advance(COOL_DOWN)
    assert breakers.admits(DEPLOYMENT, ACCOUNT)
    breakers.gave_up(DEPLOYMENT, ACCOUNT)
    assert breakers.admits(DEPLOYMENT, ACCOUNT)


def test_it_knows_nothing_of_a_deployment_whose_caller_left(breakers: Breakers) -> None:
    breakers.gave_up(OTHER, ACCOUNT)
    assert breakers.state(OTHER) is BreakerState.CLOSED


class TestAccounts:
    """What a request may be the cause of: 5xx, broken answers, timeouts."""

    def answer_badly(self, breakers: Breakers, *accounts: int) -> None:
        """Let calls of accounts fail in a way that they may be the cause of."""
        for account in accounts:
            breakers.failed(DEPLOYMENT, account)

    def test_it_closes_to_the_one_account_whose_calls_fail(self, breakers: Breakers) -> None:
        self.answer_badly(breakers, *[ACCOUNT] * FAILURES_TO_OPEN)
        assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED
        assert not breakers.admits(DEPLOYMENT, ACCOUNT)
        assert breakers.admits(DEPLOYMENT, STRANGER)
        assert breakers.admits(OTHER, ACCOUNT)

    def test_it_counts_only_some_of_one_account_for_all(self, breakers: Breakers) -> None:
        self.answer_badly(breakers, *[ACCOUNT] * 4 * FAILURES_TO_OPEN, STRANGER)
        assert breakers.admits(DEPLOYMENT, THIRD)
        self.answer_badly(breakers, STRANGER)
        assert breakers.state(DEPLOYMENT) is BreakerState.OPEN
        assert not breakers.admits(DEPLOYMENT, THIRD)

    def test_it_lets_one_call_of_the_account_try_again(self, breakers: Breakers, clock: Clock) -> None:
        self.answer_badly(breakers, *[ACCOUNT] * FAILURES_TO_OPEN)
        clock.advance(COOL_DOWN)
        assert [breakers.admits(DEPLOYMENT, ACCOUNT) for _ in range(2)] == [True, False]
        self.answer_badly(breakers, ACCOUNT)
        clock.advance(COOL_DOWN)
        assert not breakers.admits(DEPLOYMENT, ACCOUNT), "twice as long"
        clock.advance(COOL_DOWN)
        assert breakers.admits(DEPLOYMENT, ACCOUNT)
        breakers.answered(DEPLOYMENT, ACCOUNT)
        assert all(breakers.admits(DEPLOYMENT, ACCOUNT) for _ in range(5))

    def test_it_leaves_the_next_trial_to_another_account(self, breakers: Breakers, clock: Clock) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        clock.advance(COOL_DOWN)
        assert breakers.admits(DEPLOYMENT, ACCOUNT)
        self.answer_badly(breakers, ACCOUNT)
        assert not breakers.admits(DEPLOYMENT, ACCOUNT)
        assert breakers.admits(DEPLOYMENT, STRANGER)
        breakers.answered(DEPLOYMENT, STRANGER)
        assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED

    def test_it_opens_again_when_the_trials_of_two_accounts_have_failed(self, breakers: Breakers, clock: Clock) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        clock.advance(COOL_DOWN)
        for account in (ACCOUNT, STRANGER):
            assert breakers.admits(DEPLOYMENT, account)
            self.answer_badly(breakers, account)
        assert not breakers.admits(DEPLOYMENT, THIRD)
        clock.advance(2 * COOL_DOWN)
        assert breakers.admits(DEPLOYMENT, THIRD)


class TestProbes:
    """What is asked for its list of models while nobody calls it."""

    def test_it_probes_what_waits_for_a_call_that_does_not_come(
        self, breakers: Breakers, clock: Clock, provider: Provider
    ) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        probe(breakers)
        assert provider.listed == 0, "it has to cool down first"
        clock.advance(COOL_DOWN)
        assert breakers.admits(DEPLOYMENT, ACCOUNT)
        breakers.gave_up(DEPLOYMENT, ACCOUNT)
        probe(breakers)
        assert provider.listed == 0, "a call has come"
        probe(breakers)
        assert provider.listed == 1

    def test_it_probes_less_and_less_often(
        self, breakers: Breakers, clock: Clock, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        provider.trouble, pauses = "http 503", []
        circuit = breakers._shared[DEPLOYMENT.deployment_id]

        def wait(seconds: float) -> bool:
            pauses.append(seconds)
            clock.advance(seconds)
            return len(pauses) == 7

        monkeypatch.setattr(circuit.over, "wait", wait)
        breakers._watch(DEPLOYMENT.deployment_id, circuit)
        assert pauses == [5, 10, 20, 40, 60, 60, 60]
        assert provider.listed == 6
        assert breakers.snapshot()[1].cause == "http 503"
        assert breakers.admits(DEPLOYMENT, ACCOUNT), "a probe never keeps a call away"

    def test_it_closes_by_a_list_that_did_not_come_before(
        self, breakers: Breakers, clock: Clock, provider: Provider
    ) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        clock.advance(COOL_DOWN)
        provider.trouble = "http 503"
        probe(breakers)
        assert breakers.state(DEPLOYMENT) is BreakerState.HALF_OPEN
        provider.trouble = None
        probe(breakers)
        assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED

    def test_it_takes_a_list_that_always_came_for_no_proof_until_nothing_has_failed_for_long(
        self, breakers: Breakers, clock: Clock
    ) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        clock.advance(COOL_DOWN)
        probe(breakers)
        assert breakers.state(DEPLOYMENT) is BreakerState.HALF_OPEN
        clock.advance(STILL_FAILING.total_seconds())
        probe(breakers)
        assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED

    def test_it_closes_what_is_not_served_any_more(self, breakers: Breakers, monkeypatch: pytest.MonkeyPatch) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        monkeypatch.setattr(breakers, "_served", lambda: [OTHER])
        probe(breakers)
        assert breakers.state(DEPLOYMENT) is BreakerState.CLOSED


class TestSnapshot:
    def test_it_tells_how_things_stand(self, breakers: Breakers, clock: Clock) -> None:
        assert breakers.snapshot() == {}
        fail(breakers, FAILURES_TO_OPEN)
        for _ in range(FAILURES_TO_OPEN):
            breakers.failed(OTHER, ACCOUNT)
        clock.advance(2)
        found = breakers.snapshot()
        assert (found[1].state, found[1].accounts) == (BreakerState.OPEN, 0)
        assert (found[2].state, found[2].since, found[2].accounts) == (BreakerState.CLOSED, None, 1)
        since = found[1].since
        assert since is not None
        assert 2 <= (datetime.now(UTC) - since).total_seconds() < 60

    def test_it_tells_since_when_through_trials_that_failed(self, breakers: Breakers, clock: Clock) -> None:
        fail(breakers, FAILURES_TO_OPEN)
        clock.advance(COOL_DOWN)
        assert breakers.snapshot()[1].state is BreakerState.HALF_OPEN
        fail_trials(breakers)
        clock.advance(1)
        since = breakers.snapshot()[1].since
        assert since is not None
        assert (datetime.now(UTC) - since).total_seconds() >= COOL_DOWN + 1
        breakers.answered(DEPLOYMENT, ACCOUNT)
        found = breakers.snapshot()[1]
        assert (found.state, found.since) == (BreakerState.CLOSED, None)


class TestLeftAlone:
    """A deployment that would refuse every call, as one whose credit is used up."""

    def test_it_lets_nobody_pass_for_so_long_and_then_one(self, breakers: Breakers, clock: Clock) -> None:
        breakers.pause(DEPLOYMENT, 300, "empty")
        assert breakers.seconds_left(DEPLOYMENT, ACCOUNT) == 300
        clock.advance(299)
        assert not breakers.admits(DEPLOYMENT, ACCOUNT)
        clock.advance(1)
        assert [breakers.admits(DEPLOYMENT, account) for account in (ACCOUNT, STRANGER)] == [True, False]
        breakers.pause(DEPLOYMENT, 300, "empty")
        assert breakers.seconds_left(DEPLOYMENT, ACCOUNT) == 300

    def test_it_is_closed_by_a_call_and_not_by_a_list_of_models(
        self, breakers: Breakers, clock: Clock, provider: Provider
    ) -> None:
        breakers.pause(DEPLOYMENT, 300, "empty")
        clock.advance(300 + STILL_FAILING.total_seconds())
        for provider.trouble in ("http 503", None):
            probe(breakers)
        assert breakers.state(DEPLOYMENT) is BreakerState.HALF_OPEN
        assert breakers.snapshot()[1].cause == "empty"
        breakers.answered(DEPLOYMENT, ACCOUNT)
        assert breakers.seconds_left(DEPLOYMENT, ACCOUNT) is None
