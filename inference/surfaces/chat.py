"""POST /chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accounts.exceptions import ContentFiltered, UpstreamFailed
from inference.surfaces.base import (
    PART_OVERHEAD,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    Surface,
    Usage,
    json_bytes,
    read_openai_usage,
)
from inference.surfaces.events import ChunkReader
from inference.tokens import MESSAGE_TOKENS, REPLY_TOKENS, count_tokens

#: The most that an image can be, in tokens: OpenAI's dearest reckoning of one at high detail is below it.
IMAGE_TOKENS = 50_000
IMAGE_PARTS = ("image_url", "input_image")
#: With these a request acts on the world, leaves something behind, or is somebody's own: its answer is not reused.
UNCACHEABLE = ("tools", "functions", "store", "user", "safety_identifier", "metadata", "prompt_cache_key", "audio")


class ChatSurface(Surface):
    """Chat completions, for /v1/chat/completions and for the platform's own endpoints."""

    path = "/chat/completions"

    def prompt_bound(self, payload: Payload) -> int:
        """Reckon one token a byte of the request's JSON, images at the most that one can be, and overhead."""
        messages = payload["messages"]
        parts = len(messages) + len(payload.get("tools") or []) + len(payload.get("functions") or [])
        rest = {name: value for name, value in payload.items() if name != "messages"}
        size = sum(message_bytes(message) for message in messages) + json_bytes(rest)
        return REQUEST_OVERHEAD + PART_OVERHEAD * parts + size + IMAGE_TOKENS * sum(map(image_count, messages))

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_completion_tokens, or max_tokens by its older name."""
        for name in ("max_completion_tokens", "max_tokens"):
            if payload.get(name) is not None:
                return int(payload[name])
        return None

    def answers(self, payload: Payload) -> int:
        """Return `n`."""
        return int(payload.get("n") or 1)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum under the name that the request uses, or else the deployment's."""
        name = next((each for each in ("max_completion_tokens", "max_tokens") if payload.get(each)), parameter)
        return {**payload, name: tokens}

    def read_usage(self, body: Body) -> Usage | None:
        """Read `usage`."""
        return read_openai_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the messages and the answers with a tokenizer."""
        messages = payload["messages"]
        prompt = count_tokens(texts_in(messages), model=model) + MESSAGE_TOKENS * len(messages) + REPLY_TOKENS
        output = count_tokens(texts_in(choice.get("message") for choice in body.get("choices", ())), model=model)
        return Usage(prompt, 0, output)

    def is_complete(self, body: Body) -> bool:
        """Say whether there are choices."""
        choices = body.get("choices")
        return isinstance(choices, list) and bool(choices) and all(isinstance(choice, dict) for choice in choices)

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the request is deterministic as far as it can be, and nobody's own."""
        return payload.get("temperature") == 0 and not any(payload.get(name) for name in UNCACHEABLE)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream with usage at its end, whether the caller wants that or not."""
        options = {**(payload.get("stream_options") or {}), "include_usage": True}
        return {**payload, "stream": True, "stream_options": options}

    def reader(self, payload: Payload) -> ChunkReader:
        """Follow chunks."""
        return ChunkReader(forwards_usage=bool((payload.get("stream_options") or {}).get("include_usage")))


chat_surface = ChatSurface()


def answer_text(body: Body) -> str:
    """Return the text of the first choice. Raises ContentFiltered or UpstreamFailed where there is none to show."""
    choice = body["choices"][0]
    if choice.get("finish_reason") == "content_filter":
        raise ContentFiltered
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not content.strip():
        raise UpstreamFailed
    return content


def message_bytes(message: Any) -> int:
    """Measure a message without the data of its images, which are reckoned by number."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return json_bytes(message)
    kept = [part for part in content if not _is_image(part)]
    return json_bytes({**message, "content": kept})


def image_count(message: Any) -> int:
    """Count the images of a message."""
    content = message.get("content") if isinstance(message, dict) else None
    return sum(map(_is_image, content)) if isinstance(content, list) else 0


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in IMAGE_PARTS


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a structure of messages, apart from the data of images."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and not _is_image(value):
        for name, item in value.items():
            if name not in ("type", "id"):
                yield from texts_in(item)
    elif not isinstance(value, dict | int | float | None):
        for item in value:
            yield from texts_in(item)
