"""Files of the admin, and the page "Export usage": usage by time and by account, key, model or endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from accounts.admin.base import ModelAdmin, actor_of, page
from accounts.audit import audit_event
from accounts.models import Account
from monitoring.export import KIND, Format, Row, encoded, usage_batches, usage_columns
from monitoring.rollups.periods import Unit, month_begin
from monitoring.rollups.queries import GROUPS, TooOld

TEMPLATE = "admin/monitoring/usage_export.html"
FORMATS = {Format.CSV: "CSV, for a spreadsheet", Format.JSONL: "JSON Lines, for a program"}


class UsageExportForm(forms.Form):
    """The span, grouping and file format of an export."""

    begin = forms.DateTimeField(
        label="From",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "2026-01-31 or 2026-01-31 14:00"}),
        help_text="UTC. Leave empty for the beginning of this month.",
    )
    end = forms.DateTimeField(
        label="Until",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "2026-02-28 or 2026-02-28 14:00"}),
        help_text="UTC, not included. Leave empty for now. Usage is kept by the quarter hour.",
    )
    unit = forms.TypedChoiceField(
        label="Group by time",
        coerce=Unit,
        choices=[(str(unit), f"{unit} (UTC)") for unit in Unit],
        initial=str(Unit.DAY),
        widget=UnfoldAdminSelectWidget,
    )
    by = forms.ChoiceField(
        label="Split by", choices=[(name, name) for name in GROUPS], initial="account", widget=UnfoldAdminSelectWidget
    )
    account = forms.CharField(
        required=False, widget=UnfoldAdminTextInputWidget, help_text="Its slug. Leave empty for all accounts."
    )
    file_format = forms.TypedChoiceField(
        label="File",
        coerce=Format,
        choices=[(str(each), text) for each, text in FORMATS.items()],
        initial=str(Format.CSV),
        widget=UnfoldAdminRadioSelectWidget,
    )
    is_packed = forms.BooleanField(label="Compress with gzip", required=False, widget=UnfoldBooleanWidget)

    def clean_account(self) -> Account | None:
        """Return the account of that name; None if the field is empty."""
        name = self.cleaned_data["account"]
        account = Account.objects.filter(name=name).first() if name else None
        if name and account is None:
            raise ValidationError("No account has this name.")
        return account

    def clean(self) -> dict[str, Any]:
        """Fill in the default span; reject one that does not end after it begins."""
        now, wanted = timezone.now(), self.cleaned_data
        begin: datetime = wanted.get("begin") or month_begin(now)
        end: datetime = wanted.get("end") or now
        if not self.errors and begin >= end:
            self.add_error("end", "It ends before it begins.")
        return {**wanted, "begin": begin, "end": end}


def usage_export_page(model_admin: ModelAdmin, request: HttpRequest) -> HttpResponseBase:
    """Show the form (the query parameter `account` fills that field), or answer a valid POST with the file."""
    form = UsageExportForm(request.POST or None, initial={"account": request.GET.get("account", "")})
    if form.is_valid():
        wanted = form.cleaned_data
        unit, by, account = wanted["unit"], wanted["by"], wanted["account"]
        try:
            batches = usage_batches(
                begin=wanted["begin"], end=wanted["end"], unit=unit, by=by, account_id=account.pk if account else None
            )
        except TooOld as error:
            form.add_error("begin", str(error))
        else:
            file_format, is_packed = wanted["file_format"], wanted["is_packed"]
            details = {name: str(wanted[name]) for name in ("begin", "end", "unit", "by") if wanted[name]}
            details |= {"format": file_format, "gzip": is_packed, **({"account": account.name} if account else {})}
            audit_event(actor=actor_of(request), action="exported", kind=KIND, details=details)
            return file_response(
                usage_columns(by), batches, f"usage-by-{unit}-and-{by}", file_format, is_packed=is_packed
            )
    back_url = reverse("admin:usage_report")
    return page(model_admin, request, TEMPLATE, "Export usage", {"form": form, "back_url": back_url})


def file_response(
    columns: Sequence[str], batches: Iterable[Sequence[Row]], name: str, file_format: Format, *, is_packed: bool
) -> StreamingHttpResponse:
    """Stream rows as a file; append the time (UTC) and the extension to its name."""
    name = f"{name}-{timezone.now():%Y%m%dT%H%M%SZ}.{file_format}{'.gz' if is_packed else ''}"
    return StreamingHttpResponse(
        encoded(columns, batches, file_format, is_packed=is_packed),
        content_type="application/gzip" if is_packed else file_format.content_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"', "X-Accel-Buffering": "no"},
    )
