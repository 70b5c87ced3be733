"""Writes usage records to the database: one row for each id, with the highest revision, however often it is written.

The rollups are updated in the same transaction, and each record counts exactly once: an inserted record is added; a
replaced record, read under a lock, is subtracted; a record that was stored already changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any
from uuid import UUID

from django.db import connection, transaction

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
    """Write one record. The limits call this for each record while the store is away."""
    with query_timeout(REQUEST_SECONDS):
        write_records([record])


def write_records(records: Sequence[UsageRecord]) -> int:
    """Write records and update the rollups; return the number of different ids.

    Idempotent: a record that is stored already changes nothing; one with a higher revision replaces it.
    """
    rows = {row.id: row for row in map(as_row, newest_revisions(records))}
    if rows:
        with transaction.atomic():
            # In order of ids, so that two writers of the same records don't deadlock.
            inserted = _insert([rows[identifier] for identifier in sorted(rows)])
            changes = [Change(None, rows[identifier]) for identifier in inserted]
            rollups_apply(changes + _replace({pk: row for pk, row in rows.items() if pk not in inserted}))
    return len(rows)


def _replace(rows: Mapping[UUID, RequestRecord]) -> list[Change]:
    """Replace the stored rows of lower revision."""
    if not rows:
        return []
    known = RequestRecord.objects.select_for_update().filter(pk__in=list(rows)).order_by("pk")
    changes = [Change(old, rows[old.pk]) for old in known if old.revision < rows[old.pk].revision]
    for change in changes:
        change.new.save(force_update=True)
    return changes


def _insert(rows: Sequence[RequestRecord]) -> set[UUID]:
    """Insert the rows whose ids are new, and return these ids."""
    with connection.cursor() as cursor:
        found = insert_lines(cursor, _TABLE, _COLUMNS, [_line(row) for row in rows], _UNLESS_KNOWN)
    return {pk if isinstance(pk, UUID) else UUID(pk) for (pk,) in found}


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


def newest_revisions(records: Iterable[UsageRecord]) -> list[UsageRecord]:
    """Return the record of highest revision for each id: one statement can't write a row twice."""
    newest: dict[str, UsageRecord] = {}
    for record in records:
        known = newest.get(record.id)
        if known is None or known.revision < record.revision:
            newest[record.id] = record
    return list(newest.values())
