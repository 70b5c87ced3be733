"""Filters of lists that may be long: typed texts and spans of time, where a list of choices would read the table.

Pages of a long list by keyset: each begins where the one before ended, so that none counts or skips rows.

The list is ordered by time and primary key, newest first. `older` and `newer` in the address hold the place to go on
from (see core.keyset).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin import ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, QueryDict
from django.utils import timezone

from accounts.admin.base import ReadOnlyAdmin
from core.keyset import Place, stretch
from core.times import read_moment

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


OLDER, NEWER = "older", "newer"


class KeysetPaginator(Paginator):  # type: ignore[type-arg]  # Django's is not generic at run time
    """Django's paginator under the template that shows Newest, Newer and Older."""

    template_name = "admin/keyset_pagination.html"


@dataclass(frozen=True, slots=True)
class Searched:
    """What was looked through for a page that is not full: so many rows, back (or on) to that of a moment."""

    rows: int
    moment: datetime
    url: str
    is_newer: bool


class KeysetChangeList(ChangeList):
    """One page of a list; it reads one row more than it shows, to know whether there are others.

    Filters may select so few rows that most of a long list would be read for a page. What no index answers is
    therefore searched for among `search_rows` rows at a time (see KeysetAdmin): the page shows what was found there,
    says how far it looked (`searched`), and its neighbour goes on from there.
    """

    older_url = newer_url = newest_url = ""
    searched: Searched | None = None

    def __init__(self, request: HttpRequest, *args: Any) -> None:
        parameters = _without_nul(request.GET)
        self._older_than = parameters.pop(OLDER, [""])[-1]
        self._newer_than = parameters.pop(NEWER, [""])[-1]
        request.GET = parameters  # type: ignore[assignment]  # a new search or filter begins at the newest row again
        super().__init__(request, *args)

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, and make the addresses of its neighbours."""
        is_newer, start = bool(self._newer_than), self._newer_than or self._older_than
        after = self._parse(start) if start else None
        last = self._search_end(request, after, is_newer=is_newer)
        rows = list(stretch(self.queryset, self._time, after, last, is_newer=is_newer)[: self.list_per_page + 1])
        is_full = len(rows) > self.list_per_page
        rows = rows[: self.list_per_page]
        further = self._place(rows[-1]) if is_full else last
        if is_newer:
            rows.reverse()
            self._link(older=self._place(rows[-1]) if rows else None, newer=further)
        else:
            self._link(older=further, newer=self._place(rows[0]) if rows and start else None)
        self.newest_url = self.get_query_string() if self.newer_url or (start and not is_newer) else ""
        if last is not None and not is_full:
            url = self.newer_url if is_newer else self.older_url
            self.searched = Searched(self._admin.search_rows or 0, last.at, url, is_newer)
        self.result_list = rows
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = self.multi_page = False
        self.paginator = KeysetPaginator(rows, self.list_per_page)

    def _link(self, *, older: Place | None, newer: Place | None) -> None:
        if older is not None:
            self.older_url = self.get_query_string({OLDER: str(older)})
        if newer is not None:
            self.newer_url = self.get_query_string({NEWER: str(newer)})

    def _search_end(self, request: HttpRequest, after: Place | None, *, is_newer: bool) -> Place | None:
        """Return the last row that is searched; None where an index finds the rows, or no more are there."""
        most = self._admin.search_rows
        asked = {name for name, values in self.get_filters_params().items() if any(values)}
        if most is None or self.query or not asked:
            return None
        indexed = [each for each in self.filter_specs if isinstance(each, IndexedFilter) and each.value()]
        times = [each for each in self.filter_specs if isinstance(each, TimeFilter)]
        quick = [each for each in indexed if each.is_indexed()][:1]
        if not asked.difference(*(spec.expected_parameters() for spec in (*times, *quick))):
            return None
        rows: QuerySet[Any] = self.root_queryset
        for spec in (*quick, *times):
            rows = cast("QuerySet[Any]", spec.queryset(request, rows))
        places = stretch(rows, self._time, after, is_newer=is_newer).values_list(self._time, "pk")
        found = list(places[most - 1 : most + 1])
        return Place(*found[0]) if len(found) == 2 else None

    @property
    def _admin(self) -> KeysetAdmin:
        return cast("KeysetAdmin", self.model_admin)

    @property
    def _time(self) -> str:
        return self._admin.time_column

    def _place(self, row: Any) -> Place:
        return Place(getattr(row, self._time), row.pk)

    def _parse(self, text: str) -> Place:
        try:
            return Place.parse(text, self.model)
        except (ValueError, ValidationError) as error:
            raise IncorrectLookupParameters(error) from error


def _without_nul(address: QueryDict) -> QueryDict:
    """Copy parameters without NUL: PostgreSQL refuses texts with it."""
    copied = address.copy()
    for name, values in copied.lists():
        copied.setlist(name, [value.replace("\0", "") for value in values])
    return copied


class KeysetAdmin(ReadOnlyAdmin):
    """Pages for looking at a log: read-only, by keyset.

    `time_column` says when a row came. A list that may be long names how many rows a page looks through.
    """

    list_per_page = 50
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    sortable_by = ()
    paginator = KeysetPaginator
    list_after_template = "admin/keyset_searched.html"
    time_column = "at"
    search_rows: int | None = None

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Use the keyset."""
        return KeysetChangeList
