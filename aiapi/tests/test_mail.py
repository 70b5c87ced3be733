"""The mail server, out of one URL."""

from __future__ import annotations

import pytest

from core.env import MailServer, email_settings


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("", MailServer()),
        ("smtp://mail.test", MailServer("mail.test", 25)),
        ("smtp+tls://us%40er:p%2Fw@mail.test", MailServer("mail.test", 587, "us@er", "p/w", starts_tls=True)),
        ("smtps://mail.test:2465", MailServer("mail.test", 2465, is_tls=True)),
    ],
)
def test_it_reads_the_server(url: str, server: MailServer) -> None:
    assert email_settings(url) == server
