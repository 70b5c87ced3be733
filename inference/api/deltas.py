"""The events of a streamed /chat: `delta` with a piece of text, then `done` with the whole answer, or `error`."""

from __future__ import annotations

from functools import partial
from typing import Any

from core.errors import ApiError, ContentFiltered, UpstreamFailed
from inference.protocols.base import GIVEN_UP, Body, Payload, choices_in
from inference.protocols.chat import chat_surface
from inference.protocols.events import ChunkReader
from inference.protocols.sse import server_sent


class DeltaReader(ChunkReader):
    """Turns a provider's chunks into the events of /chat: `delta` with `{text}`, then `done` with the whole answer."""

    def __init__(self, payload: Payload, *, model: str, label: str, is_cached: bool) -> None:
        super().__init__(forwards_usage=False)
        self._payload = payload
        self._model = model
        self._label = label
        self._is_cached = is_cached
        self._said: list[str] = []
        self._reason: Any = None
        self._written = b""

    def look(self, event: Body) -> bool:
        """Take the usage and the text."""
        super().look(event)
        choice = next(iter(choices_in(event)), {})
        self._reason = choice.get("finish_reason") or self._reason  # checked at the end, when the usage is known
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            self._said.append(text)
            self._written = server_sent("delta", {"text": text})
        return False

    def take_done(self) -> bool:
        """Write the event `done`."""
        super().take_done()
        self._written = server_sent("done", self._answer())
        return False

    def _is_signed(self, events: bytes) -> bool:
        return True

    def _relay(self, event: bytes) -> bytes:
        self._written = b""
        self._passes(event)
        return self._written

    def _answer(self) -> Body:
        """Build the body of a non-streamed answer.

        Raises ContentFiltered or UpstreamFailed if the provider filtered or aborted the answer, which is then
        incomplete, and UpstreamFailed if it is empty.
        """
        if self._reason == "content_filter":
            raise ContentFiltered
        if self._reason in GIVEN_UP:
            raise UpstreamFailed
        response = "".join(self._said)
        if not response.strip():
            raise UpstreamFailed
        usage, _ = self.billed_usage(partial(chat_surface.estimate, self._payload, model=self._model))
        return {
            "response": response,
            "tokens_used": usage.input_tokens + usage.output_tokens,
            "cached": self._is_cached,
            "request_id": self._label,
        }


def delta_error(error: ApiError, *, label: str) -> bytes:
    """Return an error as an event of /chat."""
    return server_sent("error", {"detail": error.detail, "code": error.error_code, "request_id": label})
