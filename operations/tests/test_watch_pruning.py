"""While old records are pruned, the watch goes on."""

from __future__ import annotations

import threading

import pytest
from pytest_django import Settings

from accounts.tests.factories import Cast
from monitoring.models import RequestRecord
from monitoring.tests.test_pruning import records
from operations.alerts.watch import Round
from operations.management.commands import watch as command

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_goes_on_watching_while_it_prunes(cast: Cast, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    records(cast, 250, days_ago=100)
    settings.LOG_RETENTION_DAYS, settings.WATCH_SECONDS = 90, 0
    monkeypatch.setattr(command, "PRUNE_SECONDS", 0.0)
    left: list[int] = []

    class Counting(Round):
        def run(self) -> tuple[int, int]:
            left.append(RequestRecord.objects.count())
            return super().run()

    class UntilAllAreGone(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return left[-1:] == [0]

    command.Command()._loop(Counting(), UntilAllAreGone())
    assert left[0] == 250
    assert 0 < left[1] < 250
