"""Rebuilding rollups from the log, and telling where the two disagree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from accounts.tests.factories import Cast
from monitoring.models import RequestRecord, Rollup
from monitoring.retention import prune_records
from monitoring.rollups import log as module
from monitoring.rollups import store, verify
from monitoring.rollups.periods import DAY, minute_of
from monitoring.rollups.store import MINUTES_WRITTEN
from monitoring.rollups.verify import rollups_differences, rollups_rebuild, span_of_log
from monitoring.tests.logs import rollups_expected, rollups_kept
from monitoring.tests.samples import micros_at, recorded

pytestmark = pytest.mark.django_db


ALWAYS = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def log(cast: Cast) -> None:
    """Write a log over two months, of three keys and two accounts."""
    moments = (
        micros_at(10, 31, 23),
        micros_at(11, 1),
        micros_at(11, 1, 5),
        micros_at(11, 1, 5) + 1,
        micros_at(11, 3, 7),
    )
    for number, moment in enumerate(moments * 3):
        issued = (cast.owner, cast.colleague, cast.stranger)[number % 3]
        status = (200, 200, 429, 503)[number % 4]
        recorded(
            issued, admitted_at=moment, status=status, latency_ms=100.0 * number, cost=number, model=f"m{number % 2}"
        )


def spoil_by_deleting_all() -> None:
    """Take all rollups away."""
    Rollup.objects.all().delete()


def spoil_amounts() -> None:
    """Miscount in some rows of each grain."""
    Rollup.objects.filter(outcome="ok").update(requests=F("requests") + 1, latency="")
    Rollup.objects.filter(grain="km").update(requests=F("requests") + 2)


def spoil_by_inventing() -> None:
    """Add rows of a model that was never asked."""
    for row in Rollup.objects.filter(outcome="ok", model="m0"):
        row.model = "never"
        row.save(force_insert=True)


SPOILERS = [None, spoil_by_deleting_all, spoil_amounts, spoil_by_inventing]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_it_fixes_whatever_is_wrong(log: None, spoil: Callable[[], None] | None) -> None:
    if spoil is not None:
        spoil()
    wrong = list(rollups_rebuild(*span_of_log()))
    assert bool(wrong) is (spoil is not None)
    assert rollups_kept() == rollups_expected()
    assert list(rollups_differences(*span_of_log())) == []


@pytest.mark.parametrize("spoil", SPOILERS)
def test_it_fixes_the_minutes_that_are_kept(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[], None] | None
) -> None:
    now = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    for minutes in (0, 1, 1, 29, 31, 90, 149, 181, 300):
        moment = now - timedelta(minutes=minutes)
        admitted_at = int(moment.timestamp()) * 1_000_000
        recorded(cast.owner, admitted_at=admitted_at, model=f"m{minutes % 2}")
    if spoil is not None:
        spoil()
    wrong = list(rollups_rebuild(*span_of_log()))
    assert any(each.row.grain == Rollup.Grain.PLATFORM_MINUTE for each in wrong) is (spoil is not None)
    assert rollups_kept(minutes=True) == rollups_expected(minutes_since=now - MINUTES_WRITTEN)
    assert list(rollups_differences(*span_of_log())) == []


@pytest.mark.parametrize(
    ("grain", "told"),
    [
        ("pi", "platform minute 2026-11-24 12:30, account 0 key 0 chat gpt-3.5-turbo ok"),
        ("kq", "key quarter 2026-11-24 12:30, account {account} key {key} chat gpt-3.5-turbo ok"),
        ("km", "key month 2026-11-01 00:00, account {account} key {key}"),
    ],
)
def test_it_says_of_which_row_what_is_wrong(cast: Cast, monkeypatch: pytest.MonkeyPatch, grain: str, told: str) -> None:
    now = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    recorded(cast.owner, admitted_at=int(now.timestamp()) * 1_000_000)
    Rollup.objects.filter(grain=grain).update(requests=3)
    (wrong,) = rollups_differences(*span_of_log())
    named = told.format(account=cast.owner.key.account_id, key=cast.owner.key.pk)
    assert str(wrong) == f"{named}: requests 3 instead of 1"
    Rollup.objects.filter(grain=grain).update(requests=1, first_token="5:1")
    (wrong,) = rollups_differences(*span_of_log())
    assert str(wrong) == f"{named}: first_token"


def test_it_fixes_only_the_span_that_it_is_given(log: None) -> None:
    spoil_by_deleting_all()
    list(rollups_rebuild(datetime(2026, 11, 1, 5, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)))
    day = minute_of(datetime(2026, 11, 1, tzinfo=UTC))
    expected = {row: tally for row, tally in rollups_expected().items() if day <= row.start < day + DAY}
    months = {row: tally for row, tally in rollups_kept().items() if row.grain == "km"}
    assert {row: tally for row, tally in rollups_kept().items() if row not in months} == {
        row: tally for row, tally in expected.items() if row.grain != "km"
    }
    assert sum(tally[0] for tally in months.values()) == 9  # the month is the sum of the days that there are


def test_it_leaves_alone_what_the_log_no_longer_has(log: None) -> None:
    before = rollups_kept()
    RequestRecord.objects.filter(admitted_at__lt=datetime(2026, 11, 1, 5, 30, tzinfo=UTC)).delete()
    assert list(rollups_rebuild(*ALWAYS)) == []
    assert rollups_kept() == before


def test_it_leaves_alone_the_day_in_which_pruning_has_begun(cast: Cast) -> None:
    for minute in (5, 25, 45):
        moment = datetime(2026, 8, 3, 14, minute, tzinfo=UTC)
        recorded(cast.owner, admitted_at=int(moment.timestamp()) * 1_000_000)
    before = rollups_kept()
    prune_records(datetime(2026, 8, 3, 14, 30, tzinfo=UTC), wait=lambda _: False)
    assert RequestRecord.objects.count() == 1
    assert list(rollups_differences(*span_of_log())) == []
    assert list(rollups_rebuild(*ALWAYS)) == []
    assert rollups_kept() == before


@pytest.mark.parametrize("until", [datetime(2026, 11, 1, 5, 30, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)])
def test_it_leaves_alone_what_is_pruned_while_it_looks(
    log: None, monkeypatch: pytest.MonkeyPatch, until: datetime
) -> None:
    before, span, log_sums = rollups_kept(), span_of_log(), module.log_sums

    def prune_first(*arguments: Any, **order: Any) -> Any:
        RequestRecord.objects.filter(admitted_at__lt=until).delete()
        return log_sums(*arguments, **order)

    with transaction.atomic():
        monkeypatch.setattr(verify, "log_sums", prune_first)
        assert list(rollups_differences(*span)) == []
        transaction.set_rollback(True)
    assert list(rollups_rebuild(*span)) == []
    assert rollups_kept() == before


def test_it_adds_up_again_what_was_written_meanwhile(cast: Cast, log: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_amounts()
    locks, lock = [], store.rollups_lock

    def write_first(cursor: Any) -> None:
        locks.append(recorded(cast.owner, admitted_at=micros_at(11, 1, 5)))
        lock(cursor)

    monkeypatch.setattr(verify, "rollups_lock", write_first)
    list(rollups_rebuild(*span_of_log()))
    assert len(locks) == 5  # three days and their two months
    assert rollups_kept() == rollups_expected()


def test_its_command_rebuilds_a_span(log: None, capsys: pytest.CaptureFixture[str]) -> None:
    spoil_by_deleting_all()
    call_command("rebuild_rollups", "--from=2026-11-03", "--to=2026-11-04T00:00+00:00")
    assert capsys.readouterr().out.startswith("Fixed ")
    assert set(Rollup.objects.filter(grain="pq").values_list("start", flat=True)) == {
        minute_of(datetime(2026, 11, 3, 7, tzinfo=UTC))
    }
    call_command("rebuild_rollups")
    assert rollups_kept() == rollups_expected()
    call_command("rebuild_rollups")
    assert capsys.readouterr().out.endswith("The rollups agree with the log.\n")


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("rebuild_rollups", ["--from=yesterday"], "is not a date or time"),
        ("rebuild_rollups", ["--from=2026-11-04", "--to=2026-11-03"], "--from must be before --to"),
        *(
            ("check_rollups", [f"--days={days}"], f"{days} is not a whole number from 1")
            for days in (0, -1, 99999999999)
        ),
    ],
)
def test_its_commands_refuse_what_is_no_span(command: str, arguments: list[str], told: str) -> None:
    with pytest.raises(CommandError, match=told):
        call_command(command, *arguments)


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
