"""A model call as plain values: what is asked, by whom, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accounts.key_cache import Identity
from accounts.limits.types import Admission, Window
from core.telemetry.trace import Trace
from inference.client_socket import ClientSocket
from inference.protocols.base import Body, Surface


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What is asked: an endpoint's name, a model (None: the default), and the provider's payload without `model`.

    `read` takes what the endpoint answers out of a provider's body, or raises the ApiError that it means there: such
    an answer is billed, and not kept. `shares_answer`: the answer may come from the cache, and go there.
    """

    endpoint: str
    surface: Surface
    model: str | None
    payload: Mapping[str, Any]
    read: Callable[[Body], Any]
    shares_answer: bool = True
    is_stream: bool = False
    reads_cache: bool = True
    writes_cache: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, in which request.

    `token_windows` are those that the call's latest reservation left, if it has any. `client` makes the socket at the
    other end of which an answer is waited for; None where it is made even if nobody does.
    """

    identity: Identity
    trace: Trace
    admission: Admission
    token_windows: list[Window | None] = field(default_factory=list, compare=False)
    client: Callable[[], ClientSocket] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered, and what the headers tell about it. `cost` is in nano-dollars, 0 for a hit, None if unknown."""

    content: Any
    body: Body
    cache: str
    model: str
    tokens: int
    cost: int | None = 0
    is_fallback: bool = False

    @property
    def is_cached(self) -> bool:
        """Say whether nothing was sent upstream for it."""
        return self.cache in ("hit", "coalesced")
