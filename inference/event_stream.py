"""Streams of the platform's own: the answer's HTTP side, and the events of /chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from django.http import StreamingHttpResponse
from rest_framework.request import Request

from accounts.exceptions import ApiError, ContentFiltered, UpstreamFailed
from inference.calls import Caller
from inference.streaming import StreamedCall
from inference.surfaces.base import GIVEN_UP, Body, Payload, choices_in, written_json
from inference.surfaces.chat import chat_surface
from inference.surfaces.events import ChunkReader, EventReader

EVENT_STREAM = "text/event-stream"


def accepts_events(request: Request) -> bool:
    """Return whether a request names a stream of events among what it accepts; media types have no case."""
    return EVENT_STREAM in str(request.META.get("HTTP_ACCEPT", "")).lower()


def event_response(stream: StreamedCall, headers: Mapping[str, str]) -> StreamingHttpResponse:
    """Make the answer of an opened stream: nothing on its way may buffer it."""
    response = StreamingHttpResponse(stream, content_type=EVENT_STREAM, headers=dict(headers))
    response["X-Accel-Buffering"] = "no"
    return response


def server_sent(event: str, data: Mapping[str, Any]) -> bytes:
    """Write an event with a name."""
    return b"event: " + event.encode() + b"\ndata: " + written_json(data) + b"\n\n"


class DeltaReader(ChunkReader):
    """Turns a provider's chunks into the events of /chat: `delta` with `{text}`, then `done` with the plain answer."""

    def __init__(self, caller: Caller, payload: Payload, *, model: str, is_cached: bool) -> None:
        super().__init__(forwards_usage=False)
        self._caller = caller
        self._payload = payload
        self._model = model
        self._is_cached = is_cached
        self._said: list[str] = []
        self._reason: Any = None
        self._written = b""

    def look(self, event: Body) -> bool:
        """Take the usage and the text."""
        super().look(event)
        choice = next(iter(choices_in(event)), {})
        self._reason = choice.get("finish_reason") or self._reason  # told at the end, once the usage is known
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            self._said.append(text)
            self._written = server_sent("delta", {"text": text})
        return False

    def take_done(self) -> bool:
        """Write the answer."""
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
        """Make the body that a plain request would have got. Raises UpstreamFailed for an empty answer.

        Raises ContentFiltered or UpstreamFailed where the provider stopped it or gave it up: what was sent until then
        is not a whole answer.
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
            "request_id": self._caller.trace.label,
        }


def chat_error_event(caller: Caller) -> Callable[[ApiError, EventReader], bytes]:
    """Return what writes an error in the middle of a stream of /chat."""

    def write(error: ApiError, reader: EventReader) -> bytes:
        body = {"detail": error.detail, "code": error.error_code, "request_id": caller.trace.label}
        return server_sent("error", body)

    return write
