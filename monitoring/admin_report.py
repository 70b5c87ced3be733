"""The admin's usage report for finance: a period by account and model, its CSV, and a statement for one account."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone

from accounts.admin.base import ModelAdmin, actor_of, page
from accounts.audit import audit_event
from accounts.models import Account
from core.formats import money
from monitoring.admin_export import file_response
from monitoring.export import KIND, Format
from monitoring.models import VIEW_RECORDS, VIEW_ROLLUPS, Alert
from monitoring.provider_usage import latest_comparisons
from monitoring.rollups.periods import EPOCH, ONE_DAY
from monitoring.usage_report import COLUMNS, CUSTOM, PERIODS, Period, Report, csv_rows, log_check, usage_report

CHOICES = {
    "this-month": "This month",
    "last-month": "Last month",
    "this-quarter": "This quarter",
    "last-quarter": "Last quarter",
    CUSTOM: "Custom",
}


class ReportForm(forms.Form):
    """The query of the report: a period, the days of a custom one, and an account's name."""

    period = forms.ChoiceField(choices=list(CHOICES.items()), required=False)
    first = forms.DateField(label="From", required=False)
    last = forms.DateField(label="To (included)", required=False)
    account = forms.CharField(required=False)

    def clean_account(self) -> Account | None:
        """Return the account of that name; None for no name."""
        name = self.cleaned_data["account"]
        account = Account.objects.filter(name=name).first() if name else None
        if name and account is None:
            raise ValidationError(f"There is no account {name[:100]}: all accounts are shown.")
        return account

    def clean(self) -> dict[str, Any]:
        """Reject days of a custom period that are missing or in the wrong order."""
        first, last = self.cleaned_data.get("first"), self.cleaned_data.get("last")
        is_custom = self.cleaned_data.get("period") == CUSTOM
        if is_custom and not (first and last and EPOCH.date() < first <= last):
            raise ValidationError("Give the first and the last day of the period: this month is shown.")
        return self.cleaned_data

    def span(self, now: datetime) -> Period:
        """Return the period: this month unless another is given."""
        valid = self.cleaned_data if self.is_valid() else {}
        name = valid.get("period") or "this-month"
        if name in PERIODS:
            return Period.named(name, now)
        begin, last = (datetime.combine(valid[each], datetime.min.time(), UTC) for each in ("first", "last"))
        return Period.custom(begin, last + ONE_DAY, now)


def may_see_usage(request: HttpRequest) -> bool:
    """Return whether the user may see the sums of all accounts: without their requests, or with them."""
    return request.user.has_perm(VIEW_ROLLUPS) or request.user.has_perm(VIEW_RECORDS)


def report_query(request: HttpRequest) -> dict[str, Any]:
    """Return the first and last day, and the name of the account, that a report's address asks for."""
    period = ReportForm(request.GET).span(timezone.now())
    return {**_days(period), "account": request.GET.get("account", "")}


def report_page(model_admin: ModelAdmin, request: HttpRequest) -> HttpResponseBase:
    """Show the report, or answer `format=csv` with a file of it. Raises PermissionDenied."""
    if not may_see_usage(request):
        raise PermissionDenied
    form = ReportForm(request.GET)
    period = form.span(timezone.now())
    account: Account | None = form.cleaned_data.get("account")
    account_id = account.pk if account else None
    if request.GET.get("format") == Format.CSV:
        details = {"begin": str(period.begin), "end": str(period.until), "by": "account, model"}
        details |= {"account": account.name} if account else {}
        audit_event(actor=actor_of(request), action="exported", kind=KIND, details=details)
        name = f"usage-{period.begin:%Y-%m-%d}-to-{period.end - ONE_DAY:%Y-%m-%d}"
        return file_response(COLUMNS, csv_rows(period, account_id), name, Format.CSV, is_packed=False)
    report = usage_report(period, account_id)
    context = {
        **_context(report.period),
        "is_fullwidth": "1",
        "opts": None,  # no breadcrumb to the log, which finance may not see
        "form": form,
        "account": account,
        "report": report,
        "check": log_check(report, account_id, is_wanted="check" in request.GET),
        "comparisons": latest_comparisons(period.begin, period.end),
        "wrong": Alert.objects.filter(kind=Alert.Kind.RECONCILIATION, ended_at=None).first(),
        "may_export": request.user.has_perms([VIEW_RECORDS, "monitoring.export_requestrecord"]),
        "may_see_alerts": request.user.has_perm("monitoring.view_alert"),
    }
    return page(model_admin, request, "admin/monitoring/usage_report.html", "Usage report", context)


def statement_page(request: HttpRequest, account_id: int) -> HttpResponse:
    """Show one account's statement of a period, to be printed. Raises PermissionDenied or Http404."""
    if not may_see_usage(request):
        raise PermissionDenied
    account = Account.objects.filter(pk=account_id).first()
    if account is None:
        raise Http404
    period = ReportForm(request.GET).span(timezone.now())
    report = usage_report(period, account_id)
    context = {
        **_context(report.period),
        "account": account,
        "report": report,
        "issuer": settings.UNFOLD["SITE_TITLE"],
        "lines": [line for account in report.accounts for line in account.models if line.now.requests],
        "budget_used": _budget_used(report),
        "check": log_check(report, account_id, is_wanted="check" in request.GET),
    }
    return render(request, "admin/monitoring/usage_statement.html", context)


def _budget_used(report: Report) -> str:
    """Return how much of this month's budget is used, rounded down; "" without a budget, and for another period."""
    budget, now = next((line.budget for line in report.accounts), None), report.total.now
    at_least = "at least " if now.unpriced else ""
    return f"{at_least}{now.cost * 100 // budget} % of the {money(budget)} budget" if budget else ""


def _context(period: Period) -> Mapping[str, Any]:
    """Return what both pages show of a period, and the query that names it."""
    days = _days(period)
    query = {"period": period.name, **(days if period.name == CUSTOM else {})}
    choices = [(name, text, name == period.name) for name, text in CHOICES.items()]
    return {"period": period, **days, "query": urlencode(query), "choices": choices, "now": timezone.now()}


def _days(period: Period) -> dict[str, str]:
    return {"first": f"{period.begin:%Y-%m-%d}", "last": f"{period.last_day:%Y-%m-%d}"}
