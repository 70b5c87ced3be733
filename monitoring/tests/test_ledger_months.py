"""Which months' ledgers the nightly check compares."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from pytest_django import Settings

from monitoring.reconciliation import ledger_months

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 27, 3, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _in_november(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)


def months(begin: datetime, until: datetime = NOW) -> list[int]:
    """List the months of a span."""
    return ledger_months(begin, until)


def test_it_takes_those_that_the_span_touches() -> None:
    assert months(NOW - timedelta(days=2)) == [202611]
    assert months(NOW - timedelta(days=27)) == [202610, 202611]
    assert months(datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 10, 5, tzinfo=UTC)) == [202610]


def test_it_takes_none_before_the_last() -> None:
    assert months(NOW - timedelta(days=900)) == [202610, 202611]


def test_it_leaves_out_a_month_whose_rollups_are_gone(settings: Settings) -> None:
    settings.ROLLUP_RETENTION_DAYS = 7
    assert months(NOW - timedelta(days=60)) == [202611]
