"""Episodes: each begins once and ends once, however many processes look."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from monitoring.alerts.conditions import Condition
from monitoring.models import Alert, AlertDelivery

log = structlog.get_logger(__name__)


def episodes_follow(conditions: Iterable[Condition]) -> int:
    """Begin an episode for what has come to hold, end those of what holds no more; return how many began.

    That no two begin of one subject, the database's unique constraint sees to: whoever comes second tells nobody.
    """
    held = {condition.subject: condition for condition in conditions}
    going_on = set(Alert.objects.filter(ended_at=None).values_list("subject", flat=True))
    new = [each for each in held.values() if each.is_on and each.subject not in going_on]
    over = going_on - held.keys()
    if over:
        Alert.objects.filter(ended_at=None, subject__in=over).update(ended_at=timezone.now())
    return sum(episode_begin(condition) is not None for condition in new)


def episode_begin(condition: Condition) -> Alert | None:
    """Write down an episode with whom to tell; None if another process was first."""
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
        if is_new and not condition.is_quiet:
            AlertDelivery.objects.bulk_create(deliveries_of(alert, condition.contact, now))
    if not is_new:
        return None
    log.warning("alert", kind=str(condition.kind), subject=condition.subject, title=condition.title)
    return alert


def deliveries_of(alert: Alert, contact: str, now: datetime) -> list[AlertDelivery]:
    """List the ways on which an alert goes out: what the settings name, and the account's contact."""
    ways = [(AlertDelivery.Channel.WEBHOOK, "")] if settings.ALERT_WEBHOOK_URL else []
    if settings.EMAIL_URL:
        addresses = dict.fromkeys([*settings.ALERT_EMAILS, *([contact] if contact else [])])
        ways += [(AlertDelivery.Channel.EMAIL, address) for address in addresses]
    return [AlertDelivery(alert=alert, channel=channel, recipient=to, next_at=now) for channel, to in ways]
