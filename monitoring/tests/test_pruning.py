"""Old rows go in small batches, with pauses, in order, and whole whenever it is stopped."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.db.models import QuerySet
from django.utils import timezone
from pytest_django import Settings

from accounts.limits.backend import LimitBackend
from accounts.limits.scripts import records_stream
from accounts.models import AuditEntry, IdempotentAnswer
from accounts.tests.factories import Cast
from core.times import month_of
from monitoring import export
from monitoring.export import record_batches, records_within
from monitoring.ledger import months_settled
from monitoring.models import RequestRecord
from monitoring.recorder import write_records
from monitoring.retention import (
    Pruned,
    prune,
    prune_idempotent_answers,
    prune_records,
    prune_rollups,
    record_cutoff,
    rollup_cutoff,
)
from monitoring.rollups.periods import month_begin
from monitoring.rollups.verify import rollups_differences
from monitoring.tests.samples import a_record, micros, scope_of

pytestmark = pytest.mark.django_db(transaction=True)
NOW = datetime(2026, 11, 24, 12, tzinfo=timezone.get_fixed_timezone(0))
ALWAYS = NOW - timedelta(days=20_000), NOW + timedelta(days=20_000)


def records(cast: Cast, count: int, *, days_ago: float) -> None:
    """Write records that were admitted so many days ago, one µs after the other."""
    admitted_at = micros(timezone.now() - timedelta(days=days_ago))
    write_records([a_record(cast.owner, admitted_at=admitted_at + number) for number in range(count)])


def never(seconds: float) -> bool:
    """Don't pause, don't stop."""
    return False


def prune_all(wait: Callable[[float], bool] = never) -> Pruned:
    """Prune all records."""
    return prune(RequestRecord.objects.all(), "admitted_at", wait)


def test_it_deletes_what_was_admitted_before_and_nothing_else(cast: Cast) -> None:
    cutoff = timezone.now() - timedelta(days=90)
    records(cast, 100, days_ago=100)
    write_records([a_record(cast.owner, admitted_at=micros(cutoff) - 1 + number % 2) for number in range(300)])
    done = prune_records(cutoff, wait=never)
    assert (done.rows, done.was_stopped) == (250, False)
    assert done.batches >= 2
    assert set(RequestRecord.objects.values_list("admitted_at", flat=True)) == {cutoff}


def test_it_pauses_longer_than_a_step_took_and_stops_after_any(cast: Cast) -> None:
    records(cast, 400, days_ago=100)
    done = prune_all(lambda _: True)
    assert (done.rows, done.batches, done.was_stopped) == (100, 1, True)
    pauses: list[float] = []

    def note(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    done = prune_all(note)
    assert (done.rows, done.batches) == (300, len(pauses))
    assert min(pauses) >= 0.02
    assert max(pauses) >= done.longest * 3 or done.longest < 0.01


def test_it_tells_a_database_that_takes_nothing(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    records(cast, 1, days_ago=100)

    def refuse(*_: Any) -> tuple[int, dict[str, int]]:
        raise OperationalError("away")

    monkeypatch.setattr(QuerySet, "delete", refuse)
    with pytest.raises(OperationalError):
        prune_all()


@pytest.mark.parametrize(
    ("days", "at", "is_protected"),
    [
        (90, NOW - timedelta(days=90), False),
        (3, NOW - timedelta(days=3), False),
        (2, NOW - timedelta(days=2), False),
        (1, NOW - timedelta(days=2), True),
    ],
)
def test_it_keeps_the_records_that_may_still_be_replaced(days: int, at: datetime, is_protected: bool) -> None:
    cutoff = record_cutoff(days, now=NOW)
    assert (cutoff.at, cutoff.is_protected) == (at, is_protected)


def test_it_keeps_the_records_that_an_ingester_may_write_again(
    cast: Cast, redis_limits: LimitBackend, store: Any
) -> None:
    stream, day = records_stream(scope_of(cast.owner).shard), 86_400
    store.xadd(stream, {"o": "x"}, id=f"{int((time.time() - 5 * day) * 1000)}-0")
    cutoff = record_cutoff(3)
    assert cutoff.is_protected
    assert timedelta(0) <= timezone.now() - timedelta(days=7) - cutoff.at < timedelta(minutes=1)


def test_it_deletes_nothing_while_nobody_can_tell_what_waits(settings: Settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    with pytest.raises(CommandError, match="The state store did not answer"):
        prune_command("--days", "30")


def test_it_takes_nothing_from_budgets(cast: Cast) -> None:
    records(cast, 4, days_ago=10)
    key, month = scope_of(cast.owner).subjects[0], month_of(micros(timezone.now() - timedelta(days=10)))
    settled = months_settled([key], month)
    assert settled[key].tokens == 120
    prune_command("--days", "3")
    assert not RequestRecord.objects.exists()
    assert months_settled([key], month) == settled
    assert list(rollups_differences(*ALWAYS)) == []


def prune_command(*arguments: str) -> str:
    """Run the command and return what it printed."""
    output = StringIO()
    call_command("prune_logs", *arguments, stdout=output)
    return output.getvalue()


def test_it_prunes_by_setting_and_says_what_it_did_and_which_records_stay_for_now(
    cast: Cast, settings: Settings
) -> None:
    for days_ago in (70, 50, 2.5, 1.5):
        records(cast, 5, days_ago=days_ago)
    settings.LOG_RETENTION_DAYS = 60
    assert "Would prune 5 records" in prune_command("--dry-run")
    assert RequestRecord.objects.count() == 20
    assert "Pruned 5 records" in prune_command()
    assert "Pruned 5 records" in prune_command("--days", "40")
    assert "Pruned 0 records" in prune_command()
    said = prune_command("--days", "1")
    assert "Pruned 5 records" in said
    assert "may still be corrected" in said
    assert RequestRecord.objects.count() == 5
    assert "stay" not in prune_command("--days", "2")
    settings.LOG_RETENTION_DAYS = 0
    with pytest.raises(CommandError, match="Give --days"):
        prune_command()


@pytest.mark.parametrize("days", ["-1", "0", "999999999999"])
def test_it_refuses_days_that_are_none_before_it_prunes_anything(cast: Cast, days: str) -> None:
    records(cast, 1, days_ago=100)
    with pytest.raises(CommandError, match=f"{days} is not a whole number from 1"):
        prune_command(f"--days={days}")
    assert RequestRecord.objects.count() == 1


def test_it_notes_once_that_the_log_does_not_begin_where_the_rollups_do(cast: Cast) -> None:
    for days in (100, 99, 98, 97):
        records(cast, 1, days_ago=days)
    for hours in (12, 12, 36, 60):
        prune_records(timezone.now() - timedelta(days=100) + timedelta(hours=hours), wait=never)
    (noted,) = AuditEntry.objects.filter(action="pruned")
    assert (noted.actor, noted.target_type) == ("command:prune_logs", "request record")


def test_it_keeps_the_rollups_that_tell_of_a_month_s_pruned_first_hour(cast: Cast) -> None:
    now = timezone.now()
    border = month_begin(month_begin(now) - timedelta(days=1))
    day, minute = timedelta(days=1), timedelta(minutes=1)
    for after in (-2 * day, -day, 10 * minute, 40 * minute):
        records(cast, 1, days_ago=(now - border - after) / day)
    for after in (-1.5 * day, 20 * minute):
        prune_records(border + after, wait=never)
    cutoff = rollup_cutoff(1)
    assert cutoff is not None
    prune_rollups(cutoff, wait=never)
    assert list(rollups_differences(*ALWAYS)) == []


def work(do: Callable[[], object]) -> int:
    """Return how many hundreds of instructions SQLite needs for something; PostgreSQL's work is not counted: 0."""
    if connection.vendor != "sqlite":
        do()
        return 0
    count = itertools.count()
    connection.connection.set_progress_handler(lambda: next(count) and 0, 100)
    try:
        do()
    finally:
        connection.connection.set_progress_handler(None, 0)
    return next(count)


class TestWork:
    """A step costs the same wherever it is in the log: of several bounds in time SQLite searches by one."""

    def test_a_step_of_pruning_reads_no_more_than_it_deletes(self, cast: Cast) -> None:
        records(cast, 2000, days_ago=100)
        last = RequestRecord.objects.order_by("admitted_at")[99].admitted_at
        far = work(lambda: prune_records(timezone.now(), wait=lambda _: True))
        near = work(lambda: prune_records(last + timedelta(microseconds=101), wait=lambda _: True))
        assert RequestRecord.objects.count() == 1800
        assert far <= near * 1.5

    def test_the_last_batch_of_an_export_reads_no_more_than_the_first(
        self, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export, "BATCH", 50)
        records(cast, 2000, days_ago=100)
        begin = timezone.now() - timedelta(days=101)
        batches = record_batches(records_within(begin, timezone.now()))
        first, *_, last = (work(lambda: next(batches)) for _ in range(40))
        assert last <= first * 1.5


def test_it_deletes_answers_kept_for_a_day(cast: Cast) -> None:
    now = timezone.now()
    for name, until in (("old", now - timedelta(seconds=1)), ("new", now + timedelta(hours=1))):
        IdempotentAnswer.objects.create(name=name, key=cast.owner.key, token="t", fingerprint="f", expires_at=until)
    assert prune_idempotent_answers(wait=never).rows == 1
    assert IdempotentAnswer.objects.get().name == "new"
