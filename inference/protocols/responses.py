"""The protocol of POST /responses."""

from __future__ import annotations

from itertools import chain
from typing import Any

from inference.protocols.base import (
    PART_OVERHEAD,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    Usage,
    WireProtocol,
    json_bytes,
    read_response_usage,
)
from inference.protocols.chat import UNCACHEABLE
from inference.protocols.content import (
    IMAGE_ESTIMATE,
    IMAGE_TOKENS,
    image_count,
    schema_texts,
    texts_in,
    tool_overhead,
    tools_in,
    without_images,
)
from inference.protocols.events import ResponseReader
from inference.protocols.tokens import MESSAGE_TOKENS, REPLY_TOKENS, count_tokens

#: Fields of an output item that the model did not write, besides its type and id.
LABELS = {"role": None, "status": None, "call_id": None, "encrypted_content": None}
#: Characters of encrypted reasoning a token: base64 of about 4.5 characters of text.
ENCRYPTED = 6


class ResponseProtocol(WireProtocol):
    """Responses, without anything that the provider would store."""

    path = "/responses"
    least_output = 16

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON, plus IMAGE_TOKENS an image, plus overhead."""
        items = _items(payload.get("input"))
        rest = {name: value for name, value in payload.items() if name != "input"}
        images = image_count(items)
        size = json_bytes(without_images(items) if images else items) + json_bytes(rest)
        around = PART_OVERHEAD * len(items) + sum(map(tool_overhead, tools_in(_tools(payload))))
        return REQUEST_OVERHEAD + around + size + IMAGE_TOKENS * images

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_output_tokens."""
        asked = payload.get("max_output_tokens")
        return None if asked is None else int(asked)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum, and forbid the provider to store anything."""
        return {**payload, "max_output_tokens": tokens, "store": False}

    def read_usage(self, body: Body) -> Usage | None:
        """Return the usage in `usage`."""
        return read_response_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the input, the schemas, the images and the output."""
        given = _items(payload.get("input"))
        items = [*map(_without_tools, without_images(given)), payload.get("instructions")]
        texts = chain(texts_in(items), schema_texts({**payload, "tools": _tools(payload)}))
        around = MESSAGE_TOKENS * len(items) + REPLY_TOKENS + IMAGE_ESTIMATE * image_count(given)
        prompt = count_tokens(texts, model=model) + around
        output = [item for item in body.get("output") or [] if isinstance(item, dict)]
        hidden = sum(len(str(item.get("encrypted_content") or "")) for item in output) // ENCRYPTED
        written = count_tokens(texts_in([{**item, **LABELS} for item in output]), model=model)
        return Usage(prompt, 0, written + hidden)

    def is_complete(self, body: Body) -> bool:
        """Return whether there is an output and the response has not failed."""
        return isinstance(body.get("output"), list) and body.get("status") != "failed"

    def is_finished(self, body: Body) -> bool:
        """Return whether the response is completed, or ended at its maximum of output tokens."""
        details = body.get("incomplete_details")
        is_cut = isinstance(details, dict) and details.get("reason") == "max_output_tokens"
        return body.get("status") == "completed" or (body.get("status") == "incomplete" and is_cut)

    def is_cacheable(self, payload: Payload) -> bool:
        """Return whether the temperature is 0 and the request has no tools and no personal parameters."""
        is_own = any(payload.get(name) for name in UNCACHEABLE) or bool(_tools(payload))
        return payload.get("temperature") == 0 and not is_own

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream, whose last event holds the usage."""
        return {**payload, "stream": True}

    def opens_stream(self, event: Body) -> bool:
        """Return whether the event belongs to a response and is not its failure."""
        kind = event.get("type")
        return isinstance(kind, str) and kind.startswith("response.") and kind != "response.failed"

    def reader(self, payload: Payload) -> ResponseReader:
        """Return a reader of the events of a response."""
        return ResponseReader()


response_surface = ResponseProtocol()


def _tools(payload: Payload) -> list[Body]:
    """Return all tools of a request: those beside its input, and those in the items of its input."""
    items = (item for item in _items(payload.get("input")) if isinstance(item, dict))
    return [tool for holder in (payload, *items) for tool in holder.get("tools") or ()]


def _without_tools(item: Any) -> Any:
    return {name: value for name, value in item.items() if name != "tools"} if isinstance(item, dict) else item


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value if value is not None else ""]
