"""Measure how many lines get into PostgreSQL at once: `python bench/staging.py [RECORDS] [BATCHES]`.

Starts a PostgreSQL and a Redis of its own, and lets an ingester move records that wait, by turns in each of these ways:

    truncate   COPY to a temporary table that is truncated first
    delete     COPY to a temporary table from which what is there is deleted first
    unnest     arrays in the statement's text
    bound      arrays that the server binds
    create     COPY to a temporary table that is made for it and dropped at the commit

Prints the CPU that a record costs (RECORDS of them, 20,000 unless given, in the ingester's batches; the
median of ROUNDS), and what BATCHES of 60 records (10,000 unless given) do to the catalogue: how many rows are written
there, and how much it grows.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

from harness import cpu_seconds  # noqa: E402
from ingest_rate import emit  # noqa: E402

from tests.stores import postgres_server, redis_server  # noqa: E402

ROUNDS, SMALL_BATCH = 5, 60
CALLERS = [(number % 50 + 1, f"account-{number % 50}", number + 1, f"key-{number}") for number in range(100)]
CATALOGUE = ("pg_class", "pg_attribute", "pg_type", "pg_depend", "pg_index", "pg_statistic")
WRITTEN = (
    "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del), sum(pg_total_relation_size(relid)) "
    "FROM pg_stat_sys_tables WHERE schemaname = 'pg_catalog' AND relname = ANY(%s)"
)

Line = Sequence[Any]
Source = tuple[str, list[Any]]


def staged(cursor: Any, table: str, columns: Sequence[str], lines: Sequence[Line], *, empty: str, end: str) -> str:
    """Copy lines to a temporary table that is emptied by a statement first, and return the query of them."""
    from django.db import connection

    names, stage = ", ".join(columns), f"stage_{table}_{len(columns)}"
    cursor.execute(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {stage} ON COMMIT {end} AS SELECT {names} FROM {table} LIMIT 0"  # noqa: S608
    )
    cursor.execute(f"{empty} {stage}")
    with connection.wrap_database_errors, cursor.copy(f"COPY {stage} ({names}) FROM STDIN") as copy:
        for each in lines:
            copy.write_row(each)
    return f"SELECT {names} FROM {stage}"  # noqa: S608


def truncate(cursor: Any, table: str, columns: Sequence[str], lines: Sequence[Line]) -> Iterator[Source]:
    """Empty the table by TRUNCATE."""
    yield staged(cursor, table, columns, lines, empty="TRUNCATE", end="DELETE ROWS"), []


def delete(cursor: Any, table: str, columns: Sequence[str], lines: Sequence[Line]) -> Iterator[Source]:
    """Empty the table by DELETE."""
    yield staged(cursor, table, columns, lines, empty="DELETE FROM", end="DELETE ROWS"), []


def create(cursor: Any, table: str, columns: Sequence[str], lines: Sequence[Line]) -> Iterator[Source]:
    """Make a table for each transaction."""
    yield staged(cursor, table, columns, lines, empty="DELETE FROM", end="DROP"), []


types: dict[tuple[str, str], str] = {}


def unnest(cursor: Any, table: str, columns: Sequence[str], lines: Sequence[Line]) -> Iterator[Source]:
    """Return the lines as arrays, one a column."""
    if (table, columns[0]) not in types:
        cursor.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0",
            [table],
        )
        types.update({(table, name): kind for name, kind in cursor.fetchall()})
    arrays = ", ".join(f"%s::{types[table, column]}[]" for column in columns)
    yield f"SELECT * FROM unnest({arrays})", [list(values) for values in zip(*lines, strict=True)]  # noqa: S608


#: What "create" leaves in the catalogue would be vacuumed away while another is measured: it comes last.
WAYS: dict[str, Callable[..., Iterator[Source]]] = {
    "truncate": truncate,
    "delete": delete,
    "unnest": unnest,
    "bound": unnest,
    "create": create,
}


def disconnect() -> None:
    """End the connection, and wait until its backend has told what it wrote and is gone."""
    from django.db import connection

    connection.close()
    connection.close_pool()
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
        while other.execute("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() OFFSET 1").fetchone():
            time.sleep(0.01)


@contextmanager
def going(way: str) -> Iterator[int]:
    """Let many lines go in a way, over a connection of its own; yield the id of its backend."""
    from django.db import connection

    from core import bulk

    kept = bulk._sources

    def sources(cursor: Any, table: str, columns: Sequence[str], lines: Sequence[Line]) -> Iterator[Any]:
        return (WAYS[way] if len(lines) > bulk.FEW else kept)(cursor, table, columns, lines)

    disconnect()
    connection.settings_dict["OPTIONS"]["server_side_binding"] = way == "bound"
    bulk._sources = sources
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    try:
        yield backend
    finally:
        bulk._sources = kept


def ingested(way: str, backend_of_limits: Any, records: int) -> tuple[float, float]:
    """Move records that wait; return the µs of CPU that one cost the ingester, and PostgreSQL."""
    from monitoring.ingester import Ingester

    emit(backend_of_limits, CALLERS, records)
    ingester = Ingester()
    with going(way) as backend:
        own, database = time.process_time(), cpu_seconds(backend)
        assert ingester.run_once() == records
        own, database = time.process_time() - own, cpu_seconds(backend) - database
    return own / records * 1e6, database / records * 1e6


def catalogue() -> tuple[int, int]:
    """Return how many rows were written in the catalogue by connections that are closed, and its size."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
        ((rows, size),) = other.execute(WRITTEN, [list(CATALOGUE)]).fetchall()
    return int(rows), int(size)


def churned(way: str, batches: int) -> tuple[float, float, float]:
    """Write small batches; return catalogue rows a batch, by how many kB the catalogue grew, and ms a batch."""
    from django.db import connection

    from bench.rollups import END, a_record
    from monitoring.recorder import write_records

    dice = random.Random(1)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE monitoring_requestrecord, monitoring_rollup")
    disconnect()
    (rows, size), took = catalogue(), 0.0
    with going(way):
        for _ in range(batches):
            records = [a_record(dice, END) for _ in range(SMALL_BATCH)]
            began = time.perf_counter()
            write_records(records)
            took += time.perf_counter() - began
    disconnect()
    rows_then, size_then = catalogue()
    return (rows_then - rows) / batches, (size_then - size) / 1024, took / batches * 1000


def measure(records: int, batches: int) -> None:
    """Print both tables."""
    from accounts.tests.limits_fixtures import limits_on

    limits = limits_on(os.environ["REDIS_URL"])
    for way in WAYS:
        ingested(way, limits, 2_000)  # warms up
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, found in taken.items():
            found.append(ingested(way, limits, records))
    print("| | records/s on one core | its CPU µs | PostgreSQL's | of the first |")
    print("|---|---|---|---|---|")
    first = statistics.median(map(sum, taken["truncate"]))
    for way, found in taken.items():
        own, database = (statistics.median(column) for column in zip(*found, strict=True))
        whole = statistics.median(map(sum, found))
        print(f"| {way} | {1e6 / whole:,.0f} | {own:.0f} | {database:.0f} | {whole / first:.2f} x |", flush=True)
    print(f"\n| {batches:,} batches of {SMALL_BATCH} | catalogue rows a batch | it grew by kB | ms a batch |")
    print("|---|---|---|---|")
    for way in WAYS:
        rows, size, took = churned(way, batches)
        print(f"| {way} | {rows:.1f} | {size:,.0f} | {took:.1f} |", flush=True)


def main() -> None:
    """Measure, on stores made for it."""
    given = [int(text) for text in sys.argv[1:]]
    records, batches = [*given, *(20_000, 10_000)[len(given) :]]
    with postgres_server() as postgres, redis_server() as redis:
        os.environ |= {
            "DATABASE_URL": postgres.create_database(),
            "REDIS_URL": redis.url,
            "DJANGO_SETTINGS_MODULE": "aiapi.settings",
        }
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        measure(records, batches)


if __name__ == "__main__":
    main()
