"""What tests of the upstream share: a chat that is known by heart, and a plain way to send it."""

import http.client
import json
from collections.abc import Mapping
from typing import Any

from inference.fake_provider import FakeUpstream

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
"""Two tokens in, answered by `You said: hello there`: four tokens out."""


def connect(fake: FakeUpstream, timeout: float = 5) -> http.client.HTTPConnection:
    """Return a connection to the fake provider."""
    return http.client.HTTPConnection("127.0.0.1", fake.port, timeout=timeout)


def post(
    fake: FakeUpstream, path: str, body: Any, timeout: float = 5, headers: Mapping[str, str] | None = None
) -> http.client.HTTPResponse:
    """Post a body (text as it is, anything else as JSON) and return the answer, unread."""
    connection = connect(fake, timeout)
    connection.request("POST", path, body if isinstance(body, str) else json.dumps(body), dict(headers or {}))
    return connection.getresponse()


def chat_body(*, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """Return the body of the known chat, with more fields if wanted."""
    return {"model": "m", "messages": HELLO, "stream": stream, "stream_options": {"include_usage": True}, **fields}


def events(raw: bytes) -> list[str]:
    """Return the data of each server-sent event."""
    return [line.removeprefix("data: ") for line in raw.decode().split("\n") if line.startswith("data: ")]
