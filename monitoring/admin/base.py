"""Admin lists with an export button: the filtered list as a CSV or JSON Lines file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path
from django.utils import timezone

from accounts.admin.base import ModelAdmin, actor_of
from accounts.audit import audit_event
from monitoring.export import Format, Row, encoded, gzipped

FORMAT, GZIP = "format", "gzip"


class ExportingAdmin(ModelAdmin):
    """An admin list that users with the permission `export_MODEL` can export as it is filtered."""

    list_before_template = "admin/export_links.html"
    export_columns: Sequence[str] = ()
    #: Reads a queryset in batches of rows.
    export_batches: Callable[[QuerySet[Any]], Iterable[Sequence[Row]]]

    def get_urls(self) -> list[Any]:
        """Add the export URL; its query is that of the list."""
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        own: list[URLPattern] = [path("export/", self.admin_site.admin_view(self.export_view), name=name)]
        return [*own, *super().get_urls()]

    def has_export_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Return whether the user may export this model."""
        return request.user.has_perm(f"{self.opts.app_label}.export_{self.opts.model_name}")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the list, with export links for users who may export."""
        context = {**(extra_context or {}), "may_export": self.has_export_permission(request)}
        return super().changelist_view(request, context)

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """Stream all pages of the filtered list, oldest first, and write an audit entry.

        Raises PermissionDenied. Redirects to the list if a parameter is invalid.
        """
        if not (self.has_export_permission(request) and self.has_view_permission(request)):
            raise PermissionDenied
        parameters = request.GET.copy()
        asked, is_packed = parameters.pop(FORMAT, [Format.CSV])[-1], bool(parameters.pop(GZIP, []))
        request.GET = parameters  # type: ignore[assignment]  # only the list's own parameters are left
        try:
            file_format, queryset = Format(asked), self.get_changelist_instance(request).queryset
        except (ValueError, IncorrectLookupParameters):
            return HttpResponseRedirect("../?e=1")
        filters = {name: values[-1] for name, values in request.GET.lists()}
        details = {"format": file_format, "filters": filters, "gzip": is_packed}
        audit_event(actor=actor_of(request), action="exported", kind=str(self.opts.verbose_name), details=details)
        chunks = encoded(self.export_columns, type(self).export_batches(queryset), file_format)
        name = f"{self.opts.model_name}s"
        return file_response(gzipped(chunks) if is_packed else chunks, name, file_format, is_packed=is_packed)


def file_response(chunks: Iterator[bytes], name: str, file_format: Format, *, is_packed: bool) -> StreamingHttpResponse:
    """Stream chunks as a file; append the time (UTC) and the extension to its name."""
    name = f"{name}-{timezone.now():%Y%m%dT%H%M%SZ}.{file_format}{'.gz' if is_packed else ''}"
    content_type = "application/gzip" if is_packed else file_format.content_type
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "X-Accel-Buffering": "no",
    }
    return StreamingHttpResponse(chunks, content_type=content_type, headers=headers)
