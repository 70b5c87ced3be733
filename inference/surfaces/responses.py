"""POST /responses."""

from __future__ import annotations

from itertools import chain
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
from inference.surfaces.chat import UNCACHEABLE, refuse_foreign_tools
from inference.surfaces.content import (
    IMAGE_ESTIMATE,
    IMAGE_TOKENS,
    PartTypes,
    image_count,
    refuse_media,
    schema_texts,
    texts_in,
    without_images,
)
from inference.surfaces.events import ResponseReader
from inference.tokens import MESSAGE_TOKENS, REPLY_TOKENS, count_tokens

#: What an input may be made of, and the fields of each that hold parts. Reasoning comes whole, not by its id.
PARTS = PartTypes(texts=frozenset({"input_text", "output_text", "refusal"}), image="input_image")
REASONING = PartTypes(texts=frozenset({"reasoning_text", "summary_text"}), image="")
ITEMS: dict[str, dict[str, PartTypes]] = {
    "message": {"content": PARTS},
    "function_call": {},
    "function_call_output": {"output": PARTS},
    "custom_tool_call": {},
    "custom_tool_call_output": {"output": PARTS},
    "reasoning": {"content": REASONING, "summary": REASONING},
}


class ResponseSurface(Surface):
    """Responses, without what the provider would keep."""

    path = "/responses"

    def prompt_bound(self, payload: Payload) -> int:
        """Reckon one token a byte of the request's JSON, images at the most that one can be, and overhead."""
        items = _items(payload.get("input"))
        rest = {name: value for name, value in payload.items() if name != "input"}
        images = image_count(items)
        size = json_bytes(without_images(items) if images else items) + json_bytes(rest)
        parts = len(items) + len(payload.get("tools") or [])
        return REQUEST_OVERHEAD + PART_OVERHEAD * parts + size + IMAGE_TOKENS * images

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
        """Count the input, what the model reads beside it, and the output with a tokenizer."""
        given = _items(payload.get("input"))
        items = [*without_images(given), payload.get("instructions")]
        texts = chain(texts_in(items), schema_texts(payload))
        around = MESSAGE_TOKENS * len(items) + REPLY_TOKENS + IMAGE_ESTIMATE * image_count(given)
        prompt = count_tokens(texts, model=model) + around
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

    def opens_stream(self, event: Body) -> bool:
        """Say whether it is an event of a response that has not failed at once."""
        kind = event.get("type")
        return isinstance(kind, str) and kind.startswith("response.") and kind != "response.failed"

    def reader(self, payload: Payload) -> ResponseReader:
        """Follow the events of a response."""
        return ResponseReader()


response_surface = ResponseSurface()


def refuse_items(payload: Payload) -> None:
    """Raise InvalidRequest for what an input may hold and nobody can bound, or that lies at the provider."""
    refuse_foreign_tools(payload)
    items = payload.get("input")
    for number, item in enumerate(items if isinstance(items, list) else ()):
        _check_item(item, param=f"input[{number}]")


def _check_item(item: Body, *, param: str) -> None:
    """Raise InvalidRequest for an item that is none of ITEMS, or for what it must not hold.

    Without a type it is a message, or, without a role too, a reference to what the provider keeps.
    """
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if not isinstance(kind, str) or kind not in ITEMS:
        names = ", ".join(f"'{name}'" for name in ITEMS)
        text = f"Invalid value for '{param}.type': supported here are {names}."
        raise InvalidRequest(text, param=f"{param}.type", code="invalid_value")
    if kind == "reasoning" and not (item.get("encrypted_content") or item.get("content")):
        text = "Nothing is kept at the provider: ask for reasoning.encrypted_content, and send it along."
        raise InvalidRequest(text, param=param, code="unsupported_parameter")
    for name, parts in ITEMS[kind].items():
        parts.check(item.get(name), param=f"{param}.{name}")
    refuse_media(item, param=param)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value if value is not None else ""]
