"""Rollups: the log added up, at any moment, whatever was written in which order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.tests.factories import Cast, IssuedKey, make_key
from monitoring.models import RequestRecord, Rollup
from monitoring.recorder import write_record, write_records
from monitoring.rollups.periods import minute_of
from monitoring.rollups.store import MINUTES_WRITTEN
from monitoring.tests.logs import rollups_expected, rollups_kept
from monitoring.tests.samples import a_record, an_operation, recorded

pytestmark = pytest.mark.django_db
NOON = int(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()) * 1_000_000
HOUR = 3_600_000_000
IDS = [an_operation() for _ in range(6)]

changes = st.fixed_dictionaries(
    {
        "id": st.sampled_from(IDS),
        "revision": st.integers(1, 3),
        "admitted_at": st.sampled_from([NOON, NOON + 1, NOON + HOUR // 4 - 1, NOON + HOUR // 4, NOON - 12 * HOUR - 1]),
        "endpoint": st.sampled_from(["chat", "summarize"]),
        "model": st.sampled_from(["", "m"]),
        "status": st.sampled_from([200, 400, 404, 429, 500, 503]),
        "cache": st.sampled_from(["hit", "miss", "coalesced", "bypass", "replay", ""]),
        "count": st.sampled_from([1, 1, 7]),
        "input_tokens": st.integers(0, 9),
        "output_tokens": st.integers(0, 9),
        "cost": st.integers(0, 10**9),
        "saved_cost": st.integers(0, 10**9),
        "latency_ms": st.sampled_from([0.0, 3.5, 900.0, 60_000.0]),
        "first_token_ms": st.sampled_from([None, 2.0, 800.0]),
    }
)


@pytest.fixture
def key(db: None) -> IssuedKey:
    """Make a key."""
    return make_key()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(changes, max_size=4), max_size=6))
def test_it_always_agrees_with_the_log(cast: Cast, batches: list[list[dict[str, Any]]]) -> None:
    RequestRecord.objects.all().delete()
    Rollup.objects.all().delete()
    callers = (cast.owner, cast.colleague, cast.stranger)
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    with patch.object(timezone, "now", lambda: noon + MINUTES_WRITTEN):
        for batch in batches:
            write_records([a_record(callers[int(change["id"], 16) % 3], **change) for change in batch])
            assert rollups_kept(minutes=True) == rollups_expected(minutes_since=noon)


def test_it_counts_a_record_for_its_key_its_account_and_the_platform(key: IssuedKey) -> None:
    recorded(key, admitted_at=NOON + HOUR // 2, input_tokens=20, cost=7)
    found = {row.grain: row for row in Rollup.objects.all()}
    noon, month = (minute_of(datetime(2026, 11, day, hour, tzinfo=UTC)) for day, hour in ((24, 12), (1, 0)))
    starts = {"kq": noon + 30, "kd": noon - 720, "km": month, "ad": noon - 720, "pq": noon + 30, "pd": noon - 720}
    assert {grain: row.start for grain, row in found.items()} == starts
    assert {(row.requests, row.misses, row.input_tokens, row.cost) for row in found.values()} == {(1, 1, 20, 7)}
    callers = {grain[0]: (row.account_id, row.key_id) for grain, row in found.items()}
    assert callers == {"k": (key.key.account_id, key.key.pk), "a": (key.key.account_id, 0), "p": (0, 0)}


def minutes() -> dict[int, int]:
    """Read how many requests are kept of which minute."""
    kept = Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_MINUTE).order_by("start")
    return dict(kept.values_list("start", "requests"))


def test_it_counts_by_the_minute_what_came_lately(key: IssuedKey, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    oldest = NOON + 30_000_000 - 3 * HOUR
    for moment in (oldest - 1, oldest, NOON, NOON + 29_000_000):
        recorded(key, admitted_at=moment)
    assert minutes() == {minute_of(now) - 180: 1, minute_of(now): 2}


def test_it_forgets_minutes_when_a_new_one_begins(key: IssuedKey, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime(2026, 11, 24, 12, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: moment)
    for later, kept in ((0, [0]), (1, [0, 1]), (240, [0, 1, 240]), (241, [1, 240, 241]), (600, [600])):
        moment = datetime(2026, 11, 24, 12, tzinfo=UTC) + timedelta(minutes=later)
        recorded(key, admitted_at=NOON + later * HOUR // 60)
        assert list(minutes()) == [minute_of(datetime(2026, 11, 24, 12, tzinfo=UTC)) + each for each in kept]
    assert Rollup.objects.filter(grain="pd").exists()


def test_it_takes_out_what_a_later_revision_replaced(key: IssuedKey) -> None:
    late, refused = an_operation(), an_operation()
    write_record(a_record(key, id=late, revision=1, status=500, usage_source="bound", cost=90))
    write_record(a_record(key, id=late, revision=2, cost=7))
    for revision, count in ((1, 10), (2, 25)):  # a row of refusals stands for so many
        write_record(a_record(key, id=refused, revision=revision, count=count, status=429, cache="", cost=0))
    found = Rollup.objects.exclude(grain="km").values_list("outcome", "requests", "cost", "latency")
    assert {(*row[:3], bool(row[3])) for row in found} == {("ok", 1, 7, True), ("limited", 25, 0, False)}
    assert Rollup.objects.filter(grain="km").values_list("requests", "cost").get() == (26, 7)


def test_it_keeps_neither_record_nor_rollup_of_a_transaction_that_failed(key: IssuedKey) -> None:
    with suppress(RuntimeError), transaction.atomic():
        recorded(key)
        raise RuntimeError
    assert not RequestRecord.objects.exists()
    assert not Rollup.objects.exists()


def test_it_outlives_a_record_that_rollups_lack(key: IssuedKey) -> None:
    operation = an_operation()
    write_record(a_record(key, id=operation, revision=1, cost=90))
    Rollup.objects.all().delete()
    write_record(a_record(key, id=operation, revision=2, cost=7))
    assert RequestRecord.objects.get().revision == 2


@pytest.fixture
def writers(transactional_db: None) -> Iterator[ThreadPoolExecutor]:
    """Return threads that write, each over a connection of its own; on SQLite, one: it has one writer at a time."""
    count = 4 if connection.vendor == "postgresql" else 1
    with ThreadPoolExecutor(count) as pool:
        yield pool
        barrier = threading.Barrier(count)
        for closed in [pool.submit(_close, barrier) for _ in range(count)]:
            closed.result()


def _close(barrier: threading.Barrier) -> None:
    """Close this thread's connection, and leave the same to each of the others."""
    connection.close()
    barrier.wait()


@pytest.mark.django_db(transaction=True)
def test_it_counts_once_what_several_write_at_a_time(writers: ThreadPoolExecutor) -> None:
    keys = [make_key() for _ in range(3)]
    operations = [an_operation() for _ in range(60)]
    batches = [
        [
            a_record(keys[number % 3], id=operation, revision=revision, cost=number * revision, admitted_at=NOON)
            for number, operation in list(enumerate(operations))[start : start + 30][::order]
        ]
        for start in (0, 15, 30)
        for revision in (1, 2)
        for order in (1, -1)
    ]
    for written in [writers.submit(write_records, batch) for batch in batches * 2]:
        written.result()
    assert set(RequestRecord.objects.values_list("revision", flat=True)) == {2}
    assert RequestRecord.objects.count() == 60
    assert rollups_kept() == rollups_expected()
