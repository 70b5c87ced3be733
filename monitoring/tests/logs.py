"""The log and its rollups side by side, for tests that compare them."""

from __future__ import annotations

from monitoring.models import RequestRecord, Rollup
from monitoring.rollups.store import unpacked
from monitoring.rollups.tallies import MEASURES, Change, Row, Tally, spread, tallies_of


def rollups_kept() -> dict[Row, Tally]:
    """Read all rollups."""
    return {Row(*line[:7]): unpacked(line[7:]) for line in Rollup.objects.values_list(*Row._fields, *MEASURES)}


def rollups_expected() -> dict[Row, Tally]:
    """Make the rollups of all the log, record by record."""
    tallies, _ = spread(*tallies_of(Change(None, record) for record in RequestRecord.objects.all()))
    return tallies
