"""Rebuilding rollups from the log, and telling where the two disagree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from accounts.tests.factories import Cast
from monitoring.apps import fill_rollups
from monitoring.models import RequestRecord, Rollup
from monitoring.retention import prune_records
from monitoring.rollups import verify
from monitoring.rollups import verify as module
from monitoring.rollups.periods import hour_of
from monitoring.rollups.store import MINUTE_GRAINS, MINUTES_WRITTEN, TOTAL
from monitoring.rollups.verify import Step, rollups_differences, rollups_fill, rollups_rebuild, span_of_log
from monitoring.tests.logs import rollups_expected, rollups_kept
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db


def micros(month: int, day: int, hour: int = 0) -> int:
    """Return an hour of 2026 in UTC as records tell it."""
    return int(datetime(2026, month, day, hour, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture
def log(cast: Cast) -> None:
    """Write a log over two months, of three keys and two accounts."""
    moments = (micros(10, 31, 23), micros(11, 1), micros(11, 1, 5), micros(11, 1, 5) + 1, micros(11, 3, 7))
    for number, moment in enumerate(moments * 3):
        issued = (cast.owner, cast.colleague, cast.stranger)[number % 3]
        status = (200, 200, 429, 503)[number % 4]
        recorded(
            issued, admitted_at=moment, status=status, latency_ms=100.0 * number, cost=number, model=f"m{number % 2}"
        )


def spoil_nothing() -> None:
    """Leave everything as it is."""


def spoil_by_deleting_all() -> None:
    """Take all rollups away."""
    Rollup.objects.all().delete()


def spoil_amounts() -> None:
    """Miscount in some rows of each grain."""
    Rollup.objects.filter(outcome="ok").update(requests=F("requests") + 1, latency=b"")


def spoil_by_inventing() -> None:
    """Add rows of a model that was never asked."""
    for row in Rollup.objects.filter(outcome="ok", model="m0"):
        row.model = "never"
        row.save(force_insert=True)


SPOILERS = [spoil_nothing, spoil_by_deleting_all, spoil_amounts, spoil_by_inventing]


@pytest.mark.parametrize("many", [1, 10_000])
@pytest.mark.parametrize("spoil", SPOILERS)
def test_it_mends_whatever_is_wrong(
    log: None, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[], None], many: int
) -> None:
    monkeypatch.setattr(verify, "MANY", many)
    spoil()
    wrong = list(rollups_rebuild(*span_of_log()))
    assert bool(wrong) is (spoil is not spoil_nothing)
    assert rollups_kept() == rollups_expected()
    assert list(rollups_differences(*span_of_log())) == []


@pytest.mark.parametrize("spoil", SPOILERS)
def test_it_mends_the_minutes_that_are_kept(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[], None]
) -> None:
    now = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    for minutes in (0, 1, 1, 29, 31, 90, 149, 181, 300):
        moment = now - timedelta(minutes=minutes)
        admitted_at = int(moment.timestamp()) * 1_000_000
        recorded(cast.owner, admitted_at=admitted_at, model=f"m{minutes % 2}")
    spoil()
    wrong = list(rollups_rebuild(*span_of_log()))
    assert any(each.row.grain in MINUTE_GRAINS for each in wrong) is (spoil is not spoil_nothing)
    assert rollups_kept(minutes=True) == rollups_expected(minutes_since=now - MINUTES_WRITTEN)
    assert list(rollups_differences(*span_of_log())) == []


def test_it_says_of_which_minute_something_is_wrong(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    recorded(cast.owner, admitted_at=int(now.timestamp()) * 1_000_000)
    Rollup.objects.filter(grain=Rollup.Grain.TOTAL_MINUTE).update(requests=3)
    (wrong,) = rollups_differences(*span_of_log())
    assert str(wrong).startswith("total minute 2026-11-24 12:30, account 0 key 0 ok")
    assert "requests 3 instead of 1" in str(wrong)


def test_it_mends_only_the_span_that_it_is_given(log: None) -> None:
    spoil_by_deleting_all()
    fifth = hour_of(datetime(2026, 11, 1, 5, tzinfo=UTC))
    list(rollups_rebuild(fifth, fifth + 1))
    expected = {row: tally for row, tally in rollups_expected().items() if row.start == fifth and row.grain[1] == "h"}
    assert {row: tally for row, tally in rollups_kept().items() if row.grain[1] == "h"} == expected


def test_it_leaves_alone_what_the_log_no_longer_has(log: None) -> None:
    before = rollups_kept()
    RequestRecord.objects.filter(admitted_at__lt=datetime(2026, 11, 1, 5, 30, tzinfo=UTC)).delete()
    assert list(rollups_rebuild(0, 10**7)) == []
    assert rollups_kept() == before


def test_it_leaves_alone_the_hour_in_which_pruning_has_begun(cast: Cast) -> None:
    for minute in (5, 25, 45):
        moment = datetime(2026, 8, 3, 14, minute, tzinfo=UTC)
        recorded(cast.owner, admitted_at=int(moment.timestamp()) * 1_000_000)
    before = rollups_kept()
    prune_records(datetime(2026, 8, 3, 14, 30, tzinfo=UTC), wait=lambda _: False)
    assert RequestRecord.objects.count() == 1
    assert list(rollups_differences(*span_of_log())) == []
    assert list(rollups_rebuild(0, 10**7)) == []
    assert rollups_kept() == before


@pytest.mark.parametrize("until", [datetime(2026, 11, 1, 5, 30, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)])
def test_it_leaves_alone_what_is_pruned_while_it_looks(
    log: None, monkeypatch: pytest.MonkeyPatch, until: datetime
) -> None:
    before, span, expected = rollups_kept(), span_of_log(), Step.expected

    def prune_first(step: Step) -> Any:
        RequestRecord.objects.filter(admitted_at__lt=until).delete()
        return expected(step)

    with transaction.atomic():
        monkeypatch.setattr(Step, "expected", prune_first)
        assert list(rollups_differences(*span)) == []
        transaction.set_rollback(True)
    assert list(rollups_rebuild(*span)) == []
    assert rollups_kept() == before


@pytest.mark.parametrize("times", [1, 100])
def test_it_reads_again_what_was_written_meanwhile(
    cast: Cast, log: None, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    spoil_amounts()
    calls: list[Step] = []
    expected = Step.expected

    def write_after(step: Step) -> Any:
        found = expected(step)
        if step.source is None and len(calls) < min(times, module.TRIES):
            calls.append(step)
            recorded(cast.owner, admitted_at=micros(11, 1, 5))
        return found

    monkeypatch.setattr(Step, "expected", write_after)
    list(rollups_rebuild(*span_of_log()))
    assert calls
    assert rollups_kept() == rollups_expected()


def test_it_says_what_is_wrong(cast: Cast) -> None:
    recorded(cast.owner, admitted_at=micros(11, 1, 5))
    Rollup.objects.filter(grain="kh").update(requests=3, first_token=b"\x05\x01\x00\x00\x00\x00")
    (told, *_) = map(str, rollups_differences(*span_of_log()))
    key = cast.owner.key
    assert told == (
        f"key hour 2026-11-01 05:00, account {key.account_id} key {key.pk} chat gpt-3.5-turbo ok: "
        "requests 3 instead of 1, first_token"
    )


def test_it_fills_the_rollups_of_an_older_releases_log(log: None) -> None:
    spoil_by_deleting_all()
    fill_rollups(apps=apps)
    assert rollups_kept() == rollups_expected()
    assert rollups_fill() == 0


def delete_totals() -> None:
    """Leave the rollups as a release makes them that knows no totals."""
    Rollup.objects.filter(grain__in=[grain for grain in Rollup.Grain if grain[0] == TOTAL]).delete()


def test_it_fills_the_totals_of_an_older_releases_rollups(log: None) -> None:
    RequestRecord.objects.filter(admitted_at__lt=datetime(2026, 11, 1, 5, 30, tzinfo=UTC)).delete()
    before = rollups_kept()
    delete_totals()
    fill_rollups(apps=apps)
    assert rollups_kept() == before
    assert rollups_fill() == 0


def test_it_fills_the_totals_of_a_month_that_has_some(log: None, cast: Cast) -> None:
    delete_totals()
    recorded(cast.owner, admitted_at=micros(11, 3, 7))  # by a process of this release
    assert rollups_fill() > 0
    assert rollups_kept() == rollups_expected()
    assert list(rollups_differences(*span_of_log())) == []


def test_it_fills_the_totals_of_the_minutes_that_are_kept(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    for minutes in (0, 1, 1, 100):
        moment = now - timedelta(minutes=minutes)
        recorded(cast.owner, admitted_at=int(moment.timestamp()) * 1_000_000, cost=minutes)
    delete_totals()
    rollups_fill()
    assert rollups_kept(minutes=True) == rollups_expected(minutes_since=now - MINUTES_WRITTEN)


def test_it_takes_away_totals_of_nothing(log: None) -> None:
    before = rollups_kept()
    Rollup.objects.filter(grain__startswith=TOTAL, outcome="ok").update(outcome="invalid")
    rollups_fill()
    assert rollups_kept() == before


def test_it_fills_nothing_where_there_is_no_log(db: None) -> None:
    assert rollups_fill() == 0
    fill_rollups(apps=type(apps)())  # as of a release without rollups
    assert not Rollup.objects.exists()


def test_its_command_rebuilds_a_span(log: None, capsys: pytest.CaptureFixture[str]) -> None:
    spoil_by_deleting_all()
    call_command("rebuild_rollups", "--from=2026-11-03", "--to=2026-11-04T00:00+00:00")
    assert capsys.readouterr().out.startswith("Mended ")
    assert set(Rollup.objects.filter(grain="ph").values_list("start", flat=True)) == {
        hour_of(datetime(2026, 11, 3, 7, tzinfo=UTC))
    }
    call_command("rebuild_rollups")
    assert rollups_kept() == rollups_expected()
    call_command("rebuild_rollups")
    assert capsys.readouterr().out.endswith("The rollups agree with the log.\n")


def test_its_command_refuses_what_is_no_date() -> None:
    with pytest.raises(CommandError, match="is not a date or time"):
        call_command("rebuild_rollups", "--from=yesterday")


def test_its_command_does_not_take_a_reversed_span_for_one_that_is_right() -> None:
    with pytest.raises(CommandError, match="--from must be before --to"):
        call_command("rebuild_rollups", "--from=2026-11-04", "--to=2026-11-03")


@pytest.mark.parametrize("days", ["0", "-1", "99999999999"])
def test_its_command_does_not_take_no_days_for_days_that_are_right(days: str) -> None:
    with pytest.raises(CommandError, match=f"{days} is not a whole number from 1"):
        call_command("check_rollups", f"--days={days}")


def test_its_command_tells_by_its_status_that_something_is_wrong(log: None, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("check_rollups")
    assert capsys.readouterr().out.splitlines()[0] == "The rollups agree with the log."
    spoil_amounts()
    with pytest.raises(SystemExit) as ended:
        call_command("check_rollups", "--days=20000")
    assert ended.value.code == 1
    assert "instead of" in capsys.readouterr().err


def test_it_compares_at_one_moment_while_others_write(transactional_db: None) -> None:
    call_command("check_rollups")
