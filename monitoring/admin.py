"""The request log in the admin: read-only, filtered, paged without counting rows, and exported as it is filtered.

The page of a record also shows what its error code means, the time by stage, and the logged prompt and answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.admin.base import Fieldsets, action, actor_of, column, display
from accounts.admin.lists import IndexedFilter, KeysetAdmin, TextFilter, TimeFilter
from accounts.audit import audit_event
from accounts.models import Account, ApiKey
from core.errors import ApiError
from monitoring.admin_export import file_response, usage_export_page
from monitoring.admin_log import SEARCHED, chips, histogram, quick_filters, ranges, rows
from monitoring.admin_report import report_page, statement_page
from monitoring.export import COLUMNS, Format, record_batches
from monitoring.models import FOUND, OUTCOMES, Outcome, RequestRecord, outcome_of
from monitoring.payload_log import content_of
from monitoring.selectors import ids_with_prefix

#: Display names of the stages.
STAGES = {
    "limits": "limits: reserving and settling",
    "cache": "cache",
    "flight": "waiting for an identical request",
    "upstream": "provider (of a stream: to its first byte)",
}


def _kinds(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


#: Messages of the error codes that callers get.
PUBLIC_MESSAGES = {kind.code: kind.message for kind in _kinds(ApiError)}
#: The same, with the error codes that only records have.
MESSAGES = {
    **PUBLIC_MESSAGES,
    "upstream_busy": "No deployment took the call: see why attempts failed.",
    "client_left": "The client closed the connection before the answer was complete.",
    "interrupted": "The process ended while the call ran; it was charged its bound.",
}

#: What a record's page shows beside the model's fields. CONTENT_FIELDS need a permission.
EXPLAINED_FIELDS = ("reason", "stage_times", "attempt_failures")
CONTENT_FIELDS = ("prompt", "answer")
STATUS_BADGES = {
    str(Outcome.OK): "success",
    str(Outcome.LIMITED): "warning",
    str(Outcome.INVALID): "info",
    str(Outcome.FAILED): "danger",
}


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


def _milliseconds(time: float | None) -> str:
    return "—" if time is None else f"{time:,.0f} ms"


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
    actions_list = ("export_usage",)
    search_fields = ("label",)
    search_help_text = "Request id, or its beginning"
    time_column, search_rows = "admitted_at", SEARCHED
    fieldsets: ClassVar[Fieldsets] = (
        ("What happened", {"fields": ("when", "status", "reason", "latency", "first_token", "count")}),
        ("Stage by stage", {"fields": ("stage_times", "attempts", "attempt_failures")}),
        ("Caller and target", {"fields": ("account", "key", "endpoint", "model", "deployment")}),
        (
            "What it used",
            {"fields": ("input_tokens", "cached_tokens", "output_tokens", "cost", "usage_source", "cache", "flags")},
        ),
        ("Ids", {"fields": ("id", "label", "revision")}),
    )
    readonly_fields = ("when", "latency", "first_token", "account", "key", "flags", *EXPLAINED_FIELDS, *CONTENT_FIELDS)

    when = column("when (UTC)", lambda record: f"{record.admitted_at:%Y-%m-%d %H:%M:%S}")
    account = column("account", lambda record: _link("account", record.account_id, record.account_name))
    key = column("key", lambda record: _link("apikey", record.key_id, record.key_name))
    tokens = column("tokens in + out", lambda record: f"{record.input_tokens:,} + {record.output_tokens:,}")
    latency = column("latency", lambda record: _milliseconds(record.latency_ms))
    first_token = column("first token", lambda record: _milliseconds(record.first_token_ms))
    attempt_failures = column("why attempts failed", lambda record: record.failures or "none failed")
    prompt = column("prompt", lambda record: _content(record, "prompt"))
    answer = column("answer", lambda record: _content(record, "answer"))

    @display(description="cost")
    def price(self, record: RequestRecord) -> str:
        """Return the cost in US dollars with six decimals, or `unknown`."""
        if record.cost is None:
            return "unknown"
        return f"${record.cost:.6f}" if record.cost else "—"

    def get_fieldsets(self, request: HttpRequest, obj: RequestRecord | None = None) -> Fieldsets:
        """Add prompt and answer for users with the permission to view request contents."""
        if not request.user.has_perm("monitoring.view_requestcontent"):
            return self.fieldsets
        return (*self.fieldsets, ("Content", {"fields": CONTENT_FIELDS}))

    def get_urls(self) -> list[Any]:
        """Add the export, whose query is that of the list, and the usage report with its statements."""
        view = self.admin_site.admin_view
        return [
            path("export/", view(self.export_view), name="monitoring_requestrecord_export"),
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
        response.context_data |= {"rows": list(rows(changelist)), "chips": list(chips(changelist))}
        response.context_data["origin"] = request.build_absolute_uri("/").rstrip("/")
        if is_tail:
            response.template_name = "admin/monitoring/log_rows.html"
            return response
        shown = histogram(changelist, request)
        response.context_data |= {
            "histogram": shown,
            "quick_filters": list(quick_filters(changelist, shown.counts if shown else {})),
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

    @action(description="Export usage", permissions=["export"], icon="summarize", url_path="export-usage")
    def export_usage(self, request: HttpRequest) -> HttpResponseBase:
        """Show the page that exports usage as a file; raises PermissionDenied."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return usage_export_page(self, request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[RequestRecord], search_term: str
    ) -> tuple[QuerySet[RequestRecord], bool]:
        """Find records by the beginning of their id, or by exact label (the X-Request-ID that the caller saw)."""
        term = search_term.strip()
        if not term:
            return queryset, False
        return queryset.filter(Q(label=term) | Q(pk__in=ids_with_prefix(term))), False

    @display(description="outcome", label=STATUS_BADGES)
    def outcome(self, record: RequestRecord) -> tuple[str, str]:
        """Return status and error code, and how many refusals the record stands for."""
        times = f"({record.count:,} times)" if record.count > 1 else ""
        return outcome_of(record.status), " ".join(filter(None, (str(record.status), record.error_code, times)))

    @display(description="why")
    def reason(self, record: RequestRecord) -> SafeString:
        """Return the error code with its message, and a link to advice if callers get the code."""
        code = record.error_code
        if not code:
            return SafeString("—")
        message = MESSAGES.get(code)
        text = f"{code}: {message}" if message else code
        if code not in PUBLIC_MESSAGES:
            return format_html("{}", text)
        url = f"{reverse('playground')}#code-{code}"
        advice = '{} <a class="text-primary-600 dark:text-primary-500 underline" href="{}">What to do about it</a>'
        return format_html(advice, text, url)

    @display(description="time by stage")
    def stage_times(self, record: RequestRecord) -> SafeString:
        """Return a table of the time by stage (ms), with the rest of the latency in the last row."""
        named = [part.partition("=") for part in record.stages.split()]
        times = [(STAGES.get(name, name), float(spent)) for name, _, spent in named]
        if not times:
            return SafeString("not recorded")
        rest = max(0.0, record.latency_ms - sum(spent for _, spent in times))
        rows = format_html_join(
            "",
            '<tr><td class="pr-6">{}</td><td class="text-right whitespace-nowrap">{} ms</td></tr>',
            ((name, f"{spent:,.1f}") for name, spent in [*times, ("the rest, a stream's running time included", rest)]),
        )
        return format_html("<table>{}</table>", rows)

    @display(description="remarks")
    def flags(self, record: RequestRecord) -> str:
        """Return remarks: a partial answer, or more billed than the bound."""
        partial = "the answer was interrupted" if record.is_partial else ""
        overrun = "the provider billed more than the bound" if record.is_overrun else ""
        return "; ".join(text for text in (partial, overrun) if text) or "none"


def _link(model: str, pk: int, text: str) -> SafeString:
    url = reverse(f"admin:accounts_{model}_change", args=[pk])
    return format_html('<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>', url, text)


def _content(record: RequestRecord, part: str) -> SafeString:
    """Return the logged `prompt` or `answer` (the `part`) as HTML, or the reason why there is none."""
    content = content_of(record.pk)
    if content is None:
        logs = Account.objects.filter(pk=record.account_id, logs_content=True).exists()
        return SafeString("not logged, or expired" if logs else "not logged: content logging is off for this account")
    text = getattr(content, part)
    if not text:
        return SafeString("there was no answer")
    return format_html(
        '<pre class="max-h-80 overflow-auto text-xs" style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>'
        '<p class="text-subtle text-xs">Will not be shown after {} UTC.{}</p>',
        text,
        f"{content.expires_at:%Y-%m-%d %H:%M}",
        " Cut at CONTENT_MAX_BYTES." if content.is_cut else "",
    )
