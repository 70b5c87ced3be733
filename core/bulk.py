"""Statements that take many lines at once, on either database.

PostgreSQL gets many lines by COPY into a temporary table, the fastest by measurement (bench/staging.py): arrays and
VALUES lists cost more in psycopg, which writes them out value by value, than the writing costs the database. Few lines,
and all on SQLite, go as VALUES.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper

#: Lines that are not worth a temporary table; also what one statement takes, for SQLite has a limit.
FEW = 50

Line = Sequence[Any]


def insert_lines(
    cursor: CursorWrapper, table: str, columns: Sequence[str], lines: Sequence[Line], then: str
) -> list[Line]:
    """Insert lines; `then` says what follows (ON CONFLICT, RETURNING). Return what it returns."""
    names = ", ".join(columns)
    found: list[Line] = []
    for source, values in _sources(cursor, table, columns, lines):
        cursor.execute(f"INSERT INTO {table} ({names}) {source} {then}", values)
        found += cursor.fetchall() if "RETURNING" in then else []
    return found


def select_lines(
    cursor: CursorWrapper, table: str, key: Sequence[str], lines: Sequence[Line], columns: Sequence[str]
) -> list[Line]:
    """Select the rows of a table whose key is among the lines."""
    found: list[Line] = []
    for source, values in _sources(cursor, table, key, lines):
        statement = f"SELECT {', '.join(columns)} FROM {table} WHERE ({', '.join(key)}) IN ({source})"  # noqa: S608
        cursor.execute(statement, values)
        found += cursor.fetchall()
    return found


def delete_lines(cursor: CursorWrapper, table: str, key: Sequence[str], lines: Sequence[Line]) -> None:
    """Delete the rows of a table whose key is among the lines."""
    for source, values in _sources(cursor, table, key, lines):
        cursor.execute(f"DELETE FROM {table} WHERE ({', '.join(key)}) IN ({source})", values)  # noqa: S608


def _sources(
    cursor: CursorWrapper, table: str, columns: Sequence[str], lines: Sequence[Line]
) -> Iterator[tuple[str, list[Any]]]:
    """Give the lines as one query or more, each with its parameters."""
    if connection.vendor == "postgresql" and len(lines) > FEW:
        yield _copied(cursor, table, columns, lines), []
        return
    line = f"({', '.join(['%s'] * len(columns))})"
    for start in range(0, len(lines), FEW):
        part = lines[start : start + FEW]
        yield f"VALUES {', '.join([line] * len(part))}", [value for each in part for value in each]


def _copied(cursor: CursorWrapper, table: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Copy lines to a temporary table, which each connection has of its own, and return the query of them."""
    names = ", ".join(columns)
    # Under a name that its columns give it: behind a pooler, connections outlive a release that changes them.
    stage = f"stage_{table}_{len(columns)}"
    cursor.execute(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {stage} ON COMMIT DELETE ROWS AS SELECT {names} FROM {table} LIMIT 0"  # noqa: S608
    )
    # It is empty unless this very transaction has used it before. TRUNCATE would write to the catalogue each time.
    cursor.execute(f"DELETE FROM {stage}")  # noqa: S608
    with connection.wrap_database_errors, cursor.copy(f"COPY {stage} ({names}) FROM STDIN") as copy:
        for each in lines:
            copy.write_row(each)
    return f"SELECT {names} FROM {stage}"  # noqa: S608
