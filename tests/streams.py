"""A client of streams that sees what an SDK hides: when each byte came, and what is left when it goes away."""

from __future__ import annotations

import http.client
import json
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from tests.servers import Service

CHAT = "/v1/chat/completions"


def asked(model: str, text: str = "hello there", **more: Any) -> dict[str, Any]:
    """Make the body of a chat completion that streams."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **more}


class Stream:
    """An answer that is read as it comes; `label` is its request id."""

    def __init__(
        self, service: Service, body: Any, *, key: str, path: str = CHAT, headers: Mapping[str, str] | None = None
    ) -> None:
        self.label = uuid.uuid4().hex
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        sent = {"X-API-Key": key, "Content-Type": "application/json", "X-Request-ID": self.label, **(headers or {})}
        self.asked_at = time.monotonic()
        self._connection.request("POST", path, json.dumps(body), sent)

    def answer(self) -> http.client.HTTPResponse:
        """Wait for status and headers."""
        self._answer = self._connection.getresponse()
        self.headed_at = time.monotonic()
        return self._answer

    def lines(self) -> Iterator[tuple[float, str]]:
        """Yield each line that is not empty with the seconds since the request was sent."""
        while line := self._answer.readline():
            if line.strip():
                yield time.monotonic() - self.asked_at, line.decode().rstrip("\n")

    def text(self) -> str:
        """Read to the end."""
        return self._answer.read().decode()

    def leave(self, *, half: bool = False) -> float:
        """Go away without a word, or close the sending half alone; return the moment (monotonic)."""
        connected = self._connection.sock
        if connected is not None:
            connected.shutdown(socket.SHUT_WR if half else socket.SHUT_RDWR)
        if half:
            return time.monotonic()
        self._connection.close()
        if hasattr(self, "_answer"):
            self._answer.close()
        return time.monotonic()
