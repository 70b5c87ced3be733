"""Usage as a file: the sums of the rollups, a row for each stretch of time and group."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone
from pytest_django import Settings

from accounts.tests.factories import Cast
from monitoring.models import Rollup
from monitoring.retention import prune_by_settings, rollup_cutoff
from monitoring.tests.samples import micros_at, recorded

pytestmark = pytest.mark.django_db
Lines = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lines(tmp_path: Path, cast: Cast) -> Lines:
    """Return what exports and reads the lines, after some requests of October and November."""
    recorded(cast.owner, admitted_at=micros_at(10, 31, 23), cost=1_000_000, input_tokens=5, output_tokens=0)
    recorded(cast.owner, admitted_at=micros_at(11, 1, 0), cost=2_000_000, cache="hit", saved_cost=500)
    recorded(cast.colleague, admitted_at=micros_at(11, 1, 5), status=429, count=7, cache="", cost=0)
    recorded(cast.stranger, admitted_at=micros_at(11, 2, 5), status=502, latency_ms=100.0, cost=0)

    def export(*arguments: str) -> list[dict[str, Any]]:
        file = tmp_path / "usage.jsonl"
        span = ("--from", "2026-10-01", "--to", "2026-12-01")
        call_command("export_usage", *span, "--format", "jsonl", "--output", str(file), *arguments, stderr=StringIO())
        return [json.loads(line) for line in file.read_text().splitlines()]

    return export


def test_it_writes_a_row_for_each_day_and_account_with_every_figure(lines: Lines) -> None:
    found = lines()
    assert [(line["start"], line["account"], line["requests"], line["cost"]) for line in found] == [
        ("2026-10-31T00:00:00Z", "acme", 1, "0.001000000"),
        ("2026-11-01T00:00:00Z", "acme", 8, "0.002000000"),
        ("2026-11-02T00:00:00Z", "globex", 1, "0.000000000"),
    ]
    _, limited, failed = found
    assert (limited["limited_requests"], limited["cache_hits"], limited["saved_cost"]) == (7, 1, "0.000000500")
    assert (failed["failed_requests"], failed["first_token_ms_p50"]) == (1, None)
    assert failed["latency_ms_p99"] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["--unit", "month"], [("2026-10", "acme"), ("2026-11", "acme"), ("2026-11", "globex")]),
        (["--unit", "month", "--by", "model"], [("2026-10", "gpt-3.5-turbo"), ("2026-11", "gpt-3.5-turbo")]),
        (["--account", "globex", "--unit", "hour", "--by", "key"], [("2026-11", "stranger")]),
        (["--to", "2026-11-01"], [("2026-10", "acme")]),
    ],
)
def test_it_splits_as_asked(lines: Lines, arguments: list[str], rows: list[tuple[str, str]]) -> None:
    by = arguments[arguments.index("--by") + 1] if "--by" in arguments else "account"
    assert [(line["start"][:7], line[by]) for line in lines(*arguments)] == rows


def test_it_keeps_sums_longer_than_records_and_not_for_ever(cast: Cast, settings: Settings) -> None:
    def days() -> set[int]:
        return set(Rollup.objects.filter(grain=Rollup.Grain.ACCOUNT_DAY).values_list("start", flat=True))

    now = timezone.now()
    for age in (500, 200, 0):
        recorded(cast.owner, admitted_at=int((now - timedelta(days=age)).timestamp() * 1e6))
    settings.LOG_RETENTION_DAYS, settings.ROLLUP_RETENTION_DAYS = 0, 400
    prune_by_settings(wait=lambda _: False)
    assert len(days()) == 3, "what the log holds stays in the rollups"
    settings.LOG_RETENTION_DAYS = 90
    prune_by_settings(wait=lambda _: False)
    assert len(days()) == 2
    settings.ROLLUP_RETENTION_DAYS = 0
    assert rollup_cutoff(0) is None
