"""Callers that ask a server at a steady rate: plain and streamed, new and old questions, on new and old connections."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.answers import data_of

PATH = "/v1/chat/completions"
PATIENCE = 60.0
#: Different questions that a caller who repeats himself asks, whose answers are cached.
REPEATED = 5
REFUSED = http.HTTPStatus.TOO_MANY_REQUESTS


LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def ask_live(connection: socket.socket) -> bytes:
    """Ask for /health/live, and read the answer, or what comes until the connection ends."""
    connection.sendall(LIVE)
    answer = b""
    while not answer.endswith(b"}") and (piece := connection.recv(65_536)):
        answer += piece
    return answer


@dataclass(frozen=True)
class Manner:
    """How a caller asks: by which key, for a stream, always anew or again and again, on one connection or many."""

    key: str
    is_streamed: bool = False
    is_repeated: bool = False
    is_kept: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one request; `failure` names its kind, and is empty for a whole answer and for a limit's refusal.

    `began_at` is in monotonic seconds.
    """

    label: str
    question: str
    manner: Manner
    began_at: float
    seconds: float
    status: int
    failure: str
    says_close: bool = False


@dataclass
class Traffic:
    """Callers of a port, one for each manner, that together ask `rate` times a second."""

    port: int
    model: str
    manners: Sequence[Manner]
    rate: float = 50.0
    outcomes: list[Outcome] = field(default_factory=list)

    def failures(self) -> list[Outcome]:
        """List the requests that failed."""
        return [outcome for outcome in self.outcomes if outcome.failure]

    def wait_for(self, number: int) -> None:
        """Wait until so many requests more have ended."""
        ends = len(self.outcomes) + number
        deadline = time.monotonic() + PATIENCE
        while len(self.outcomes) < ends:
            assert time.monotonic() < deadline, f"{ends - len(self.outcomes)} of {number} requests are missing"
            time.sleep(0.05)

    @contextmanager
    def running(self) -> Iterator[Traffic]:
        """Have the callers ask; at the end wait for the answers that are still to come."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._call, args=(place, stop)) for place in range(len(self.manners))]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)

    def _call(self, place: int, stop: threading.Event) -> None:
        caller = _Caller(self.port, self.model, self.manners[place])
        stop.wait(place / self.rate)
        while not stop.is_set():
            outcome = caller.ask()
            self.outcomes.append(outcome)
            stop.wait(max(0.0, outcome.began_at + len(self.manners) / self.rate - time.monotonic()))
        caller.close()


class _Caller:
    def __init__(self, port: int, model: str, manner: Manner) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._model, self._manner, self._asked = model, manner, 0

    def ask(self) -> Outcome:
        """Ask once, on the connection that is there unless the server has closed it, as any client's pool does."""
        if not self._manner.is_kept or self._is_closed():
            self._connection.close()
        label, self._asked = uuid.uuid4().hex, self._asked + 1
        question = f"{self._manner.key[-8:]}-{self._asked % REPEATED}" if self._manner.is_repeated else label
        began, status, headers, failure = time.monotonic(), 0, http.client.HTTPMessage(), ""
        try:
            self._connection.request("POST", PATH, self._body(question), self._headers(label))
            answer = self._connection.getresponse()
            status, headers = answer.status, answer.headers
            failure = _fault(status, answer.read().decode(), is_streamed=self._manner.is_streamed)
        except TimeoutError:
            failure = "timed out"
        except (OSError, http.client.HTTPException):
            failure = "cut off"
        if failure in ("timed out", "cut off"):
            self._connection.close()
        seconds, says_close = time.monotonic() - began, headers.get("Connection", "").lower() == "close"
        return Outcome(label, question, self._manner, began, seconds, status, failure, says_close)

    def _body(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        temperature = 0 if self._manner.is_repeated else 1
        asked = {"model": self._model, "messages": messages, "temperature": temperature}
        return json.dumps({**asked, "stream": self._manner.is_streamed})

    def _headers(self, label: str) -> dict[str, str]:
        return {"X-API-Key": self._manner.key, "X-Request-ID": label, "Content-Type": "application/json"}

    def _is_closed(self) -> bool:
        connected = self._connection.sock
        return connected is not None and bool(select.select([connected], [], [], 0)[0])

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _fault(status: int, text: str, *, is_streamed: bool) -> str:
    """Name what is wrong with an answer, or nothing."""
    if status == REFUSED:
        return ""
    if status != http.HTTPStatus.OK:
        return f"{status} {_code_of(text)}"
    if not is_streamed:
        return "" if "choices" in json.loads(text) else text
    events: list[Any] = data_of(text)
    errors = [each["error"]["code"] for each in events if isinstance(each, Mapping) and "error" in each]
    if errors:
        return f"200, then {errors[0]}"
    return "" if events and events[-1] == "[DONE]" else "cut off"


def _code_of(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return text[:60]
