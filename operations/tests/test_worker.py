"""The worker's parts go on beside each other, and outlive what goes wrong in one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connections
from pytest_django import Settings
from structlog.testing import capture_logs

from accounts.limits.backend import LimitBackend
from accounts.tests.factories import Cast
from monitoring.ingester import Ingester
from monitoring.models import Alert, Rollup
from monitoring.tests.test_pruning import records
from operations import worker as module
from operations.worker import Round, Worker, next_night
from tests.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def going(part: Callable[[], None], worker: Worker) -> Iterator[None]:
    """Run a part in a thread, as the worker does."""

    def run() -> None:
        part()
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        worker.stopping.set()
        thread.join()


def test_it_goes_on_watching_while_it_prunes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.WATCH_SECONDS = 0.01
    rounds: list[int] = []
    meanwhile: list[int] = []  # rounds while it pruned

    class Counting(Round):
        def run(self) -> tuple[int, int]:
            rounds.append(1)
            return super().run()

    def prune(*, wait: Callable[[float], bool]) -> int:
        before = len(rounds)
        while len(rounds) < before + 3 and not wait(0.01):
            pass
        meanwhile.append(len(rounds) - before)
        return 0

    monkeypatch.setattr(module, "PRUNE_SECONDS", 0.0)
    monkeypatch.setattr(module, "TICK", 0.01)
    monkeypatch.setattr(module, "prune_by_settings", prune)
    worker = Worker(threading.Event())
    worker.round = Counting()
    with going(worker.watch, worker), going(worker.tend, worker):
        wait_until(lambda: bool(meanwhile), "three rounds while it prunes")
    assert meanwhile[0] >= 3


def test_it_watches_again_after_a_round_that_failed(settings: Settings) -> None:
    settings.WATCH_SECONDS = 0.01
    rounds: list[int] = []

    class Failing(Round):
        def run(self) -> tuple[int, int]:
            rounds.append(1)
            raise TimeoutError

    worker = Worker(threading.Event())
    worker.round = Failing()
    with capture_logs() as logs, going(worker.watch, worker):
        wait_until(lambda: len(rounds) > 1, "another round")
    assert {(entry["event"], entry["cause"]) for entry in logs} == {("watch_failed", "TimeoutError")}


def test_it_checks_at_night() -> None:
    at_night = datetime(2026, 11, 30, 3, 17, tzinfo=UTC)
    assert next_night(at_night - timedelta(hours=2)) == at_night
    assert next_night(at_night) == at_night + timedelta(days=1)


def once(*parts: str) -> list[str]:
    """Do one round and return what was said."""
    output = StringIO()
    call_command("worker", "--once", *parts, stdout=output)
    return output.getvalue().splitlines()


def test_it_alerts_of_books_that_disagree_until_a_check_finds_them_right(
    cast: Cast, redis_limits: LimitBackend
) -> None:
    records(cast, 1, days_ago=0)
    Rollup.objects.all().delete()
    assert " rows of the rollups and 0 ledgers disagree" in once("check")[0]
    once("check", "watch")
    alert = Alert.objects.get(subject="books")
    assert "check_rollups --days 2" in alert.text
    once("watch")  # without a check of its own it knows nothing
    alert.refresh_from_db()
    assert alert.ended_at is None
    call_command("rebuild_rollups", stdout=StringIO())
    assert once("check", "watch")[0] == "The rollups and the ledgers agree with the log."
    alert.refresh_from_db()
    assert alert.ended_at is not None


def test_it_does_each_part_whatever_became_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> int:
        raise TimeoutError

    monkeypatch.setattr(Ingester, "run_once", fail)
    output = StringIO()
    with capture_logs() as logs, pytest.raises(SystemExit) as ended:
        call_command("worker", "--once", "ingest", "watch", stdout=output)
    assert ended.value.code == 1
    assert output.getvalue().endswith("deliveries arrived.\n")
    assert ("ingest_failed", "TimeoutError") in [(entry["event"], entry.get("cause")) for entry in logs]
