"""The signed webhook: one POST of JSON to ALERT_WEBHOOK_URL.

`X-AIAPI-Signature: sha256=HEX` is the HMAC-SHA256 of `TIMESTAMP.BODY` under ALERT_WEBHOOK_SECRET, with the timestamp
(seconds since the epoch) of `X-AIAPI-Timestamp`: a receiver refuses what is old or doesn't match. The body's `id` is
the alert's, `event` says whether it began or is over: what comes twice, because a process died between sending it and
writing that down, can be told by the two.

The name is resolved once and the address that was checked is the one that is called; redirects are not followed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import socket
import time
from urllib.parse import urlsplit

import urllib3
from django.conf import settings

from monitoring.alerts.messages import message_of
from monitoring.export import plain
from monitoring.models import AlertDelivery

TIMEOUT = 5.0  # seconds


class WebhookError(Exception):
    """The webhook did not take the alert; the text says why, without the URL, which may hold a secret."""


def send_webhook(delivery: AlertDelivery) -> None:
    """Post that an alert began or is over; raises WebhookError."""
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
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise WebhookError(type(error).__name__) from error
    if not 200 <= status < 300:
        raise WebhookError(f"status {status}")


def payload(delivery: AlertDelivery) -> dict[str, object]:
    """Make what is posted."""
    alert, message = delivery.alert, message_of(delivery)
    ended = alert.ended_at if delivery.is_end else None
    return {
        "id": alert.pk,
        "event": "ended" if delivery.is_end else "began",
        "kind": alert.kind,
        "subject": alert.subject,
        "title": message.title,
        "text": message.text,
        "began_at": plain(alert.began_at),
        "ended_at": plain(ended),
        "lasted_seconds": ended and round((ended - alert.began_at).total_seconds()),
    }


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Compute the signature of a body, in hexadecimal digits."""
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def checked_address(host: str, port: int) -> str:
    """Resolve a host to an address that may be called; raises WebhookError for one that nobody's webhook has.

    The URL comes from the environment, so that loopback and private networks may be meant; a cloud's metadata service,
    which is link-local, may not.
    """
    address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    parsed = ipaddress.ip_address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified or parsed.is_reserved:
        raise WebhookError("the address is not allowed")
    return address


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    address = checked_address(host, port)
    timeout = urllib3.Timeout(total=TIMEOUT)
    pool: urllib3.HTTPConnectionPool
    if is_secure:
        pool = urllib3.HTTPSConnectionPool(address, port, timeout=timeout, server_hostname=host, assert_hostname=host)
    else:
        pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    named = {**headers, "Host": parts.netloc.rpartition("@")[2]}
    with pool:
        response = pool.urlopen(
            "POST", target, body=body, headers=named, retries=False, redirect=False, preload_content=False
        )
        response.release_conn()
        return int(response.status)
