"""The webhook's connection: to whom it may go, what it says of who sends, and how long it takes at most."""

from __future__ import annotations

import base64
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from monitoring.models import Alert, AlertDelivery
from operations.alerts.deliveries import WebhookError, checked_addresses, send_webhook
from operations.tests.webhooks import Hook, webhook


@pytest.fixture
def hook(settings: Settings) -> Iterator[Hook]:
    """Run a webhook that alerts go to."""
    with webhook() as made:
        settings.ALERT_WEBHOOK_URL = made.url
        yield made


@pytest.fixture
def delivery() -> AlertDelivery:
    """Return a delivery of an alert that began."""
    alert = Alert(pk=1, kind=Alert.Kind.ERRORS, subject="s", title="title", text="text", began_at=timezone.now())
    return AlertDelivery(alert=alert, channel=AlertDelivery.Channel.WEBHOOK)


@contextmanager
def talking_without_end() -> Iterator[str]:
    """Run a receiver that never comes to the end of its first line, and hand over its URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while not is_over.wait(0.05):
                    self.request.sendall(b"H")

    is_over = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            is_over.set()
            server.shutdown()
            thread.join()


def test_it_posts_to_no_metadata_service_and_to_this_machine_and_private_networks() -> None:
    for host in (
        *("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1"),
        *("::", "224.0.0.1", "240.0.0.1", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"),
    ):
        with pytest.raises(WebhookError, match="not allowed"):
            checked_addresses(host)
    for host in ("127.0.0.1", "::1", "10.0.0.1", "fd00::1", "64:ff9b::c000:201"):
        assert checked_addresses(host) == [host]


def test_it_tries_each_address_of_a_name(
    hook: Hook, delivery: AlertDelivery, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def resolved(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        if host != "hook.test":
            return resolve(host, *args, **kwargs)
        return [found for address in ("127.0.0.2", "127.0.0.1") for found in resolve(address, *args, **kwargs)]

    monkeypatch.setattr("socket.getaddrinfo", resolved)
    settings.ALERT_WEBHOOK_URL = hook.url.replace("127.0.0.1", "hook.test")
    send_webhook(delivery)
    assert len(hook.got) == 1


def test_it_sends_the_user_and_password_of_the_url(hook: Hook, delivery: AlertDelivery, settings: Settings) -> None:
    settings.ALERT_WEBHOOK_URL = hook.url.replace("http://", "http://me:p%40ss@")
    send_webhook(delivery)
    ((headers, _),) = hook.got
    assert headers["authorization"] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    assert headers["host"].startswith("127.0.0.1:")


def test_it_waits_for_no_receiver_that_never_ends_and_says_that_a_name_is_not_known(
    delivery: AlertDelivery, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.alerts.deliveries.TIMEOUT", 0.3)
    with talking_without_end() as url:
        for where, cause in ((url, "TimeoutError"), ("http://hooks.invalid/", "the host name is not known")):
            settings.ALERT_WEBHOOK_URL = where
            with pytest.raises(WebhookError, match=cause):
                send_webhook(delivery)
