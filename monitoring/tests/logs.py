"""The log and its rollups side by side, for tests that compare them."""

from __future__ import annotations

from datetime import datetime

from monitoring.models import RequestRecord, Rollup
from monitoring.rollups.store import PLATFORM_MINUTE, READ, Change, Row, Tally, decoded, spread, sums_of


def rollups_kept(*, minutes: bool = False) -> dict[Row, Tally]:
    """Read all rollups but the minutes, which are kept for some hours only; or (`minutes`) those as well."""
    rows = Rollup.objects.all() if minutes else Rollup.objects.exclude(grain=PLATFORM_MINUTE)
    return dict(decoded(rows.values_list(*READ)))


def rollups_expected(minutes_since: datetime | None = None) -> dict[Row, Tally]:
    """Make the rollups of all the log, record by record; minutes of what was admitted since then."""
    changes = [Change(None, record) for record in RequestRecord.objects.all()]
    return spread(sums_of(changes, minutes_since)).tallies
