"""Writes usage records to the database: one row for each id, with the highest revision, however often it is written.

The rollups are updated in the same transaction, and each record counts exactly once: an inserted record is added; a
replaced record, read under a lock, is subtracted; a record that was stored already changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import QuerySet

from accounts.limits.records import FIELDS, UsageRecord
from core.bulk import insert_lines
from core.database import REQUEST_SECONDS, query_timeout
from core.money import NANO_DOLLARS
from monitoring.models import RequestRecord
from monitoring.rollups.store import Change, rollups_apply

_FIELDS = RequestRecord._meta.concrete_fields
_COLUMNS = [str(field.column) for field in _FIELDS]
_TABLE = RequestRecord._meta.db_table
_UNLESS_KNOWN = "ON CONFLICT (id) DO NOTHING RETURNING id"
_values = attrgetter(*(field.attname for field in _FIELDS))


def write_record(record: UsageRecord) -> None:
    """Write one record. The limits call this for each record while the store is down."""
    with query_timeout(REQUEST_SECONDS):
        write_records([record])


def write_records(records: Sequence[UsageRecord]) -> int:
    """Write records and update the rollups; return the number of different ids.

    Idempotent: a record that is stored already changes nothing; one with a higher revision replaces it.
    """
    newest: dict[str, UsageRecord] = {}  # by id: one statement can't write a row twice
    for record in records:
        if record.id not in newest or newest[record.id].revision < record.revision:
            newest[record.id] = record
    rows = {row.id: row for row in map(as_row, newest.values())}
    if not rows:
        return 0
    with transaction.atomic(), connection.cursor() as cursor:
        # In order of ids, so that two writers of the same records don't deadlock.
        lines = [_line(rows[identifier]) for identifier in sorted(rows)]
        found = insert_lines(cursor, _TABLE, _COLUMNS, lines, _UNLESS_KNOWN)
        inserted = {pk if isinstance(pk, UUID) else UUID(pk) for (pk,) in found}
        changes = [Change(None, rows[identifier]) for identifier in inserted]
        if older := [identifier for identifier in rows if identifier not in inserted]:
            known = RequestRecord.objects.select_for_update().filter(pk__in=older).order_by("pk")
            for stored in known:
                if stored.revision < rows[stored.pk].revision:
                    rows[stored.pk].save(force_update=True)
                    changes.append(Change(stored, rows[stored.pk]))
        rollups_apply(changes)
    return len(rows)


def delete_records(records: QuerySet[RequestRecord]) -> int:
    """Delete records, and take them out of the rollups; return their number. Nothing may write them again."""
    with transaction.atomic():
        stored = list(records.select_for_update())
        RequestRecord.objects.filter(pk__in=[record.pk for record in stored]).delete()
        rollups_apply(Change(record, None) for record in stored)
    return len(stored)


def _line(row: RequestRecord) -> tuple[Any, ...]:
    if connection.vendor == "postgresql":  # psycopg knows the types itself, and is faster
        return _values(row)
    return tuple(field.get_db_prep_save(getattr(row, field.attname), connection) for field in _FIELDS)


MICROSECONDS = 1_000_000


def as_row(record: UsageRecord) -> RequestRecord:
    """Return the unsaved row of a record; raises ValueError or TypeError if a field is malformed."""
    values = {name: getattr(record, name) for name in FIELDS}
    values |= {
        "id": UUID(record.id),
        "admitted_at": datetime.fromtimestamp(record.admitted_at / MICROSECONDS, tz=UTC),
        "cost": None if record.cost is None else Decimal(record.cost) / NANO_DOLLARS,
        "saved_cost": Decimal(record.saved_cost) / NANO_DOLLARS,
        "stages": record.stages[:200],
        "failures": record.failures[:500],
    }
    return RequestRecord(**values)
