"""The signed webhook: one POST of JSON to ALERT_WEBHOOK_URL.

`X-AIAPI-Signature: sha256=HEX` is the HMAC-SHA256 of `TIMESTAMP.BODY` under ALERT_WEBHOOK_SECRET, with the timestamp
(seconds since the epoch) of `X-AIAPI-Timestamp`: a receiver refuses what is old or doesn't match. The body's `id` is
the alert's, `event` says whether it began or is over: what comes twice, because a process died between sending it and
writing that down, can be told by the two.

The name is resolved once and the addresses that were checked are those that are called, one after the other until one
can be reached; redirects are not followed. All of it takes TIMEOUT seconds at most for each address, however slowly a
receiver talks: the watch looks at nothing else meanwhile.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from urllib.parse import SplitResult, unquote, urlsplit

import urllib3
from django.conf import settings
from urllib3.connection import HTTPConnection, HTTPSConnection

from accounts.addresses import METADATA, Address, addresses_of, called_address
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
    except socket.gaierror as error:
        raise WebhookError("the host name is not known") from error
    except (HTTPException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
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


def checked_addresses(host: str) -> list[str]:
    """Resolve a host to the addresses that may be called; raises WebhookError where one is nobody's webhook.

    The URL comes from the environment, so that loopback and private networks may be meant; a cloud's metadata service
    may not.
    """
    addresses = addresses_of(host)
    if any(_is_forbidden(called_address(address)) for address in addresses):
        raise WebhookError("the address is not allowed")
    return addresses


def _is_forbidden(address: Address) -> bool:
    if address.is_loopback:  # ::1 is among the reserved ones too
        return False
    is_elsewhere = address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved
    return is_elsewhere or address in METADATA


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    named = {**headers, **_credentials(parts), "Host": parts.netloc.rpartition("@")[2]}
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    *others, last = checked_addresses(host)
    for address in others:
        with suppress(urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError):
            return _status_of(_connection(parts.scheme, address, port, host), target, body, named)
    return _status_of(_connection(parts.scheme, last, port, host), target, body, named)


def _credentials(parts: SplitResult) -> dict[str, str]:
    """Make the header of the user and password that a URL may hold."""
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return dict(urllib3.make_headers(basic_auth=pair))


def _connection(scheme: str, address: str, port: int, host: str) -> HTTPConnection:
    if scheme == "https":
        return HTTPSConnection(address, port, timeout=TIMEOUT, server_hostname=host, assert_hostname=host)
    return HTTPConnection(address, port, timeout=TIMEOUT)


def _status_of(connection: HTTPConnection, target: str, body: bytes, headers: dict[str, str]) -> int:
    """Post over a connection and close it; what is under way when the time is over is broken off."""
    is_late = threading.Event()

    def break_off() -> None:
        is_late.set()
        with suppress(OSError, AttributeError):  # it is closed, or not open yet: then its own timeout ends it
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    timer = threading.Timer(TIMEOUT, break_off)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", target, body=body, headers=headers, preload_content=False)
        return int(connection.getresponse().status)
    except (HTTPException, urllib3.exceptions.HTTPError, OSError) as error:
        if is_late.is_set():
            raise WebhookError("ReadTimeoutError") from error
        raise
    finally:
        timer.cancel()
        connection.close()
