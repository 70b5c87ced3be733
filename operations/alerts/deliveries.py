"""Sends the messages of alerts, that an incident began or ended, by webhook and e-mail.

One process at a time takes a delivery. A failed one is tried again after growing pauses.

The webhook is one POST of JSON to ALERT_WEBHOOK_URL. `X-AIAPI-Signature: sha256=HEX` is the HMAC-SHA256 of
`TIMESTAMP.BODY` under ALERT_WEBHOOK_SECRET, with the timestamp (seconds since the epoch) of `X-AIAPI-Timestamp`.
Receivers should refuse a request whose timestamp is old or whose signature does not match. A message may arrive twice,
if a process dies between sending it and recording that; `id` (the alert's) and `event` identify it.

The host name is resolved once, and only the addresses that passed the check are called, one after the other until one
can be reached. Redirects are not followed. An answer may take TIMEOUT seconds, however slowly it comes, because the
watch does nothing else meanwhile; only its status is read.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import ssl
import time
from base64 import b64encode
from contextlib import closing, suppress
from datetime import datetime, timedelta
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPSConnection
from smtplib import SMTPException
from urllib.parse import unquote, urlsplit

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from core.formats import duration, utc_text
from core.network import METADATA, addresses_of, called_address
from monitoring.export import plain
from monitoring.models import Alert, AlertDelivery
from operations.alerts.conditions import Condition, advice
from operations.alerts.incidents import incident_open

log = structlog.get_logger(__name__)


def message_of(delivery: AlertDelivery) -> tuple[str, str]:
    """Return the title and the text of a delivery's message."""
    alert = delivery.alert
    if not delivery.is_end:
        return alert.title, f"{alert.text} {advice(alert)}".strip()
    ended = alert.ended_at or timezone.now()
    lasted = duration((ended - alert.began_at).total_seconds())
    span = f"It lasted {lasted}, from {utc_text(alert.began_at)} to {utc_text(ended)}."
    return f"Resolved: {alert.title}", f"This is resolved. {span} The alert was: {alert.text}"


TIMEOUT = 5.0  # seconds: to connect, and to answer
LONGEST_LINE = 1024  # bytes of an answer's first line


class WebhookError(Exception):
    """The webhook did not accept the message. The reason does not contain the URL, which may hold a secret."""


def send_webhook(delivery: AlertDelivery) -> None:
    """Post the message of a delivery; raises WebhookError."""
    body = json.dumps(payload(delivery), separators=(",", ":")).encode()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"AI-API/{settings.VERSION}",
        "X-AIAPI-Timestamp": timestamp,
    }
    if settings.ALERT_WEBHOOK_SECRET:
        headers["X-AIAPI-Signature"] = f"sha256={signature(settings.ALERT_WEBHOOK_SECRET, timestamp, body)}"
    try:
        status = _post(settings.ALERT_WEBHOOK_URL, body, headers)
    except socket.gaierror as error:
        raise WebhookError("the host name is not known") from error
    except (HTTPException, OSError, ValueError, LookupError) as error:
        raise WebhookError(type(error).__name__) from error
    if not 200 <= status < 300:
        raise WebhookError(f"status {status}")


def payload(delivery: AlertDelivery) -> dict[str, object]:
    """Return the JSON body of a delivery."""
    alert, (title, text) = delivery.alert, message_of(delivery)
    ended = alert.ended_at if delivery.is_end else None
    return {
        "id": alert.pk,
        "event": "ended" if delivery.is_end else "began",
        "kind": alert.kind,
        "subject": alert.subject,
        "title": title,
        "text": text,
        "began_at": plain(alert.began_at),
        "ended_at": plain(ended),
        "lasted_seconds": ended and round((ended - alert.began_at).total_seconds()),
    }


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Compute the signature of a body, in hexadecimal digits."""
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def checked_addresses(host: str) -> list[str]:
    """Resolve a host to its addresses; raises WebhookError if one of them is not allowed.

    Loopback and private addresses are allowed, because operators set the URL in the environment. A cloud's metadata
    service, link-local, multicast, unspecified and reserved addresses are not.
    """
    addresses = addresses_of(host)
    for called in map(called_address, addresses):
        is_special = called.is_link_local or called.is_multicast or called.is_unspecified or called.is_reserved
        if called in METADATA or (is_special and not called.is_loopback):  # ::1 is among the reserved ones too
            raise WebhookError("the address is not allowed")
    return addresses


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Post over the first address that can be reached, and return the status."""
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = {**headers, "Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    with closing((HTTPSConnection if is_secure else HTTPConnection)(host, parts.port)) as connection:
        *others, last = checked_addresses(host)
        for address in others:
            with suppress(OSError):
                connection.sock = socket.create_connection((address, connection.port), TIMEOUT)
                break
        sock: socket.socket = connection.sock or socket.create_connection((last, connection.port), TIMEOUT)
        ends = time.monotonic() + TIMEOUT
        if is_secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = sock
        connection.request("POST", f"{parts.path or '/'}?{parts.query}".removesuffix("?"), body, headers)
        line = b""
        while b"\n" not in line:
            sock.settimeout(max(0.001, ends - time.monotonic()))
            piece = sock.recv(LONGEST_LINE - len(line))
            if not piece:
                raise BadStatusLine("the connection was closed, or the first line is too long")
            line += piece
    return int(line.split(maxsplit=2)[1])


FIRST_PAUSE = timedelta(seconds=30)  # doubled with each attempt
MOST_ATTEMPTS = 7  # over half an hour
A_ROUND = 50  # deliveries at most
#: After this many seconds a round sends nothing more: the watch does nothing else meanwhile, and each message to a
#: silent mail server takes as long.
ROUND_SECONDS = 10.0


def deliveries_send(now: datetime | None = None) -> int:
    """Send due deliveries, for about ROUND_SECONDS; return how many succeeded."""
    due_at, began = now or timezone.now(), time.monotonic()
    underway = AlertDelivery.objects.filter(sent_at=None, attempts__lt=MOST_ATTEMPTS)
    beginning = underway.filter(
        alert=OuterRef("alert"), channel=OuterRef("channel"), recipient=OuterRef("recipient"), is_end=False
    )
    # The message of an end waits until that of the beginning is sent to the same recipient.
    due = underway.filter(Q(is_end=False) | ~Exists(beginning), next_at__lte=due_at)
    arrived = 0
    for delivery in due.select_related("alert").order_by("next_at")[:A_ROUND]:
        arrived += _deliver(delivery, due_at)
        if time.monotonic() - began >= ROUND_SECONDS:
            break
    return arrived


def send_test_alert() -> list[AlertDelivery]:
    """Send a test alert to all recipients now; return its deliveries with their results."""
    now = timezone.now()
    title, text = "Test alert", f"This is a test of the alerts of {settings.NAME}: nothing is wrong."
    alert = incident_open(Condition(Alert.Kind.TEST, f"test:{now.timestamp()}", title, text))
    if alert is None:
        return []
    Alert.objects.filter(pk=alert.pk).update(ended_at=now)
    deliveries = list(alert.deliveries.select_related("alert"))
    for delivery in deliveries:
        _deliver(delivery, now)
        delivery.refresh_from_db()
    return deliveries


def _deliver(delivery: AlertDelivery, now: datetime) -> bool:
    """Take a delivery and send it; return False if another process has taken it, or if it failed."""
    mine = AlertDelivery.objects.filter(pk=delivery.pk, sent_at=None, attempts=delivery.attempts)
    pause = FIRST_PAUSE * 2**delivery.attempts
    if not mine.update(attempts=delivery.attempts + 1, next_at=now + pause):
        return False
    try:
        if delivery.channel == AlertDelivery.Channel.WEBHOOK:
            send_webhook(delivery)
        else:
            title, text = message_of(delivery)
            subject = " ".join(f"[{settings.NAME}] {title}".split())  # names of callers may hold line breaks
            body = text if delivery.is_end else f"{text}\n\nIt began at {utc_text(delivery.alert.began_at)}."
            EmailMessage(subject, f"{body}\n", settings.DEFAULT_FROM_EMAIL, [delivery.recipient]).send()
    except (WebhookError, SMTPException, OSError, ValueError) as error:  # ValueError: invalid headers or addresses
        cause = str(error) if isinstance(error, WebhookError) else type(error).__name__
        log.error("alert_not_delivered", alert=delivery.alert_id, channel=delivery.channel, cause=cause)
        AlertDelivery.objects.filter(pk=delivery.pk).update(failure=cause[:100])
        return False
    AlertDelivery.objects.filter(pk=delivery.pk).update(sent_at=timezone.now(), failure="")
    return True
