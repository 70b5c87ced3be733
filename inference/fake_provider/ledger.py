"""The requests that the fake provider received and the tokens that it bills, to compare with the platform's records."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

KEPT_REQUESTS = 10_000
"""Most requests kept, so that a long benchmark does not fill the memory; all calls are kept."""


@dataclass(frozen=True, slots=True)
class Received:
    """A received request; header names in lower case, `body` parsed if it was JSON, otherwise None."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(slots=True)
class Call:
    """A call to a model and the tokens billed for it; times are monotonic seconds, `ended_at` is None while it runs.

    `outcome` is `running`, `complete`, `cut` (by a fault), `client_left` or `failed` (nothing billed).
    """

    id: str
    path: str
    model: str
    stream: bool
    fault: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    outcome: str = "running"
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None

    def end(self, outcome: str) -> None:
        """End the call with an outcome; only the first end counts."""
        if self.ended_at is None:
            self.outcome = outcome
            self.ended_at = time.monotonic()


class Ledger:
    """All calls since the start or the last reset, in order of arrival."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.requests: deque[Received] = deque(maxlen=KEPT_REQUESTS)

    def totals(self) -> dict[str, int]:
        """Return the number of calls, the number of running calls, and the sums of their tokens."""
        calls = list(self.calls)
        return {
            "calls": len(calls),
            "running": sum(call.ended_at is None for call in calls),
            "prompt_tokens": sum(call.prompt_tokens for call in calls),
            "cached_tokens": sum(call.cached_tokens for call in calls),
            "completion_tokens": sum(call.completion_tokens for call in calls),
        }

    def as_json(self, *, with_calls: bool) -> dict[str, Any]:
        """Return the totals and, if asked for, every call as plain values."""
        body: dict[str, Any] = {"totals": self.totals()}
        if with_calls:
            body["calls"] = [asdict(call) for call in list(self.calls)]
        return body

    def clear(self) -> None:
        """Forget all calls and requests."""
        self.calls.clear()
        self.requests.clear()
