"""Files of the admin, and the page "Export usage": usage by time and by account, key, model or endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time
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
from monitoring.rollups.periods import ONE_DAY, Unit, month_begin
from monitoring.rollups.queries import GROUPS, TooOld

TEMPLATE = "admin/monitoring/usage_export.html"
#: Accounts that the field offers; others are typed.
OFFERED = 500
FORMATS = {Format.CSV: "CSV, for a spreadsheet", Format.JSONL: "JSON Lines, for a program"}


class UsageExportForm(forms.Form):
    """The days, grouping and file format of an export."""

    first = forms.DateField(label="From", required=False, widget=UnfoldAdminTextInputWidget(attrs={"type": "date"}))
    last = forms.DateField(
        label="To",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"type": "date"}),
        help_text="Included. Days are those of UTC.",
    )
    account = forms.CharField(
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"list": "accounts", "placeholder": "all", "autocomplete": "off"}),
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
        """Return the span too: from the beginning of this month, until now, where a day is not given."""
        now, wanted = timezone.now(), self.cleaned_data
        first, last = wanted.get("first"), wanted.get("last")
        begin = _midnight(first) if first else month_begin(now)
        end = _midnight(last) + ONE_DAY if last and last < date.max else now
        if not self.errors and begin >= end:
            self.add_error("last", "It ends before it begins.")
        return {**wanted, "begin": begin, "end": end}


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def usage_export_page(model_admin: ModelAdmin, request: HttpRequest, shown: dict[str, Any]) -> HttpResponseBase:
    """Show the form with the days and account `shown` by the report, or answer a valid POST with the file."""
    form = UsageExportForm(request.POST or None, initial=shown)
    if form.is_valid():
        wanted = form.cleaned_data
        unit, by, account = wanted["unit"], wanted["by"], wanted["account"]
        try:
            batches = usage_batches(
                begin=wanted["begin"], end=wanted["end"], unit=unit, by=by, account_id=account.pk if account else None
            )
        except TooOld as error:
            form.add_error("first", str(error))
        else:
            file_format, is_packed = wanted["file_format"], wanted["is_packed"]
            details = {name: str(wanted[name]) for name in ("begin", "end", "unit", "by") if wanted[name]}
            details |= {"format": file_format, "gzip": is_packed, **({"account": account.name} if account else {})}
            audit_event(actor=actor_of(request), action="exported", kind=KIND, details=details)
            return file_response(
                usage_columns(by), batches, f"usage-by-{unit}-and-{by}", file_format, is_packed=is_packed
            )
    back_url = f"{reverse('admin:usage_report')}?{request.GET.urlencode()}"
    context = {
        "form": form,
        "accounts": Account.objects.order_by("name").only("name", "display_name")[:OFFERED],
        "back_url": back_url,
        "opts": None,  # the breadcrumb is the report's, not the log's
    }
    return page(model_admin, request, TEMPLATE, "Export usage", context)


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
