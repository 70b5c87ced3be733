"""POST /responses."""

from __future__ import annotations

from typing import Any

from accounts.exceptions import InvalidRequest
from inference.surfaces.base import (
    PART_OVERHEAD,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    Surface,
    Usage,
    json_bytes,
    read_response_usage,
)
from inference.surfaces.chat import IMAGE_TOKENS, UNCACHEABLE, image_count, message_bytes, texts_in
from inference.surfaces.events import ResponseReader
from inference.tokens import MESSAGE_TOKENS, REPLY_TOKENS, count_tokens

#: What would live on at the provider, under the secret that all accounts share, or is fetched from there.
REFUSED = ("previous_response_id", "conversation", "background", "prompt")
#: Tools that the caller runs himself; the provider's own cost what nobody can bound.
OWN_TOOLS = ("function", "custom")


class ResponseSurface(Surface):
    """Responses, without what the provider would keep."""

    path = "/responses"

    def prompt_bound(self, payload: Payload) -> int:
        """Reckon one token a byte of the request's JSON, images at the most that one can be, and overhead."""
        items = _items(payload.get("input"))
        rest = {name: value for name, value in payload.items() if name != "input"}
        size = sum(message_bytes(item) for item in items) + json_bytes(rest)
        parts = len(items) + len(payload.get("tools") or [])
        return REQUEST_OVERHEAD + PART_OVERHEAD * parts + size + IMAGE_TOKENS * sum(map(image_count, items))

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_output_tokens."""
        asked = payload.get("max_output_tokens")
        return None if asked is None else int(asked)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum, and keep the provider from storing anything."""
        return {**payload, "max_output_tokens": tokens, "store": False}

    def read_usage(self, body: Body) -> Usage | None:
        """Read `usage`."""
        return read_response_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count input and output with a tokenizer."""
        items = [*_items(payload.get("input")), payload.get("instructions")]
        prompt = count_tokens(texts_in(items), model=model) + MESSAGE_TOKENS * len(items) + REPLY_TOKENS
        return Usage(prompt, 0, count_tokens(texts_in(body.get("output") or []), model=model))

    def is_complete(self, body: Body) -> bool:
        """Say whether there is an output."""
        return isinstance(body.get("output"), list) and body.get("status") != "failed"

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the request is deterministic as far as it can be, and nobody's own."""
        return payload.get("temperature") == 0 and not any(payload.get(name) for name in UNCACHEABLE)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream; its last event holds the usage."""
        return {**payload, "stream": True}

    def reader(self, payload: Payload) -> ResponseReader:
        """Follow the events of a response."""
        return ResponseReader()


response_surface = ResponseSurface()


def refuse_what_lives_on(payload: Payload) -> None:
    """Raise InvalidRequest for a parameter that reaches for what the provider keeps, or that nobody can bound."""
    for name in REFUSED:
        if payload.get(name):
            raise InvalidRequest(f"{name} is not supported here: nothing is kept at the provider.", param=name)
    for number, tool in enumerate(payload.get("tools") or []):
        if not isinstance(tool, dict) or tool.get("type") not in OWN_TOOLS:
            raise InvalidRequest("Only tools of type function or custom are supported.", param=f"tools[{number}].type")
    if _names_a_file(payload.get("input")):
        raise InvalidRequest("File ids and item references are not supported here: send the content.", param="input")


def _names_a_file(value: Any) -> bool:
    if isinstance(value, dict):
        return (
            bool(value.get("file_id")) or value.get("type") == "item_reference" or _names_a_file(list(value.values()))
        )
    return isinstance(value, list) and any(_names_a_file(item) for item in value)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value if value is not None else ""]
