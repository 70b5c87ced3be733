"""The request log in the admin: read-only, filtered, paged without counting rows, and exported as it is filtered.

The page of a record is its story (see monitoring.admin_story).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import path

from accounts.admin.base import actor_of, found, page
from accounts.admin.lists import IndexedFilter, KeysetAdmin, TextFilter, TimeFilter, chips, ranges
from accounts.audit import audit_event
from accounts.models import Account, ApiKey
from monitoring.admin_export import file_response, usage_export_page
from monitoring.admin_log import BUTTONS, SEARCHED, histogram, quick_filters, rows
from monitoring.admin_report import report_page, report_query, statement_page
from monitoring.admin_story import story
from monitoring.export import COLUMNS, Format, record_batches
from monitoring.models import FOUND, OUTCOMES, Outcome, RequestRecord
from monitoring.selectors import ids_with_prefix


class AccountFilter(TextFilter, IndexedFilter):
    """Filters records by the account's current name."""

    title = parameter_name = "account"
    placeholder = "its name"

    def queryset(self, request: HttpRequest, queryset: QuerySet[RequestRecord]) -> QuerySet[RequestRecord]:
        """Filter by the account's id, which has an index."""
        found = Account.objects.filter(name=self.value()).values_list("pk", flat=True)
        return queryset.filter(account_id__in=list(found)) if self.value() else queryset


class KeyFilter(TextFilter, IndexedFilter):
    """Filters records by the name or the visible prefix of a key."""

    title = parameter_name = "key"
    placeholder = "its name or prefix"

    def queryset(self, request: HttpRequest, queryset: QuerySet[RequestRecord]) -> QuerySet[RequestRecord]:
        """Filter by the ids of the keys, which have an index."""
        found = ApiKey.objects.filter(Q(name=self.value()) | Q(prefix=self.value())).values_list("pk", flat=True)
        return queryset.filter(key_id__in=list(found)) if self.value() else queryset


class ModelFilter(TextFilter, IndexedFilter):
    title = parameter_name = lookup = "model"
    placeholder = "public name"


class EndpointFilter(TextFilter):
    title = parameter_name = lookup = "endpoint"
    placeholder = "such as chat"


class ErrorCodeFilter(TextFilter):
    title = "error code"
    parameter_name = lookup = "error_code"
    placeholder = "such as rate_limited"


class SlowFilter(TextFilter):
    """Filters records by minimum latency."""

    title = "latency"
    parameter_name = "slower"
    placeholder = "this many ms or more"

    def queryset(self, request: HttpRequest, queryset: QuerySet[RequestRecord]) -> QuerySet[RequestRecord]:
        """Filter by latency in ms; raises IncorrectLookupParameters if the value is not a whole number."""
        text = self.value()
        if not text:
            return queryset
        if not text.isdecimal():
            raise IncorrectLookupParameters(f"{text} is not a whole number of milliseconds")
        return queryset.filter(latency_ms__gte=float(text))  # infinity if there are too many digits


class OfferedFilter(admin.SimpleListFilter):
    """Filters by one of the values `offered`, each with a text and a condition; any other selects everything."""

    offered: ClassVar[Mapping[str, tuple[str, Q]]] = {}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the values and texts."""
        return [(value, text) for value, (text, _) in self.offered.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[RequestRecord]) -> QuerySet[RequestRecord]:
        """Filter by the condition of the value."""
        value = self.value()
        return queryset.filter(self.offered[value][1]) if value is not None and value in self.offered else queryset


class StreamFilter(OfferedFilter):
    """Filters by streamed or not: only streams have a time to the first token."""

    title = parameter_name = "stream"
    offered: ClassVar[Mapping[str, tuple[str, Q]]] = {
        "1": ("Streams", Q(first_token_ms__isnull=False)),
        "0": ("Whole answers", Q(first_token_ms__isnull=True)),
    }


class CacheFilter(OfferedFilter):
    """Filters records by cache outcome; `found` selects those that the hit rate counts as hits."""

    title = parameter_name = "cache"
    offered: ClassVar[Mapping[str, tuple[str, Q]]] = {
        "found": ("Hit or coalesced", Q(cache__in=FOUND)),
        **{value: (str(text), Q(cache=value)) for value, text in RequestRecord.Cache.choices},
    }


class StatusFilter(OfferedFilter, IndexedFilter):
    """Filters records by outcome, or by one HTTP status if the parameter is a number."""

    title = "outcome"
    parameter_name = "status"
    offered: ClassVar[Mapping[str, tuple[str, Q]]] = {
        "ok": ("Answered (2xx)", OUTCOMES[Outcome.OK]),
        "limited": ("Over a limit (429)", OUTCOMES[Outcome.LIMITED]),
        "refused": ("Refused otherwise (4xx)", OUTCOMES[Outcome.INVALID]),
        "failed": ("Failed (5xx)", OUTCOMES[Outcome.FAILED]),
    }

    def queryset(self, request: HttpRequest, queryset: QuerySet[RequestRecord]) -> QuerySet[RequestRecord]:
        """Filter by outcome or by status."""
        found = super().queryset(request, queryset)
        if status := self._status():
            found = found.filter(status=status)
        # SQLite uses the partial index only with its own condition.
        return found.filter(status__gte=HTTPStatus.BAD_REQUEST) if self.is_indexed() else found

    def is_indexed(self) -> bool:
        """Return whether an index helps: for failed, limited and single error statuses. Other outcomes are too many."""
        return self.value() in ("failed", "limited") or self._status() >= HTTPStatus.BAD_REQUEST

    def _status(self) -> int:
        """Return the status that the value is; 0 if it is none."""
        text = self.value() or ""
        return int(text) if re.fullmatch("[1-5][0-9]{2}", text) else 0


@admin.register(RequestRecord)
class RequestRecordAdmin(KeysetAdmin):
    """The request log, read-only."""

    change_list_template = "admin/monitoring/log.html"
    list_display = ("label",)  # log_rows.html has the columns
    list_filter = (
        StatusFilter,
        CacheFilter,
        AccountFilter,
        KeyFilter,
        ModelFilter,
        EndpointFilter,
        ErrorCodeFilter,
        TimeFilter,
        SlowFilter,
        StreamFilter,
    )
    list_fullwidth = True
    list_before_template = "admin/monitoring/log_before.html"
    search_fields = ("label",)
    search_help_text = "Request id, or its beginning"
    time_column, search_rows = "admitted_at", SEARCHED

    def get_urls(self) -> list[Any]:
        """Add the export, whose query is that of the list, and the usage report with its statements."""
        view = self.admin_site.admin_view
        return [
            path("export/", view(self.export_view), name="monitoring_requestrecord_export"),
            path("usage/export/", view(self.export_usage_view), name="monitoring_requestrecord_export_usage"),
            path("usage/", view(partial(report_page, self)), name="usage_report"),
            path("usage/<int:account_id>/", view(statement_page), name="usage_statement"),
            *super().get_urls(),
        ]

    def has_export_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Return whether the user may export the log and the usage."""
        return request.user.has_perm("monitoring.export_requestrecord")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the list; with `tail=1`, only the rows of its page."""
        parameters = request.GET.copy()
        is_tail = bool(parameters.pop("tail", []))
        request.GET = parameters  # type: ignore[assignment]  # only the list's own parameters are left
        response: Any = super().changelist_view(request, extra_context)
        changelist = getattr(response, "context_data", {}).get("cl")
        if changelist is None:  # invalid parameters were answered with a redirect
            return response
        response.context_data |= {"rows": list(rows(changelist)), "chips": list(chips(changelist, BUTTONS))}
        if is_tail:
            response.template_name = "admin/monitoring/log_rows.html"
            return response
        shown = histogram(changelist, request)
        ends = [*changelist.filter_params.get("from", []), *changelist.filter_params.get("until", [])]
        response.context_data |= {
            "histogram": shown,
            "is_last_day": not any(ends),
            "quick_filters": list(quick_filters(changelist, shown.counts if shown and any(ends) else {})),
            "ranges": list(ranges(changelist)),
            "may_export": self.has_export_permission(request),
        }
        return response

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """Stream all pages of the filtered list, oldest first, and write an audit entry.

        Raises PermissionDenied. Redirects to the list if a parameter is invalid.
        """
        if not (self.has_export_permission(request) and self.has_view_permission(request)):
            raise PermissionDenied
        parameters = request.GET.copy()
        asked, is_packed = parameters.pop("format", [Format.CSV])[-1], bool(parameters.pop("gzip", []))
        request.GET = parameters  # type: ignore[assignment]  # only the list's own parameters are left
        try:
            file_format, queryset = Format(asked), self.get_changelist_instance(request).queryset
        except (ValueError, IncorrectLookupParameters):
            return HttpResponseRedirect("../?e=1")
        filters = {name: values[-1] for name, values in request.GET.lists()}
        details = {"format": file_format, "filters": filters, "gzip": is_packed}
        audit_event(actor=actor_of(request), action="exported", kind=str(self.opts.verbose_name), details=details)
        return file_response(COLUMNS, record_batches(queryset), "requestrecords", file_format, is_packed=is_packed)

    def export_usage_view(self, request: HttpRequest) -> HttpResponseBase:
        """Show the page that exports usage as a file; raises PermissionDenied."""
        if not (self.has_export_permission(request) and self.has_view_permission(request)):
            raise PermissionDenied
        return usage_export_page(self, request, report_query(request))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[RequestRecord], search_term: str
    ) -> tuple[QuerySet[RequestRecord], bool]:
        """Find records by the beginning of their id, or by exact label (the X-Request-ID that the caller saw)."""
        term = search_term.strip()
        if not term:
            return queryset, False
        return queryset.filter(Q(label=term) | Q(pk__in=ids_with_prefix(term))), False

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the story of a request. Raises PermissionDenied, and Http404 if there is no such record."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        record = found(self, request, unquote(object_id))
        context = {"original": record, **story(request, record)}
        return page(self, request, "admin/monitoring/story.html", f"Request {record.pk}", context)
