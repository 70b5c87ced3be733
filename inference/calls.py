"""A model call as plain values: what is asked, by whom, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accounts.limits.contract import Admission
from accounts.snapshots import Identity
from monitoring.trace import Trace


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What is asked: an endpoint's name, a model (None: the default), and a chat completion's body without `model`.

    `read` takes what the surface answers out of a provider's body, or raises the ApiError that it means there.
    """

    endpoint: str
    model: str | None
    payload: Mapping[str, Any]
    read: Callable[[dict[str, Any]], str]
    output_tokens: int | None = None
    reads_cache: bool = True
    writes_cache: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, in which request."""

    identity: Identity
    trace: Trace
    admission: Admission


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered, and what the headers tell about it. `cost` is in nano-dollars, 0 for a hit."""

    text: str
    body: dict[str, Any]
    cache: str
    model: str
    tokens: int
    cost: int = 0

    @property
    def is_cached(self) -> bool:
        """Say whether nothing was sent upstream for it."""
        return self.cache in ("hit", "coalesced")
