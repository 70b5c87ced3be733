"""Pages of a long list by keyset: each begins where the one before ended, so that none counts or skips rows.

The list is ordered by time and primary key, newest first. `older` and `newer` in the address hold the place to go on
from (see accounts.keyset).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from django.contrib.admin import ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, QueryDict

from accounts.admin.base import ReadOnlyAdmin
from accounts.admin.filters import IndexedFilter, TimeFilter
from accounts.keyset import Place, stretch

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
