"""Alerts in the admin: the list of incidents, read-only, and a test alert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import SimpleListFilter
from django.contrib.admin.views.main import ChangeList
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from accounts.admin.base import Confirmation, action, actor_of, ask, change_url, column, display, is_confirmed
from accounts.admin.lists import KeysetAdmin, KeysetChangeList
from accounts.audit import audit_event
from core.formats import NOTHING, ago, utc_text
from monitoring.models import Alert, AlertDelivery
from operations import overview
from operations.alerts.deliveries import lasted, send_test_alert
from operations.alerts.groups import AlertGroup, group_alerts, group_of
from operations.alerts.incidents import is_anybody_notified

__all__ = ["AlertAdmin", "overview"]

OPEN, RESOLVED = "Open", "Resolved"
STATE_BADGES = {OPEN: "danger", RESOLVED: "success"}
NO_CHANNEL = "Set ALERT_WEBHOOK_URL, or EMAIL_URL and ALERT_EMAILS, then restart and send a test alert."
NOBODY = format_html('<span title="{}">⚠ No channel set up</span>', NO_CHANNEL)
LINK = '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>'


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
            group.lead.group = group  # type: ignore[attr-defined]  # a column gets the row alone
        self.result_list = [group.lead for group in groups]


@admin.register(Alert)
class AlertAdmin(KeysetAdmin):
    """Incidents, newest first, read-only."""

    list_display = ("incident", "state", "kind", "about", "began", "notified")
    list_filter = (StateFilter, "kind")
    list_before_template = "admin/monitoring/alert/channels.html"
    time_column = "began_at"
    fields = readonly_fields = ("state", "kind", "title", "text", "about", "began", "ended", "notified", "related")
    state = column("state", lambda alert: RESOLVED if alert.ended_at else OPEN, label=STATE_BADGES)
    incident = column("alert", lambda alert: _group(alert).title)
    actions_list = ("test",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Use AlertChangeList."""
        return AlertChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Alert]:
        """Read the deliveries of all rows in one query."""
        in_order = Prefetch("deliveries", AlertDelivery.objects.order_by("pk"))
        return super().get_queryset(request).prefetch_related(in_order)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the list, with a warning if nobody is notified."""
        warning = "" if is_anybody_notified() else f"Nobody is notified of alerts: no channel is set up. {NO_CHANNEL}"
        return super().changelist_view(request, {**(extra_context or {}), "nobody_notified": warning})

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
        links = format_html_join(" · ", LINK, ((url, text) for text, url in _group(alert).links))
        return format_html("<span>{}</span>", links or "the platform")

    @display(description="same incident")
    def related(self, alert: Alert) -> SafeString | str:
        """Return links to the other alerts of the incident."""
        others = ((change_url(each), f"{each.title}, {utc_text(each.began_at)}") for each in group_of(alert).alerts)
        own = change_url(alert)
        return format_html_join("", f"<div>{LINK}</div>", (each for each in others if each[0] != own)) or NOTHING

    @display(description="began")
    def began(self, alert: Alert) -> SafeString:
        """Return how long ago the alert began, and how long it lasted; the exact time on hover."""
        ended = f", lasted {lasted(alert)}" if alert.ended_at else ""
        since = _group(alert).since
        return format_html('<span title="{}">{}{}</span>', utc_text(since), ago(since, now()), ended)

    @display(description="ended")
    def ended(self, alert: Alert) -> str:
        """Return when the incident ended, and its duration so far."""
        if alert.ended_at is None:
            return f"open for {lasted(alert)}"
        return f"{utc_text(alert.ended_at)}, after {lasted(alert)}"

    @display(description="notified")
    def notified(self, alert: Alert) -> SafeString | str:
        """Return a line for each delivery: its recipient, and when it was sent or what failed."""
        lines = ((line,) for line in _deliveries(alert))
        return format_html_join("", "<div>{}</div>", lines) or NOBODY


def _deliveries(alert: Alert) -> Iterator[str]:
    for delivery in alert.deliveries.all():
        pending = f"{delivery.failure or 'sending'} ({delivery.attempts} attempts)"
        yield f"{delivery}: {utc_text(delivery.sent_at, pending)}"


def _group(alert: Alert) -> AlertGroup:
    """Return the group that a row of the list stands for; on its own page, an alert's alone."""
    return getattr(alert, "group", None) or group_alerts([alert])[0]
