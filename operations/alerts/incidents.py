"""Incidents, and the lease of the worker that leads: it alone begins and ends them.

Workers may see different things: a store that is down for one may be reachable for another. If several began and ended
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
from datetime import timedelta

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from monitoring.models import Alert, AlertDelivery, LeaderLease
from operations.alerts.conditions import Condition, level_of, topic_of

log = structlog.get_logger(__name__)

THE_ONE = 1
#: A lease lasts so many rounds, and ALLOWANCE longer: a round is slow when stores or providers are down.
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


def incidents_update(conditions: Iterable[Condition], *, ends: bool = True) -> int:
    """Begin an incident for each new condition that is on, end those without a condition; return how many began.

    `ends`: whether the conditions are all that there are, so that incidents without one may end.
    A unique constraint of the database prevents two open incidents of one subject.
    """
    held = {condition.subject: condition for condition in conditions}
    going_on = {alert.subject: alert for alert in Alert.objects.filter(ended_at=None).order_by("pk")}
    new = [each for each in held.values() if each.is_on and each.subject not in going_on]
    if ends:
        incidents_resolve([alert for subject, alert in going_on.items() if subject not in held])
    return sum(incident_open(condition) is not None for condition in new)


def incident_open(condition: Condition) -> Alert | None:
    """Store an incident and its deliveries; return None if another process was first.

    Its messages go to the recipients in the settings and, by e-mail, to the contact of the condition.
    """
    now = timezone.now()
    texts = {"kind": condition.kind, "title": condition.title[:250], "text": condition.text, "began_at": now}
    with transaction.atomic():
        alert, is_new = Alert.objects.get_or_create(subject=condition.subject, ended_at=None, defaults=texts)
        if not is_new:
            return None
        emails = list(dict.fromkeys(filter(None, [*settings.ALERT_EMAILS, condition.contact])))
        AlertDelivery.objects.bulk_create(
            AlertDelivery(alert=alert, channel=channel, recipient=recipient, next_at=now)
            for channel in _open_channels()
            for recipient in (emails if channel == AlertDelivery.Channel.EMAIL else [""])
        )
    log.warning("alert", kind=str(condition.kind), subject=condition.subject, title=condition.title)
    return alert


def incidents_resolve(alerts: Sequence[Alert]) -> None:
    """End incidents that are still open, and send word to the recipients of their beginnings.

    Of the levels of a budget that end together, only the highest sends messages.
    """
    rising = sorted(alerts, key=lambda each: level_of(each.subject))
    reported = set({topic_of(alert.subject): alert.pk for alert in rising}.values())
    now = timezone.now()
    for alert in alerts:
        with transaction.atomic():
            if not Alert.objects.filter(pk=alert.pk, ended_at=None).update(ended_at=now):
                continue
            if alert.pk in reported:
                beginnings = alert.deliveries.filter(is_end=False, channel__in=_open_channels()).order_by("pk")
                AlertDelivery.objects.bulk_create(
                    AlertDelivery(alert=alert, channel=each.channel, recipient=each.recipient, is_end=True, next_at=now)
                    for each in beginnings
                )
        log.warning("alert_over", kind=alert.kind, subject=alert.subject, title=alert.title)


def is_anybody_notified() -> bool:
    """Return whether the settings name a recipient of all alerts."""
    return bool(settings.ALERT_WEBHOOK_URL or (settings.EMAIL_URL and settings.ALERT_EMAILS))


def _open_channels() -> list[AlertDelivery.Channel]:
    """List the channels that the settings name."""
    named = {
        AlertDelivery.Channel.WEBHOOK: settings.ALERT_WEBHOOK_URL,
        AlertDelivery.Channel.EMAIL: settings.EMAIL_URL,
    }
    return [channel for channel, target in named.items() if target]
