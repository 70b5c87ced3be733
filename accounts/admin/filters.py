"""Filters of lists that may be long: typed texts and spans of time, where a list of choices would read the table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.moments import read_moment

RELATIVE = re.compile(r"-(\d{1,4})([hd])\Z")
ENDS = ("from", "until")
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}
SPANS = {"-1h": "Last hour", "-24h": "Last 24 hours", "-7d": "Last 7 days", "-30d": "Last 30 days"}


class IndexedFilter(admin.SimpleListFilter):
    """A filter whose rows an index has in the list's order: those of a page are found without passing by others."""

    def is_indexed(self) -> bool:
        """Say whether that is so of what it is set to."""
        return True


class TextFilter(admin.SimpleListFilter):
    """A text that is typed; subclasses say what it selects."""

    template = "admin/text_filter.html"
    placeholder = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer no choices."""
        return []

    def value(self) -> str | None:
        """Return what was typed, without NUL: PostgreSQL refuses texts with it."""
        return (super().value() or "").replace("\0", "") or None

    def has_output(self) -> bool:
        """Show the filter although it has no choices."""
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Give the template what it needs."""
        yield {
            "name": self.parameter_name,
            "value": self.value() or "",
            "placeholder": self.placeholder,
            "hidden": other_parameters(changelist, [self.parameter_name]),
            "without": changelist.get_query_string(remove=[str(self.parameter_name)]),
        }


class TimeFilter(admin.ListFilter):
    """A span of time in UTC: `from` and `until` (not included), as moments or, such as `-24h` and `-7d`, before now.

    It selects by the admin's `time_column`.
    """

    title = "time"
    template = "admin/time_filter.html"
    parameters = ENDS

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: type[Model], model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self._column = model_admin.time_column
        for name in ENDS:
            if name in params:
                self.used_parameters[name] = params.pop(name)[-1]

    def expected_parameters(self) -> list[str | None]:
        """Name the parameters of the address."""
        return list(ENDS)

    def has_output(self) -> bool:
        """Show the filter always."""
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Offer spans up to now, and give the template what its form needs."""
        begin, end = self._typed()
        yield {
            "spans": [
                (text, changelist.get_query_string({"from": span}, ["until"]), begin == span and not end)
                for span, text in SPANS.items()
            ],
            "fields": [("from", "From", begin), ("until", "Until (not included)", end)],
            "is_set": begin or end,
            "hidden": other_parameters(changelist, ENDS),
            "without": changelist.get_query_string(remove=list(ENDS)),
        }

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Apply both ends where they are given."""
        begin, end = (parse_moment(text) for text in self._typed())
        if begin is not None:
            queryset = queryset.filter(**{f"{self._column}__gte": begin})
        return queryset if end is None else queryset.filter(**{f"{self._column}__lt": end})

    def _typed(self) -> tuple[str, str]:
        begin, end = (str(self.used_parameters.get(name, "")) for name in ENDS)
        return begin, end


def parse_moment(text: str) -> datetime | None:
    """Read a moment in UTC: ISO 8601, or so many hours or days before now; an empty text is None.

    Raises IncorrectLookupParameters, which the admin answers with a message, for anything else.
    """
    if not text:
        return None
    relative = RELATIVE.match(text)
    if relative:
        return timezone.now() - int(relative[1]) * UNITS[relative[2]]
    try:
        return read_moment(text)
    except ValueError:
        raise IncorrectLookupParameters(f"{text} is no moment") from None


def other_parameters(changelist: ChangeList, own: Sequence[str | None]) -> list[tuple[str, str]]:
    """List the other filters' parameters, which a filter's form sends along."""
    items = changelist.filter_params.items()
    return [(name, value) for name, values in items if name not in own for value in values]
