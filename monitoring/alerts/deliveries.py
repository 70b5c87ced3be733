"""Tells of alerts: each delivery is taken by one process at a time, and tried again with growing pauses."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from smtplib import SMTPException

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from monitoring.alerts.conditions import Condition
from monitoring.alerts.episodes import episode_begin
from monitoring.alerts.messages import message_of, minute_of
from monitoring.alerts.webhook import WebhookError, send_webhook
from monitoring.models import Alert, AlertDelivery

FIRST_PAUSE = timedelta(seconds=30)  # doubled with each attempt
MOST_ATTEMPTS = 7  # over half an hour
A_ROUND = 50  # deliveries at most
#: After so many seconds a round sends no further one: the watch looks at nothing else meanwhile, and each of those to a
#: mail server that is silent takes as long.
ROUND_SECONDS = 10.0

log = structlog.get_logger(__name__)


def deliveries_send(now: datetime | None = None) -> int:
    """Send what is due, as far as the round's time goes; return how many arrived."""
    moment, began = now or timezone.now(), time.monotonic()
    underway = AlertDelivery.objects.filter(sent_at=None, attempts__lt=MOST_ATTEMPTS)
    beginning = underway.filter(
        alert=OuterRef("alert"), channel=OuterRef("channel"), recipient=OuterRef("recipient"), is_end=False
    )
    # Nobody is told of an end before he is told of the beginning.
    due = underway.filter(Q(is_end=False) | ~Exists(beginning), next_at__lte=moment)
    found = list(due.select_related("alert").order_by("next_at")[:A_ROUND])
    arrived = 0
    for delivery in found:
        arrived += _deliver(delivery, moment)
        if time.monotonic() - began >= ROUND_SECONDS:
            break
    return arrived


def send_test_alert() -> list[AlertDelivery]:
    """Send a test alert on every way, now; return its deliveries, of which each says what came of it."""
    now = timezone.now()
    title, text = "Test alert", f"This is a test of the alerts of {settings.NAME}: nothing is wrong."
    alert = episode_begin(Condition(Alert.Kind.TEST, f"test:{now.timestamp()}", title, text))
    if alert is None:
        return []
    Alert.objects.filter(pk=alert.pk).update(ended_at=now)
    deliveries = list(alert.deliveries.select_related("alert"))
    for delivery in deliveries:
        _deliver(delivery, now)
        delivery.refresh_from_db()
    return deliveries


def _deliver(delivery: AlertDelivery, now: datetime) -> bool:
    """Take a delivery, and send it; False if another process has it, or it failed."""
    mine = AlertDelivery.objects.filter(pk=delivery.pk, sent_at=None, attempts=delivery.attempts)
    pause = FIRST_PAUSE * 2**delivery.attempts
    if not mine.update(attempts=delivery.attempts + 1, next_at=now + pause):
        return False
    try:
        _send(delivery)
    except (WebhookError, SMTPException, OSError, ValueError) as error:  # the last: what no header or address may be
        cause = str(error) if isinstance(error, WebhookError) else type(error).__name__
        log.error("alert_not_delivered", alert=delivery.alert_id, channel=delivery.channel, cause=cause)
        AlertDelivery.objects.filter(pk=delivery.pk).update(failure=cause[:100])
        return False
    AlertDelivery.objects.filter(pk=delivery.pk).update(sent_at=timezone.now(), failure="")
    return True


def _send(delivery: AlertDelivery) -> None:
    if delivery.channel == AlertDelivery.Channel.WEBHOOK:
        send_webhook(delivery)
        return
    message = message_of(delivery)
    subject = " ".join(f"[{settings.NAME}] {message.title}".split())  # names of callers may hold line breaks
    body = message.text if delivery.is_end else f"{message.text}\n\n{minute_of(delivery.alert.began_at)}"
    EmailMessage(subject, f"{body}\n", settings.DEFAULT_FROM_EMAIL, [delivery.recipient]).send()
