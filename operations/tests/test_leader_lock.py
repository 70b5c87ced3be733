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


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Health]:
    """Return what the health checks say, for tests to change."""
    said = {"cache": Health.OK}
    monkeypatch.setattr(conditions, "check_each", lambda: {name: Finding(health) for name, health in said.items()})
    return said


def firing() -> list[str]:
    """List the subjects of incidents that are firing."""
    return sorted(Alert.objects.filter(ended_at=None).values_list("subject", flat=True))


def fail() -> Iterator[Condition]:
    """Be a source of conditions that can't see."""
    raise TimeoutError


def test_it_goes_to_one_until_it_is_given_back_or_expires_by_the_databases_clock() -> None:
    one, other = LeaderLock(), LeaderLock()
    assert (one.take(), other.take(), one.take()) == (True, False, True)
    assert (one.is_mine(), other.is_mine()) == (True, False)
    other.give_back()
    assert not other.take()
    one.give_back()
    assert other.take()
    assert not one.take()
    assert LeaderLease.objects.filter(expires_at__gt=Now() + timedelta(seconds=60)).exists()
    assert not LeaderLease.objects.filter(expires_at__gt=Now() + timedelta(seconds=120)).exists()
    expire()
    assert other.is_mine()  # until somebody takes it
    assert one.take()
    assert not other.is_mine()


class TestRound:
    def test_it_leaves_the_incidents_of_the_leader_alone_until_it_has_looked_often_enough(
        self, seen: dict[str, Health]
    ) -> None:
        one, other = Round(), Round()
        seen["cache"] = Health.AWAY
        for _ in range(BAD_ROUNDS):
            one.run()
        assert firing() == ["health:cache"]
        seen["cache"] = Health.OK
        for _ in range(2 * GOOD_ROUNDS):
            other.run()
        assert firing() == ["health:cache"]
        expire()
        for _ in range(GOOD_ROUNDS - 1):
            other.run()
        assert firing() == ["health:cache"]
        other.run()
        assert firing() == []

    def test_it_changes_nothing_once_another_has_the_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow, other = Round(), Round()

        def take_over() -> Iterator[Condition]:
            expire()
            assert other.lock.take()
            yield Condition(Alert.Kind.ERRORS, "errors", "title", "text")

        monkeypatch.setattr(module, "error_rate", take_over)
        assert slow.run() == (0, 0)
        assert firing() == []

    def test_it_begins_what_it_sees_and_ends_nothing_when_it_can_not_see_all_and_lets_another_try(
        self, seen: dict[str, Health], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other, sent = Round(HealthWatch(bad_rounds=1, good_rounds=1)), Round(), iter([1])
        seen["cache"] = Health.AWAY
        one.run()
        full = Condition(Alert.Kind.BUDGET, "budget", "full", "text")
        monkeypatch.setattr(module, "budgets_used", lambda: iter([full]))
        monkeypatch.setattr(module, "deliveries_send", lambda: next(sent))
        monkeypatch.setattr(module, "error_rate", fail)
        seen["cache"] = Health.OK
        with pytest.raises(TimeoutError):
            one.run()
        assert firing() == ["budget", "health:cache"]
        assert next(sent, None) is None, "what was queued before is sent"
        assert other.lock.take()

    def test_it_logs_when_its_part_changes(self) -> None:
        one, other = Round(), Round()
        with capture_logs() as logs:
            for _ in range(2):
                one.run()
                other.run()
            one.lock.give_back()
            other.run()
        assert [entry["event"] for entry in logs] == ["worker_leads", "worker_stands_by", "worker_leads"]


def test_its_command_says_that_another_leads(seen: dict[str, Health]) -> None:
    def once() -> str:
        output = StringIO()
        call_command("worker", "--once", "watch", stdout=output)
        return output.getvalue()

    ruling = Round()
    ruling.run()
    seen["cache"] = Health.AWAY
    assert once() == "Another worker leads. 0 alerts began, 0 deliveries arrived.\n"
    ruling.lock.give_back()
    for began in (1, 0):
        assert once() == f"{began} alerts began, 0 deliveries arrived.\n"
    seen["cache"] = Health.OK
    once()
    assert firing() == []
