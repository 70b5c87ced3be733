"""Writes usage records to the database: one row an id, the highest revision winning, however often it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import connection

from monitoring.models import RequestRecord
from monitoring.records import as_row, newest_revisions

_FIELDS = RequestRecord._meta.concrete_fields
_TABLE = RequestRecord._meta.db_table
#: SQLite takes at most 32,766 parameters in a statement.
ROWS_A_STATEMENT = 500


def write_record(record: Mapping[str, Any]) -> None:
    """Write one record (the sink of the in-process limits)."""
    write_records([record])


def write_records(records: Sequence[Mapping[str, Any]]) -> int:
    """Write records, and answer how many there were after leaving out those with an older revision.

    Idempotent: a record that is there already changes nothing, one with a higher revision replaces it.
    """
    rows = [as_row(record) for record in newest_revisions(records)]
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        _upsert(rows[start : start + ROWS_A_STATEMENT])
    return len(rows)


def _upsert(rows: Sequence[RequestRecord]) -> None:
    """Insert rows or replace those of a lower revision: the condition is what Django's bulk_create can't say."""
    columns = [str(field.column) for field in _FIELDS]
    line = f"({', '.join(['%s'] * len(columns))})"
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns if column != "id")
    statement = (
        f"INSERT INTO {_TABLE} ({', '.join(columns)}) VALUES {', '.join([line] * len(rows))} "  # noqa: S608
        f"ON CONFLICT (id) DO UPDATE SET {updates} WHERE excluded.revision > {_TABLE}.revision"
    )
    values = [field.get_db_prep_save(getattr(row, field.attname), connection) for row in rows for field in _FIELDS]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
