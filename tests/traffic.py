"""Callers that ask a server at a steady rate, plain and streamed, on kept connections and on new ones."""

from __future__ import annotations

import http.client
import json
import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.streams import data_of

PATH = "/v1/chat/completions"
PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """What came of one request; `failure` is empty where all of it was answered. Times are monotonic seconds."""

    began_at: float
    seconds: float
    failure: str
    is_kept: bool
    says_close: bool = False


@dataclass
class Traffic:
    """Callers of a port; each asks `rate / callers` times a second, every second one for a stream of `streamed`."""

    port: int
    key: str
    plain: str
    streamed: str
    callers: int = 20
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
        threads = [threading.Thread(target=self._call, args=(place, stop)) for place in range(self.callers)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)

    def _call(self, place: int, stop: threading.Event) -> None:
        caller = _Caller(self.port, self.key, is_kept=place % 4 < 2, is_streamed=place % 2 == 1)
        stop.wait(place / self.rate)
        while not stop.is_set():
            outcome = caller.ask(self.streamed if place % 2 else self.plain)
            self.outcomes.append(outcome)
            stop.wait(max(0.0, outcome.began_at + self.callers / self.rate - time.monotonic()))
        caller.close()


class _Caller:
    def __init__(self, port: int, key: str, *, is_kept: bool, is_streamed: bool) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._headers = {"X-API-Key": key, "Content-Type": "application/json"}
        self._is_kept, self._is_streamed = is_kept, is_streamed

    def ask(self, model: str) -> Outcome:
        """Ask once, on the connection that is there unless the server has closed it, as any client's pool does."""
        if not self._is_kept or self._is_closed():
            self._connection.close()
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": self._is_streamed}
        began, headers, failure = time.monotonic(), http.client.HTTPMessage(), ""
        try:
            self._connection.request("POST", PATH, json.dumps(body), self._headers)
            answer = self._connection.getresponse()
            headers = answer.headers
            failure = _fault(answer.status, answer.read().decode(), is_streamed=self._is_streamed)
        except (OSError, http.client.HTTPException) as error:
            failure = repr(error)
            self._connection.close()
        says_close = headers.get("Connection", "").lower() == "close"
        return Outcome(began, time.monotonic() - began, failure, self._is_kept, says_close)

    def _is_closed(self) -> bool:
        connected = self._connection.sock
        return connected is not None and bool(select.select([connected], [], [], 0)[0])

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _fault(status: int, text: str, *, is_streamed: bool) -> str:
    """Return what is wrong with an answer, or nothing."""
    if status != http.HTTPStatus.OK:
        return f"{status} {text}"
    if not is_streamed:
        return "" if "choices" in json.loads(text) else text
    events: list[Any] = data_of(text)
    is_whole = bool(events) and events[-1] == "[DONE]"
    return "" if is_whole and not any(isinstance(each, Mapping) and "error" in each for each in events) else text
