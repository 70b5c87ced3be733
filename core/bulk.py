"""Bulk INSERT, SELECT and DELETE statements for PostgreSQL and SQLite.

On PostgreSQL, many lines are copied into a temporary table first, which is the fastest way measured: arrays cost 20 to
27 % more, because psycopg spends more time on formatting them (or VALUES lists) than the database spends on writing the
rows. Up to FEW lines, and all lines on SQLite, are sent as VALUES.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper

#: Up to so many lines, a temporary table doesn't pay. Also the most lines of a statement: SQLite limits parameters.
FEW = 50

Line = Sequence[Any]


def insert_lines(
    cursor: CursorWrapper, table: str, columns: Sequence[str], lines: Sequence[Line], then: str
) -> list[Line]:
    """Insert lines and return the rows of RETURNING, if any. `then` is the statement's end (ON CONFLICT, RETURNING)."""
    names = ", ".join(columns)
    found: list[Line] = []
    for source, values in _sources(cursor, table, columns, lines):
        cursor.execute(f"INSERT INTO {table} ({names}) {source} {then}", values)
        found += cursor.fetchall() if "RETURNING" in then else []
    return found


def select_lines(
    cursor: CursorWrapper, table: str, key: Sequence[str], lines: Sequence[Line], columns: Sequence[str]
) -> list[Line]:
    """Return `columns` of the rows whose key is among the lines."""
    found: list[Line] = []
    for source, values in _sources(cursor, table, key, lines):
        statement = f"SELECT {', '.join(columns)} FROM {table} WHERE ({', '.join(key)}) IN ({source})"  # noqa: S608
        cursor.execute(statement, values)
        found += cursor.fetchall()
    return found


def delete_lines(cursor: CursorWrapper, table: str, key: Sequence[str], lines: Sequence[Line]) -> None:
    """Delete the rows whose key is among the lines."""
    for source, values in _sources(cursor, table, key, lines):
        cursor.execute(f"DELETE FROM {table} WHERE ({', '.join(key)}) IN ({source})", values)  # noqa: S608


def _sources(
    cursor: CursorWrapper, table: str, columns: Sequence[str], lines: Sequence[Line]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lines as one or more SQL queries, each with its parameters."""
    if connection.vendor == "postgresql" and len(lines) > FEW:
        yield _copied(cursor, table, columns, lines), []
        return
    line = f"({', '.join(['%s'] * len(columns))})"
    for start in range(0, len(lines), FEW):
        part = lines[start : start + FEW]
        yield f"VALUES {', '.join([line] * len(part))}", [value for each in part for value in each]


def _copied(cursor: CursorWrapper, table: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Copy lines to a temporary table of this connection, and return the query that selects them."""
    names = ", ".join(columns)
    # The name depends on the columns: behind a pooler, connections survive a release that changes them.
    stage = f"stage_{table}_{len(columns)}"
    cursor.execute(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {stage} ON COMMIT DELETE ROWS AS SELECT {names} FROM {table} LIMIT 0"  # noqa: S608
    )
    # The table is empty unless this transaction has used it before. TRUNCATE would write to the catalogue.
    cursor.execute(f"DELETE FROM {stage}")  # noqa: S608
    with connection.wrap_database_errors, cursor.copy(f"COPY {stage} ({names}) FROM STDIN") as copy:
        for each in lines:
            copy.write_row(each)
    return f"SELECT {names} FROM {stage}"  # noqa: S608
