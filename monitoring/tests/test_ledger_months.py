"""Which months' ledgers the nightly check compares."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from pytest_django import Settings

from monitoring import reconciliation
from monitoring.reconciliation import ledger_months

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 27, 3, tzinfo=UTC)


def test_it_takes_this_month_and_the_last_of_those_that_the_span_touches_and_rollups_have(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)
    monkeypatch.setattr(reconciliation, "wall_clock", lambda: int(NOW.timestamp()) * 1_000_000)
    for days, months in ((2, [202611]), (27, [202610, 202611]), (900, [202610, 202611])):
        assert ledger_months(NOW - timedelta(days=days), NOW) == months
    assert ledger_months(datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 10, 5, tzinfo=UTC)) == [202610]
    settings.ROLLUP_RETENTION_DAYS = 7
    assert ledger_months(NOW - timedelta(days=60), NOW) == [202611]
