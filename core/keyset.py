"""Lists in order of time: where a page or a batch ends, and what comes after it. None counts or skips rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from django.db.models import Model, QuerySet

from core.times import read_moment

M = TypeVar("M", bound=Model)


class Place(NamedTuple):
    """A row's place in a list that is ordered by a column of time and, of one time, by the primary key."""

    at: datetime
    key: Any

    def __str__(self) -> str:
        return f"{self.at.isoformat()}~{self.key}"

    @classmethod
    def parse(cls, text: str, model: type[Model]) -> Place:
        """Parse what `str` made of a place; raises ValueError or Django's ValidationError for any other text."""
        moment, _, key = text.partition("~")
        return cls(read_moment(moment), model._meta.pk.to_python(key))


def stretch(
    rows: QuerySet[M], column: str, after: Place | None = None, until: Place | None = None, *, is_newer: bool = True
) -> QuerySet[M]:
    """Select the rows after one place up to another (included), from old to new or back; None leaves an end open.

    The comparisons with the time alone are what an index of (column, primary key) answers.
    """
    forth, back, sign = ("gt", "lt", "") if is_newer else ("lt", "gt", "-")
    if after is not None:
        rows = rows.filter(**{f"{column}__{forth}e": after.at}).exclude(**{column: after.at, f"pk__{back}e": after.key})
    if until is not None:
        rows = rows.filter(**{f"{column}__{back}e": until.at}).exclude(**{column: until.at, f"pk__{forth}": until.key})
    return closest_first(rows).order_by(f"{sign}{column}", f"{sign}pk")


def closest_first(rows: QuerySet[M]) -> QuerySet[M]:
    """Put the conditions first that were added last: of several bounds of a column SQLite searches by the first."""
    rows = rows.all()
    rows.query.where.children.reverse()
    return rows
