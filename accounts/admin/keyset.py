"""Pages of a long list by keyset: each begins where the one before ended, so that none counts or skips rows.

The list is ordered by its primary key, newest first. `older` and `newer` in the address hold the key to go on from.
"""

from __future__ import annotations

from typing import Any

from django.contrib.admin import ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin.base import ReadOnlyAdmin

OLDER, NEWER = "older", "newer"


class KeysetPaginator(Paginator):  # type: ignore[type-arg]  # Django's is not generic at run time
    """Django's paginator under the template that shows Newest, Newer and Older."""

    template_name = "admin/keyset_pagination.html"


class KeysetChangeList(ChangeList):
    """One page of a list; it reads one row more than it shows, to know whether there are others."""

    older_url = newer_url = newest_url = ""

    def __init__(self, request: HttpRequest, *args: Any) -> None:
        parameters = request.GET.copy()
        self._older_than = parameters.pop(OLDER, [""])[-1]
        self._newer_than = parameters.pop(NEWER, [""])[-1]
        request.GET = parameters  # type: ignore[assignment]  # a new search or filter begins at the newest row again
        super().__init__(request, *args)

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, and make the addresses of its neighbours."""
        if self._newer_than:
            rows, has_newer = self._rows(self.queryset.filter(pk__gt=self._key(self._newer_than)).order_by("pk"))
            rows, has_older = rows[::-1], True
        else:
            queryset = self.queryset.order_by("-pk")
            if self._older_than:
                queryset = queryset.filter(pk__lt=self._key(self._older_than))
            (rows, has_older), has_newer = self._rows(queryset), bool(self._older_than)
        self._link(rows, has_older=has_older, has_newer=has_newer)
        self.result_list = rows
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = self.multi_page = False
        self.paginator = KeysetPaginator(rows, self.list_per_page)

    def _rows(self, queryset: QuerySet[Any]) -> tuple[list[Any], bool]:
        rows = list(queryset[: self.list_per_page + 1])
        return rows[: self.list_per_page], len(rows) > self.list_per_page

    def _link(self, rows: list[Any], *, has_older: bool, has_newer: bool) -> None:
        if rows and has_older:
            self.older_url = self.get_query_string({OLDER: str(rows[-1].pk)})
        if rows and has_newer:
            self.newer_url = self.get_query_string({NEWER: str(rows[0].pk)})
        if has_newer:
            self.newest_url = self.get_query_string()

    def _key(self, text: str) -> Any:
        try:
            return self.model._meta.pk.to_python(text)
        except ValidationError as error:
            raise IncorrectLookupParameters(error) from error


class KeysetAdmin(ReadOnlyAdmin):
    """Pages for looking at a log: read-only, by keyset."""

    list_per_page = 50
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    sortable_by = ()
    paginator = KeysetPaginator

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Use the keyset."""
        return KeysetChangeList
