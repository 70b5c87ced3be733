"""Keyset pagination of lists ordered by time, without COUNT or OFFSET."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from django.db.models import Model, QuerySet

from core.times import parse_datetime

M = TypeVar("M", bound=Model)


class Place(NamedTuple):
    """A row's position in a list that is ordered by a datetime column and then by the primary key."""

    at: datetime
    key: Any

    def __str__(self) -> str:
        return f"{self.at.isoformat()}~{self.key}"

    @classmethod
    def parse(cls, text: str, model: type[Model]) -> Place:
        """Parse the `str` form of a place. Raises ValueError or Django's ValidationError for any other text."""
        at, _, key = text.partition("~")
        return cls(parse_datetime(at), model._meta.pk.to_python(key))


def stretch(
    rows: QuerySet[M], column: str, after: Place | None = None, until: Place | None = None, *, is_newer: bool = True
) -> QuerySet[M]:
    """Return the rows after place `after`, up to and including `until`, ordered by time; None leaves an end open.

    `is_newer`: from old to new, otherwise from new to old. The database can use an index on (column, primary key),
    because the range conditions compare the column alone.
    """
    forth, back, sign = ("gt", "lt", "") if is_newer else ("lt", "gt", "-")
    if after is not None:
        rows = rows.filter(**{f"{column}__{forth}e": after.at}).exclude(**{column: after.at, f"pk__{back}e": after.key})
    if until is not None:
        rows = rows.filter(**{f"{column}__{back}e": until.at}).exclude(**{column: until.at, f"pk__{forth}": until.key})
    return closest_first(rows).order_by(f"{sign}{column}", f"{sign}pk")


def closest_first(rows: QuerySet[M]) -> QuerySet[M]:
    """Reverse the order of the conditions: of several bounds of a column, SQLite uses the first for its search."""
    rows = rows.all()
    rows.query.where.children.reverse()
    return rows
