"""A model call as plain values: the request, its caller and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accounts.key_cache import AuthenticatedKey
from accounts.limits.types import Admission, Window
from core.telemetry.trace import Trace
from inference.client_socket import ClientSocket
from inference.protocols.base import Body, WireProtocol


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request to a model: the endpoint's name, the model (None: the default), the provider's payload without `model`.

    `read` extracts the endpoint's answer from a provider's body. It raises an ApiError if the body is unusable for the
    endpoint; such an answer is billed and not cached. `shares_answer`: the answer may come from the cache and be stored
    in it.
    """

    endpoint: str
    protocol: WireProtocol
    model: str | None
    payload: Mapping[str, Any]
    read: Callable[[Body], Any]
    shares_answer: bool = True
    is_stream: bool = False
    reads_cache: bool = True
    writes_cache: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity behind a call, and its request.

    `token_windows` are the token rates after the call's latest reservation; empty without one. `client` returns the
    client's socket, to notice a disconnect; None if the call runs to its end even after a disconnect.
    """

    identity: AuthenticatedKey
    trace: Trace
    admission: Admission
    token_windows: list[Window | None] = field(default_factory=list, compare=False)
    client: Callable[[], ClientSocket] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and the values of its headers. `cost` is in nano-dollars: 0 for a hit, None if unknown."""

    content: Any
    body: Body
    cache: str
    model: str
    tokens: int
    cost: int | None = 0
    is_fallback: bool = False

    @property
    def is_cached(self) -> bool:
        """Return whether the answer came without an upstream call."""
        return self.cache in ("hit", "coalesced")
