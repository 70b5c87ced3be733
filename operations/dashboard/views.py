"""The admin's index page, and its sections, which the page's script reloads."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from accounts.checks import DEMO_KEYS
from monitoring.models import VIEW_RECORDS, Alert, RequestRecord
from operations.alerts.groups import allowed, group_alerts
from operations.alerts.incidents import is_anybody_notified
from operations.dashboard.data import read
from operations.dashboard.limits import limits_nearly_reached
from operations.dashboard.query import CUSTOM, DEFAULT, FILTERS, RANGES, DashboardQuery, read_address
from operations.dashboard.sections import (
    charts,
    ingest_lag,
    open_alerts,
    recent_failures,
    suggestions,
    tiles,
    top_callers,
)
from operations.dashboard.setup import sample_data_offer, setup_steps
from operations.dashboard.status import BAD, LOG, outage_ended, platform_status
from operations.deployments import deployment_states

#: Seconds between two requests of the script; SELDOM for the ranges 7d and 30d.
EVERY, SELDOM = 10, 60


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the dashboard to the index for users who may view the request log (unfold's DASHBOARD_CALLBACK)."""
    if not request.user.has_perm(VIEW_RECORDS):
        return context
    asked = read_address(request.GET, timezone.now())
    is_custom = asked.name == CUSTOM
    form = {  # it stays while the sections change
        "ranges": [(name, text, asked.query(range=name)) for name, text in RANGES.items()],
        "range": asked.name,
        "custom": CUSTOM,
        "from": f"{asked.span.begin:%Y-%m-%dT%H:%M}" if is_custom else "",
        "to": f"{asked.span.end:%Y-%m-%dT%H:%M}" if is_custom else "",
        "filters": [(name, asked.filters.get(name, "")) for name in FILTERS],
        "suggestions": suggestions(),
        "problems": asked.problems,
        "query": asked.query(),
        "every": SELDOM if asked.name in ("7d", "30d") else EVERY,
    }
    shown = _sections(request, asked)
    has_requests = not shown["is_new"]
    steps = setup_steps(request, has_requests=has_requests)
    setup = {
        "setup": steps,
        "setup_done": sum(step.is_done for step in steps),
        "sample_data": sample_data_offer(request, has_requests=has_requests),
    }
    return {**context, "title": "Dashboard", "dashboard": {**form, **setup, **shown}}


@require_safe
def dashboard_sections(request: HttpRequest) -> HttpResponse:
    """Return the sections, or 204 if the mark `seen` is still current. Raises PermissionDenied."""
    if not request.user.has_perm(VIEW_RECORDS):
        raise PermissionDenied
    now = timezone.now()
    if request.GET.get("seen") == _mark(now):
        return HttpResponse(status=204)
    return render(
        request, "admin/dashboard/sections.html", {"dashboard": _sections(request, read_address(request.GET, now))}
    )


def _mark(now: datetime) -> str:
    """Return a string that changes with each record and each minute, by one cheap query.

    A record with a time of admission in the future (a clock was ahead) hides none.
    """
    known = RequestRecord.objects.filter(admitted_at__lte=timezone.now()).order_by("-admitted_at", "-pk")
    return f"{known.values_list('pk', flat=True).first()}@{now:%H:%M}"


def _sections(request: HttpRequest, asked: DashboardQuery) -> dict[str, Any]:
    """Return the data of the sections."""
    now = timezone.now()
    mark = _mark(now)  # before the figures are read: later records change the next mark
    reading = read(asked)
    deployments, lag = deployment_states(), ingest_lag()
    # The watch ends their alerts in its next round; until then the page must not contradict itself.
    well = {subject for each in deployments if not each.is_failing for subject in each.alert_subjects}
    may_see_alerts = request.user.has_perm("monitoring.view_alert")
    alerts = open_alerts(but=well) if may_see_alerts else []
    incidents = group_alerts([alert for alert in alerts if alert.kind != Alert.Kind.BUDGET])
    for group in incidents:
        group.links = allowed(request, group.links)
    ended = outage_ended(asked) if may_see_alerts else None
    status = platform_status(asked, reading, deployments, incidents, lag, now, ended)
    status = replace(status, links=allowed(request, status.links))
    total = reading.total
    is_outage = status.tone == BAD or total.failed * 100 > total.requests * settings.ALERT_ERROR_RATE
    shown = [each for each in deployments if each.is_failing or each.trouble]
    return {
        "mark": mark,
        "now": now,
        "span": asked.span,
        "is_empty": not reading.total.requests,
        "is_new": mark.startswith("None@"),
        "is_filtered": bool(asked.filters),
        "is_outage": is_outage,
        "part": asked.span.unit or "minute",
        "status": status,
        "nobody_notified": may_see_alerts and not is_anybody_notified(),
        # One incident alone is the status already.
        "incidents": incidents if len(incidents) > 1 or any(each.is_failing for each in deployments) else [],
        "budgets": [alert for alert in alerts if alert.kind == Alert.Kind.BUDGET],
        "notice": reading.notice,
        "tiles": tiles(asked, reading, is_outage=is_outage),
        "charts": charts(asked, reading),
        "most": top_callers(asked),
        "nearly": limits_nearly_reached(now),
        "troubled": shown,
        "well": [each for each in deployments if each not in shown],
        "closed": sum(each.is_enabled for each in deployments if each not in shown),
        "disabled": sum(not each.is_enabled for each in deployments),
        "lag": lag,
        "failures": recent_failures(asked, 3 if is_outage else 6),
        "log_url": reverse(LOG),
        "failed_query": asked.log_query(status="failed"),
        "all_query": asked.query(**dict.fromkeys(FILTERS, "")),
        "longer_query": asked.query(range="30d" if asked.name in (DEFAULT, "7d") else DEFAULT),
        "key": DEMO_KEYS[0] if settings.ALLOW_PLAIN_KEYS else "",
    }
