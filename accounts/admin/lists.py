"""Filters and pages for long lists, without queries that read the whole table.

Filters take typed texts and time ranges instead of choices. A page is selected by keyset: it begins where the one
before ended, so that rows are neither counted nor skipped. Lists are ordered by time and primary key, newest first; the
URL parameters `older` and `newer` hold the place to continue from (see core.keyset).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

from django.contrib import admin
from django.contrib.admin import ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.admin.base import ReadOnlyAdmin
from core.formats import NOTHING
from core.keyset import Place, stretch
from core.times import parse_datetime

RELATIVE = re.compile(r"-(\d{1,4})([hd])\Z")
ENDS = ("from", "until")
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}


class IndexedFilter(admin.SimpleListFilter):
    """A filter with an index in the order of the list, so that a page is found without scanning other rows."""

    def is_indexed(self) -> bool:
        """Return whether the index covers the current value."""
        return True


class FieldFilter(admin.SimpleListFilter):
    """A filter by the field `lookup`: rows with the chosen value; without one, all rows."""

    lookup = ""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Select by the value."""
        return queryset.filter(**{self.lookup: self.value()}) if self.value() else queryset


class TextFilter(FieldFilter):
    """A filter by typed text."""

    template = "admin/text_filter.html"
    placeholder = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return no choices."""
        return []

    def value(self) -> str | None:
        """Return the typed text without NUL, which PostgreSQL refuses."""
        return (super().value() or "").replace("\0", "") or None

    def has_output(self) -> bool:
        """Show the filter although it has no choices."""
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Yield the context of the template."""
        yield {
            "name": self.parameter_name,
            "value": self.value() or "",
            "placeholder": self.placeholder,
            "hidden": other_parameters(changelist, [self.parameter_name]),
            "without": changelist.get_query_string(remove=[str(self.parameter_name)]),
        }


class TimeFilter(admin.ListFilter):
    """A time range in UTC: `from` and `until` (exclusive), as times, or relative to now such as `-24h` and `-7d`.

    It applies to the admin's `time_column`.
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
        """Return the URL parameters."""
        return list(ENDS)

    def has_output(self) -> bool:
        """Show the filter always."""
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Yield the context of the template, the fields of its form; `ranges` are buttons above the list."""
        begin, end = self._typed()
        yield {
            "fields": [("from", "From", begin), ("until", "Until (not included)", end)],
            "is_set": begin or end,
            "hidden": other_parameters(changelist, ENDS),
            "without": changelist.get_query_string(remove=list(ENDS)),
        }

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Apply those ends of the range that are given."""
        begin, end = self.span()
        if begin is not None:
            queryset = queryset.filter(**{f"{self._column}__gte": begin})
        return queryset if end is None else queryset.filter(**{f"{self._column}__lt": end})

    def span(self) -> tuple[datetime | None, datetime | None]:
        """Return the ends of the range; None for one that is open. Raises IncorrectLookupParameters."""
        begin, end = (parse_time_filter(text) for text in self._typed())
        return begin, end

    def _typed(self) -> tuple[str, str]:
        begin, end = (str(self.used_parameters.get(name, "")) for name in ENDS)
        return begin, end


def ranges(changelist: ChangeList) -> Iterator[tuple[str, str, bool]]:
    """Yield text, URL and whether it is chosen of each ready-made range of time; the first is any time."""
    chosen = tuple(changelist.filter_params.get(name, [""])[-1] for name in ENDS)
    today = timezone.now().astimezone(UTC).date()
    spans = {"Any time": ("", ""), "Last hour": ("-1h", ""), "Last 24 hours": ("-24h", "")}
    spans |= {"Today": (f"{today}", ""), "Yesterday": (f"{today - timedelta(days=1)}", f"{today}")}
    spans |= {"Last 7 days": ("-7d", ""), "Last 30 days": ("-30d", "")}
    for text, ends in spans.items():
        yield text, changelist.get_query_string({"from": ends[0] or None, "until": ends[1] or None}), chosen == ends


def chips(changelist: ChangeList, buttons: Collection[tuple[str, str]] = ()) -> Iterator[tuple[str, str, str, bool]]:
    """Yield name, value, the URL that removes it, and whether a button shows it already, of each filter that is set.

    Those of `ranges` are buttons, and so are the parameters in `buttons`.
    """
    chosen = next((text for text, _, is_set in ranges(changelist) if is_set), "")
    for spec in changelist.filter_specs:
        names = [str(name) for name in spec.expected_parameters() if name]
        values = [changelist.filter_params.get(name, [""])[-1] for name in names]
        if any(values):
            url = changelist.get_query_string(remove=names)
            if isinstance(spec, TimeFilter):
                yield str(spec.title), chosen or _span_text(*values), url, bool(chosen)
            else:
                yield str(spec.title), values[0], url, (names[0], values[0]) in buttons
    if changelist.query:
        yield "search", changelist.query, changelist.get_query_string(remove=["q"]), False


def _span_text(*ends: str) -> str:
    """Format the ends of the time filter: `from 30 Nov 02:00 UTC`."""
    times = [parse_time_filter(each) for each in ends]
    is_this_year = all(at is None or at.year == timezone.now().year for at in times)
    form = "%-d %b %H:%M" if is_this_year else "%-d %b %Y %H:%M"
    since, until = ("" if at is None else f"{at.astimezone(UTC):{form}}" for at in times)
    if since and until:
        return f"{since} {NOTHING} {until} UTC"
    return f"from {since} UTC" if since else f"until {until} UTC"


def parse_time_filter(text: str) -> datetime | None:
    """Parse a time in UTC: ISO 8601, or a number of hours or days before now; None for an empty text.

    Raises IncorrectLookupParameters for anything else; the admin answers that with a message.
    """
    if not text:
        return None
    relative = RELATIVE.match(text)
    if relative:
        return timezone.now() - int(relative[1]) * UNITS[relative[2]]
    try:
        return parse_datetime(text)
    except ValueError:
        raise IncorrectLookupParameters(f"{text} is not a time") from None


def other_parameters(changelist: ChangeList, own: Sequence[str | None]) -> list[tuple[str, str]]:
    """List the parameters of the other filters, which the form of a filter sends along."""
    items = changelist.filter_params.items()
    return [(name, value) for name, values in items if name not in own for value in values]


OLDER, NEWER = "older", "newer"


class KeysetPaginator(Paginator):  # type: ignore[type-arg]  # Django's is not generic at run time
    """A paginator with the template that shows Newest, Newer and Older."""

    template_name = "admin/keyset_pagination.html"


class Searched(NamedTuple):
    """How far the search for a page that is not full went: the number of rows, the time of the last, where to go on."""

    rows: int
    time: datetime
    url: str
    is_newer: bool


class Counted(NamedTuple):
    """The newest rows that fit the filters, and the time since which there are these; None if there are no others."""

    rows: QuerySet[Any]
    since: datetime | None


class KeysetChangeList(ChangeList):
    """One page of a list. It reads one row more than it shows, to learn whether there are others.

    A filter may select so few rows that a page would read most of a long list. Without a matching index, a page
    therefore searches only `search_rows` rows (see KeysetAdmin). It shows what was found and how far it searched
    (`searched`), and the next page continues from there.
    """

    model_admin: KeysetAdmin
    older_url = newer_url = newest_url = ""
    searched: Searched | None = None

    def __init__(self, request: HttpRequest, *args: Any) -> None:
        parameters = request.GET.copy()
        for name, values in parameters.lists():
            parameters.setlist(name, [value.replace("\0", "") for value in values])  # PostgreSQL refuses NUL
        self._older_than = parameters.pop(OLDER, [""])[-1]
        self._newer_than = parameters.pop(NEWER, [""])[-1]
        request.GET = parameters  # type: ignore[assignment]  # a new search or filter starts at the newest row
        super().__init__(request, *args)

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, and set the URLs of its neighbours."""
        is_newer, start, column = bool(self._newer_than), self._newer_than or self._older_than, self._column
        try:
            after = Place.parse(start, self.model) if start else None
        except (ValueError, ValidationError) as error:
            raise IncorrectLookupParameters(error) from error
        last = self._search_end(request, after, is_newer=is_newer)
        rows = list(stretch(self.queryset, column, after, last, is_newer=is_newer)[: self.list_per_page + 1])
        is_full = len(rows) > self.list_per_page
        rows = rows[: self.list_per_page]
        places = [Place(getattr(row, column), row.pk) for row in rows]
        further = places[-1] if is_full else last
        begin = places[0] if places and start else None
        older, newer = (begin, further) if is_newer else (further, begin)
        self.older_url, self.newer_url = (
            self.get_query_string({name: str(place)}) if place else ""
            for name, place in ((OLDER, older), (NEWER, newer))
        )
        self.newest_url = self.get_query_string() if self.newer_url or (start and not is_newer) else ""
        if last is not None and not is_full:
            url = self.newer_url if is_newer else self.older_url
            self.searched = Searched(self.model_admin.search_rows or 0, last.at, url, is_newer)
        self.result_list = rows[::-1] if is_newer else rows
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = self.multi_page = False
        self.paginator = KeysetPaginator(rows, self.list_per_page)

    def counted(self, request: HttpRequest, begin: datetime, most: int) -> Counted:
        """Return the rows of all pages since a time, from the newest on, so that at most `most` rows are read."""
        column = self._column
        rows = self.queryset.filter(**{f"{column}__gte": begin})
        last = self._search_end(request, None, is_newer=False)
        if last is None:  # an index finds the rows
            at = stretch(rows, column, is_newer=False).values_list(column, flat=True)[most - 1 : most].first()
        else:
            at = last.at if last.at > begin else None
        return Counted(rows if at is None else rows.filter(**{f"{column}__gte": at}), at)

    def _search_end(self, request: HttpRequest, after: Place | None, *, is_newer: bool) -> Place | None:
        """Return the last row to search; None if an index finds the rows, or fewer rows are left."""
        limit = self.model_admin.search_rows
        filtered_by = {name for name, values in self.get_filters_params().items() if any(values)}
        if limit is None or self.query or not filtered_by:
            return None
        indexed = [
            each for each in self.filter_specs if isinstance(each, IndexedFilter) and each.value() and each.is_indexed()
        ]
        by_index = [*indexed[:1], *(each for each in self.filter_specs if isinstance(each, TimeFilter))]
        if not filtered_by.difference(*(each.expected_parameters() for each in by_index)):
            return None
        rows: QuerySet[Any] = self.root_queryset
        for each in by_index:
            rows = cast("QuerySet[Any]", each.queryset(request, rows))
        places = stretch(rows, self._column, after, is_newer=is_newer).values_list(self._column, "pk")
        last_and_next = list(places[limit - 1 : limit + 1])
        return Place(*last_and_next[0]) if len(last_and_next) == 2 else None

    @property
    def _column(self) -> str:
        return self.model_admin.time_column


class KeysetAdmin(ReadOnlyAdmin):
    """Read-only pages of a log, by keyset.

    `time_column` is the field with a row's time. `search_rows` is how many rows a page of a long list searches at most.
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
        """Use KeysetChangeList."""
        return KeysetChangeList
