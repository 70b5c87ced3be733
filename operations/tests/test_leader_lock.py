"""Of several workers, one at a time begins and ends incidents."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db.models.functions import Now
from structlog.testing import capture_logs

from monitoring.models import Alert, LeaderLease
from operations import worker as module
from operations.alerts import conditions
from operations.alerts.conditions import BAD_ROUNDS, GOOD_ROUNDS, Condition, HealthWatch
from operations.alerts.incidents import LeaderLock
from operations.health import Finding, Health
from operations.worker import Round

pytestmark = pytest.mark.django_db


def expire() -> None:
    """Let the lease expire."""
    LeaderLease.objects.update(expires_at=Now() - timedelta(seconds=1))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Health]:
    """Return what the health checks say, for tests to change."""
    said = {"cache": Health.OK}
    monkeypatch.setattr(conditions, "check_each", lambda: {name: Finding(health) for name, health in said.items()})
    return said


def going_on() -> list[str]:
    """List the subjects of incidents that go on."""
    return sorted(Alert.objects.filter(ended_at=None).values_list("subject", flat=True))


class TestTurn:
    def test_it_goes_to_one(self) -> None:
        one, other = LeaderLock(), LeaderLock()
        assert one.take()
        assert not other.take()
        assert one.take()
        assert (one.is_mine(), other.is_mine()) == (True, False)

    def test_it_goes_to_another_when_it_is_given_back(self) -> None:
        one, other = LeaderLock(), LeaderLock()
        one.take()
        other.give_back()
        assert not other.take()
        one.give_back()
        assert other.take()
        assert not one.take()

    def test_it_goes_to_another_when_its_time_is_over(self) -> None:
        one, other = LeaderLock(), LeaderLock()
        one.take()
        expire()
        assert one.is_mine()  # until somebody takes it
        assert other.take()
        assert not one.is_mine()

    def test_it_lasts_by_the_databases_clock(self) -> None:
        LeaderLock().take()
        assert LeaderLease.objects.filter(expires_at__gt=Now() + timedelta(seconds=60)).exists()
        assert not LeaderLease.objects.filter(expires_at__gt=Now() + timedelta(seconds=120)).exists()


class TestRound:
    def test_it_leaves_the_incidents_of_the_leader_alone(self, seen: dict[str, Health]) -> None:
        one, other = Round(), Round()
        seen["cache"] = Health.AWAY
        for _ in range(BAD_ROUNDS):
            one.run()
        assert going_on() == ["health:cache"]
        seen["cache"] = Health.OK
        for _ in range(2 * GOOD_ROUNDS):
            other.run()
        assert going_on() == ["health:cache"]

    def test_it_ends_nothing_by_a_single_look_when_it_takes_over(self, seen: dict[str, Health]) -> None:
        one, other = Round(), Round()
        seen["cache"] = Health.AWAY
        for _ in range(BAD_ROUNDS):
            one.run()
        seen["cache"] = Health.OK
        other.run()
        expire()
        for _ in range(GOOD_ROUNDS - 1):
            other.run()
        assert going_on() == ["health:cache"]
        other.run()
        assert going_on() == []

    def test_it_changes_nothing_once_another_has_the_turn(
        self, seen: dict[str, Health], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow, other = Round(), Round()

        def take_over() -> Iterator[Condition]:
            expire()
            assert other.lock.take()
            yield Condition(Alert.Kind.ERRORS, "errors", "title", "text")

        monkeypatch.setattr(module, "error_rate", take_over)
        assert slow.run() == (0, 0)
        assert going_on() == []

    def test_it_lets_another_try_what_it_can_not_see(
        self, seen: dict[str, Health], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> Iterator[Condition]:
            raise TimeoutError

        one, other = Round(), Round()
        monkeypatch.setattr(module, "error_rate", fail)
        with pytest.raises(TimeoutError):
            one.run()
        assert other.lock.take()

    def test_it_tells_of_what_it_sees_and_ends_nothing_when_it_can_not_see_all(
        self, seen: dict[str, Health], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = Round(HealthWatch(bad_rounds=1, good_rounds=1))
        seen["cache"] = Health.AWAY
        one.run()
        monkeypatch.setattr(
            module, "budgets_used", lambda: iter([Condition(Alert.Kind.BUDGET, "budget", "full", "text")])
        )

        def fail() -> Iterator[Condition]:
            raise TimeoutError

        sent = iter([1])
        monkeypatch.setattr(module, "deliveries_send", lambda: next(sent))
        monkeypatch.setattr(module, "error_rate", fail)
        seen["cache"] = Health.OK
        with pytest.raises(TimeoutError):
            one.run()
        assert going_on() == ["budget", "health:cache"]
        assert next(sent, None) is None, "what was queued before is sent"

    def test_it_logs_when_its_part_changes(self, seen: dict[str, Health]) -> None:
        one, other = Round(), Round()
        with capture_logs() as logs:
            for _ in range(2):
                one.run()
                other.run()
            one.lock.give_back()
            other.run()
        assert [entry["event"] for entry in logs] == ["worker_leads", "worker_stands_by", "worker_leads"]


def test_its_command_says_that_another_leads(seen: dict[str, Health]) -> None:
    ruling = Round()
    ruling.run()
    seen["cache"] = Health.AWAY
    output = StringIO()
    call_command("worker", "--once", "watch", stdout=output)
    assert output.getvalue() == "Another worker leads. 0 alerts began, 0 deliveries arrived.\n"
    ruling.lock.give_back()
    for told in ("1 alerts began, 0 deliveries arrived.\n", "0 alerts began, 0 deliveries arrived.\n"):
        output = StringIO()
        call_command("worker", "--once", "watch", stdout=output)
        assert output.getvalue() == told
    seen["cache"] = Health.OK
    call_command("worker", "--once", "watch", stdout=StringIO())
    assert going_on() == []
