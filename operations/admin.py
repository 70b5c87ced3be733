"""Alerts in the admin: the list of incidents, read-only, and a test alert."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from accounts.admin.base import Confirmation, action, actor_of, ask, column, display, is_confirmed
from accounts.admin.lists import KeysetAdmin
from accounts.audit import audit_event
from core.formats import moment
from monitoring.models import Alert, AlertDelivery
from operations import overview
from operations.alerts.deliveries import lasted, send_test_alert

__all__ = ["AlertAdmin", "overview"]

STATE_BADGES = {"firing": "danger", "resolved": "success"}


@admin.register(Alert)
class AlertAdmin(KeysetAdmin):
    """Incidents, newest first, read-only."""

    list_display = ("began", "state", "kind", "title", "sent_to")
    list_filter = ("kind",)
    time_column = "began_at"
    fields = readonly_fields = ("state", "kind", "title", "text", "began", "ended", "sent_to", "subject")
    began = column("began", lambda alert: moment(alert.began_at))
    state = column("state", lambda alert: "resolved" if alert.ended_at else "firing", label=STATE_BADGES)
    actions_list = ("test",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Alert]:
        """Read the deliveries of all rows in one query."""
        in_order = Prefetch("deliveries", AlertDelivery.objects.order_by("pk"))
        return super().get_queryset(request).prefetch_related(in_order)

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
            messages.warning(request, "There is no recipient: set ALERT_WEBHOOK_URL, or EMAIL_URL and ALERT_EMAILS.")
        return HttpResponseRedirect(back)

    def has_test_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Return whether the user may send a test alert."""
        return request.user.has_perm("monitoring.test_alert")

    @display(description="ended")
    def ended(self, alert: Alert) -> str:
        """Return when the incident ended, and its duration so far."""
        if alert.ended_at is None:
            return f"firing for {lasted(alert)}"
        return f"{moment(alert.ended_at)}, after {lasted(alert)}"

    @display(description="sent to")
    def sent_to(self, alert: Alert) -> SafeString | str:
        """Return a line for each delivery: its recipient, and when it was sent or what failed."""
        lines = []
        for delivery in alert.deliveries.all():
            pending = f"{delivery.failure or 'on its way'} ({delivery.attempts} attempts)"
            lines.append((f"{delivery}: {moment(delivery.sent_at, pending)}",))
        return format_html_join("", "<div>{}</div>", lines) or "no recipient"
