"""Which worker leads, so that it begins and ends incidents: one at a time.

They may see different things: what is away for one of them, another may reach. Did all of them begin and end incidents,
each would end what another had just begun. So one watches, and the others stand by until it gives its turn back, or was
not heard of for so long that it must be dead.

The turn is a row and no lock of the database's: where connections are pooled, a session's locks are lost, or left in
another's hands. Its time is the database's, the same for all.

Incidents: each begins once and ends once, however many processes look.
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
#: How long a turn lasts beyond so many rounds that never came: a round may take long where much is away.
ROUNDS, ALLOWANCE = 4, timedelta(seconds=10)


class LeaderLock:
    """A process's claim to the turn."""

    def __init__(self) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def take(self) -> bool:
        """Take the turn, or go on with it; False while it is another's."""
        LeaderLease.objects.get_or_create(pk=THE_ONE, defaults={"holder": "", "expires_at": Now()})
        lasting = ALLOWANCE + timedelta(seconds=ROUNDS * settings.WATCH_SECONDS)
        free = LeaderLease.objects.filter(Q(holder__in=("", self.name)) | Q(expires_at__lte=Now()), pk=THE_ONE)
        return bool(free.update(holder=self.name, expires_at=Now() + lasting))

    def is_mine(self) -> bool:
        """Say whether it still is, and keep it so until the transaction ends, in which this must be asked."""
        mine = LeaderLease.objects.select_for_update().filter(pk=THE_ONE, holder=self.name)
        return mine.first() is not None

    def give_back(self) -> None:
        """Let another have it at once."""
        LeaderLease.objects.filter(pk=THE_ONE, holder=self.name).update(holder="")


def incidents_update(conditions: Iterable[Condition]) -> int:
    """Begin an incident for what has come to hold, end those of what holds no more; return how many began.

    That no two begin of one subject, the database's unique constraint sees to: whoever comes second tells nobody.
    """
    held = {condition.subject: condition for condition in conditions}
    going_on = {alert.subject: alert for alert in Alert.objects.filter(ended_at=None).order_by("pk")}
    new = [each for each in held.values() if each.is_on and each.subject not in going_on]
    incidents_resolve([alert for subject, alert in going_on.items() if subject not in held])
    return sum(incident_open(condition) is not None for condition in new)


def incident_open(condition: Condition) -> Alert | None:
    """Write down an incident with whom to tell; None if another process was first."""
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
    """End incidents, and tell those who are told of their beginning. Each ends once, whoever else ends it."""
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
    """List the ways on which the beginning went out, as far as they are still there."""
    channels = [channel for channel, is_open in _channels().items() if is_open]
    told = alert.deliveries.filter(is_end=False, channel__in=channels).order_by("pk")
    return [
        AlertDelivery(alert=alert, channel=each.channel, recipient=each.recipient, is_end=True, next_at=now)
        for each in told
    ]


def deliveries_of(alert: Alert, contact: str, now: datetime) -> list[AlertDelivery]:
    """List the ways on which an alert goes out: what the settings name, and the account's contact."""
    are_open = _channels()
    ways = [(AlertDelivery.Channel.WEBHOOK, "")] if are_open[AlertDelivery.Channel.WEBHOOK] else []
    if are_open[AlertDelivery.Channel.EMAIL]:
        addresses = dict.fromkeys([*settings.ALERT_EMAILS, *([contact] if contact else [])])
        ways += [(AlertDelivery.Channel.EMAIL, address) for address in addresses]
    return [AlertDelivery(alert=alert, channel=channel, recipient=to, next_at=now) for channel, to in ways]


def _channels() -> dict[AlertDelivery.Channel, bool]:
    """Say of each channel whether the settings name it."""
    return {
        AlertDelivery.Channel.WEBHOOK: bool(settings.ALERT_WEBHOOK_URL),
        AlertDelivery.Channel.EMAIL: bool(settings.EMAIL_URL),
    }
