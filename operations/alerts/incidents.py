"""Incidents, and the lease of the worker that leads: it alone begins and ends them.

Workers may see different things: a store that is away for one may be reachable for another. If several began and ended
incidents, each would end what another has just begun. So one leads; another takes over when it gives the lease back, or
when the lease has expired because it is dead.

The lease is a row and not a database lock: with pooled connections, a session's locks are lost or held by another
process. Its times are the database's, the same for all workers.

Each incident begins once and ends once, however many processes check.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from monitoring.models import Alert, AlertDelivery, LeaderLease
from operations.alerts.budgets import level_of, topic_of
from operations.alerts.conditions import Condition

log = structlog.get_logger(__name__)

THE_ONE = 1
#: A lease lasts so many rounds, and ALLOWANCE longer: a round is slow when stores or providers are away.
ROUNDS, ALLOWANCE = 4, timedelta(seconds=10)


class LeaderLock:
    """A process's claim to the lease."""

    def __init__(self) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def take(self) -> bool:
        """Take or renew the lease; return False if another process holds it."""
        LeaderLease.objects.get_or_create(pk=THE_ONE, defaults={"holder": "", "expires_at": Now()})
        lasting = ALLOWANCE + timedelta(seconds=ROUNDS * settings.WATCH_SECONDS)
        free = LeaderLease.objects.filter(Q(holder__in=("", self.name)) | Q(expires_at__lte=Now()), pk=THE_ONE)
        return bool(free.update(holder=self.name, expires_at=Now() + lasting))

    def is_mine(self) -> bool:
        """Return whether this process still leads, and lock the row until the end of the (required) transaction."""
        mine = LeaderLease.objects.select_for_update().filter(pk=THE_ONE, holder=self.name)
        return mine.first() is not None

    def give_back(self) -> None:
        """Give the lease up, so that another process can take it at once."""
        LeaderLease.objects.filter(pk=THE_ONE, holder=self.name).update(holder="")


def incidents_update(conditions: Iterable[Condition]) -> int:
    """Begin incidents of new conditions, end those of conditions that no longer hold; return how many began.

    The database's unique constraint prevents two open incidents of one subject; the process that comes second sends
    nothing.
    """
    held = {condition.subject: condition for condition in conditions}
    going_on = {alert.subject: alert for alert in Alert.objects.filter(ended_at=None).order_by("pk")}
    new = [each for each in held.values() if each.is_on and each.subject not in going_on]
    incidents_resolve([alert for subject, alert in going_on.items() if subject not in held])
    return sum(incident_open(condition) is not None for condition in new)


def incident_open(condition: Condition) -> Alert | None:
    """Store an incident with its deliveries; return None if another process was first."""
    now = timezone.now()
    with transaction.atomic():
        alert, is_new = Alert.objects.get_or_create(
            subject=condition.subject,
            ended_at=None,
            defaults={
                "kind": condition.kind,
                "title": condition.title[:250],
                "text": condition.text,
                "began_at": now,
            },
        )
        if is_new:
            AlertDelivery.objects.bulk_create(deliveries_of(alert, condition.contact, now))
    if not is_new:
        return None
    log.warning("alert", kind=str(condition.kind), subject=condition.subject, title=condition.title)
    return alert


def incidents_resolve(alerts: Sequence[Alert]) -> None:
    """End incidents, and send messages to the recipients of their beginning. Each ends once in all processes."""
    rising = sorted(alerts, key=lambda each: level_of(each.subject))
    told = set({topic_of(alert.subject): alert.pk for alert in rising}.values())  # of each topic the highest level
    now = timezone.now()
    for alert in alerts:
        with transaction.atomic():
            if not Alert.objects.filter(pk=alert.pk, ended_at=None).update(ended_at=now):
                continue
            if alert.pk in told:
                AlertDelivery.objects.bulk_create(_endings_of(alert, now))
        log.warning("alert_over", kind=alert.kind, subject=alert.subject, title=alert.title)


def _endings_of(alert: Alert, now: datetime) -> list[AlertDelivery]:
    """List the deliveries of an end: to the recipients of the beginning, by channels that are still configured."""
    channels = [channel for channel, is_open in _channels().items() if is_open]
    told = alert.deliveries.filter(is_end=False, channel__in=channels).order_by("pk")
    return [
        AlertDelivery(alert=alert, channel=each.channel, recipient=each.recipient, is_end=True, next_at=now)
        for each in told
    ]


def deliveries_of(alert: Alert, contact: str, now: datetime) -> list[AlertDelivery]:
    """List the deliveries of an alert: to the recipients in the settings, and to the account's contact."""
    are_open = _channels()
    ways = [(AlertDelivery.Channel.WEBHOOK, "")] if are_open[AlertDelivery.Channel.WEBHOOK] else []
    if are_open[AlertDelivery.Channel.EMAIL]:
        addresses = dict.fromkeys([*settings.ALERT_EMAILS, *([contact] if contact else [])])
        ways += [(AlertDelivery.Channel.EMAIL, address) for address in addresses]
    return [AlertDelivery(alert=alert, channel=channel, recipient=to, next_at=now) for channel, to in ways]


def _channels() -> dict[AlertDelivery.Channel, bool]:
    """Return for each channel whether it is configured."""
    return {
        AlertDelivery.Channel.WEBHOOK: bool(settings.ALERT_WEBHOOK_URL),
        AlertDelivery.Channel.EMAIL: bool(settings.EMAIL_URL),
    }
