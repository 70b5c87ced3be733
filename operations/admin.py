"""Alerts in the admin: the list of incidents, read-only, and a test alert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import copy
from typing import Any
from urllib.parse import urlsplit

from django.contrib import admin, messages
from django.contrib.admin import SimpleListFilter
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from accounts.admin.base import LINK, Confirmation, action, actor_of, ask, column, display, found, is_confirmed, page
from accounts.admin.lists import KeysetAdmin, KeysetChangeList
from accounts.audit import audit_event
from accounts.selectors import account_titles
from core.formats import quantity, span_text, utc_text
from monitoring.admin_log import Histogram, histogram
from monitoring.models import VIEW_RECORDS, Alert, AlertDelivery, RequestRecord
from operations import overview
from operations.alerts.conditions import advice
from operations.alerts.deliveries import send_test_alert
from operations.alerts.groups import (
    BEFORE,
    BUDGET_ERROR,
    AlertGroup,
    affected,
    affected_records,
    allowed,
    group_alerts,
    group_of,
    log_of,
    log_url,
)
from operations.alerts.incidents import is_anybody_notified

__all__ = ["AlertAdmin", "overview"]

OPEN, RESOLVED = "Open", "Resolved"
STATE_BADGES = {OPEN: "danger", RESOLVED: "success"}
NO_CHANNEL = "Set ALERT_WEBHOOK_URL, or EMAIL_URL and ALERT_EMAILS, then restart and send a test alert."
NOBODY = format_html('<span title="{}">⚠ No channel set up</span>', NO_CHANNEL)
#: Accounts and models that an alert's page names, of each.
MOST_AFFECTED = 5


class StateFilter(SimpleListFilter):
    """Filters by open and resolved."""

    title = parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the states."""
        return [("open", OPEN), ("resolved", RESOLVED)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Alert]) -> QuerySet[Alert]:
        """Filter by the state."""
        wanted = {"open": True, "resolved": False}.get(self.value() or "")
        return queryset if wanted is None else queryset.filter(ended_at__isnull=wanted)


class AlertChangeList(KeysetChangeList):
    """A page of alerts whose rows are groups: of each, one alert is shown (see operations.alerts.groups)."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, and group its alerts."""
        super().get_results(request)
        groups = group_alerts(list(self.result_list))
        for group in groups:
            group.links = allowed(request, group.links)
            group.lead.group = group  # type: ignore[attr-defined]  # a column gets the row alone
        self.result_list = [group.lead for group in groups]


@admin.register(Alert)
class AlertAdmin(KeysetAdmin):
    """Incidents, newest first, read-only."""

    list_display = ("incident", "state", "kind", "about", "time", "notified")
    list_filter = (StateFilter, "kind")
    list_before_template = "admin/monitoring/alert/channels.html"
    time_column = "began_at"
    state = column("state", lambda alert: RESOLVED if alert.ended_at else OPEN, label=STATE_BADGES)
    incident = column("alert", lambda alert: alert.group.title)
    time = column("time", lambda alert: span_text(alert.group.since, alert.group.until, now()))
    actions_list = ("test",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Use AlertChangeList."""
        return AlertChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Alert]:
        """Read the deliveries of all rows in one query."""
        in_order = Prefetch("deliveries", AlertDelivery.objects.order_by("pk"))
        return super().get_queryset(request).prefetch_related(in_order)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the list, and how to set up a channel if nobody is notified."""
        return super().changelist_view(request, {**(extra_context or {}), "nobody_notified": not is_anybody_notified()})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show what happened, whom it affected, what to do, and who was notified. Raises PermissionDenied, Http404."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        alert = found(self, request, unquote(object_id))
        group = group_of(alert)
        context = {
            "original": group.title,
            "alert": alert,
            "group": group,
            "when": span_text(group.since, group.until, now()),
            # A budget that was raised, or a new month: there is no next time to prepare for.
            "advice": "" if group.until and alert.kind == Alert.Kind.BUDGET else advice(group.lead),
            "links": allowed(request, group.links),
            "deliveries": list(_deliveries(alert)),
            "nobody_notified": not is_anybody_notified(),
            "others": [
                (each, span_text(each.began_at, each.ended_at, now())) for each in group.alerts if each != alert
            ],
        }
        if group.filters and request.user.has_perm(VIEW_RECORDS):
            context |= {**_requests(group), "histogram": _histogram(request, group)}
        return page(self, request, "admin/monitoring/alert/page.html", group.title, context)

    @action(description="Send a test alert", permissions=["test"], icon="campaign", url_path="test")
    def test(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation, then send a test alert to all recipients."""
        back = reverse("admin:monitoring_alert_changelist")
        if not is_confirmed(request):
            consequence = "All recipients in ALERT_WEBHOOK_URL and ALERT_EMAILS get an alert that says it is a test."
            question = Confirmation(
                "Send a test alert?", [consequence], "Send test alert", is_dangerous=False, cancel_url=back
            )
            return ask(self, request, question)
        deliveries = send_test_alert()
        audit_event(actor=actor_of(request), action="tested", kind="alert", details={"ways": len(deliveries)})
        for delivery in deliveries:
            show = messages.error if delivery.failure else messages.success
            show(request, f"{delivery}: {delivery.failure or 'sent'}.")
        if not deliveries:
            messages.warning(request, f"No channel is set up. {NO_CHANNEL}")
        return HttpResponseRedirect(back)

    def has_test_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Return whether the user may send a test alert."""
        return request.user.has_perm("monitoring.test_alert")

    @display(description="about")
    def about(self, alert: Alert) -> SafeString | str:
        """Return links to what the alert is about, and to the request log of its time."""
        links = format_html_join(" · ", LINK, ((url, text) for text, url in alert.group.links))  # type: ignore[attr-defined]
        return format_html("<span>{}</span>", links or "the platform")

    @display(description="notified")
    def notified(self, alert: Alert) -> SafeString | str:
        """Return a line for each delivery: its recipient, and when it was sent or what failed."""
        lines = ((line,) for line in _deliveries(alert))
        return format_html_join("", "<div>{}</div>", lines) or NOBODY


def _requests(group: AlertGroup) -> dict[str, Any]:
    """Return the requests that a group affected, and for each account and model how many, with the URL of the log."""
    records = affected_records(group)
    seen = affected(records)
    more = {} if "status" in group.filters else {"error_code": BUDGET_ERROR}

    def part(name: str, by: str, column: str) -> tuple[str, list[tuple[str, int, str]], int]:
        numbers = Counter[str]()
        for text, number in records.values_list(column, "count"):
            numbers[text] += number
        most = numbers.most_common(MOST_AFFECTED)
        titles = account_titles(text for text, _ in most) if by == "account" else {}
        rows = [(titles.get(text, text), number, log_url(group, **more, **{by: text})) for text, number in most if text]
        return name, rows, len(numbers) - len(most)

    return {
        "affected": seen,
        "verb": ("were" if seen.requests > 1 else "was") + " refused by the budget" if more else "failed",
        "affected_url": log_url(group, **more),
        "affected_parts": [part("Accounts", "account", "account_name"), part("Models", "model", "model")],
    }


def _histogram(request: HttpRequest, group: AlertGroup) -> Histogram | None:
    """Return the log's histogram of a group's time and some minutes around it, of all outcomes."""
    filters = {name: value for name, value in group.filters.items() if name != "status"}
    url = log_of(group.begin - BEFORE, group.until and group.until + BEFORE, filters)
    asked = copy(request)
    asked.GET = QueryDict(urlsplit(url).query)
    log: Any = admin.site.get_model_admin(RequestRecord)
    return histogram(log.get_changelist_instance(asked), asked)


def _deliveries(alert: Alert) -> Iterator[str]:
    for delivery in alert.deliveries.all():
        pending = f"{delivery.failure or 'sending'} ({quantity(delivery.attempts, 'attempt')})"
        yield f"{delivery}: {utc_text(delivery.sent_at, pending)}"
