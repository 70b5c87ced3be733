"""POST /chat/completions."""

from __future__ import annotations

from itertools import chain

from core.errors import ContentFiltered, UpstreamFailed
from inference.protocols.base import (
    GIVEN_UP,
    PART_OVERHEAD,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    Surface,
    Usage,
    are_finished,
    choices_in,
    is_of_one_answer,
    json_bytes,
    read_openai_usage,
)
from inference.protocols.content import (
    FUNCTIONS,
    IMAGE_ESTIMATE,
    IMAGE_TOKENS,
    PartTypes,
    image_count,
    refuse_foreign_tools,
    refuse_media,
    schema_texts,
    texts_in,
    without_images,
)
from inference.protocols.events import ChunkReader, chunk_reader
from inference.protocols.tokens import MESSAGE_TOKENS, REPLY_TOKENS, count_tokens

#: What messages may be made of.
PARTS = PartTypes(texts=frozenset({"text", "refusal"}), image="image_url")
#: How a request may call the longest answer, the one that counts first.
OUTPUT_PARAMETERS = ("max_completion_tokens", "max_tokens")
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
        images = image_count(messages)
        size = json_bytes(without_images(messages) if images else messages) + json_bytes(rest)
        return REQUEST_OVERHEAD + PART_OVERHEAD * parts + size + IMAGE_TOKENS * images

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_completion_tokens, or max_tokens by its older name."""
        for name in OUTPUT_PARAMETERS:
            if payload.get(name) is not None:
                return int(payload[name])
        return None

    def answers(self, payload: Payload) -> int:
        """Return `n`."""
        return int(payload.get("n") or 1)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum under the name that the deployment knows: one that it doesn't know would bound nothing.

        Nothing is stored at the provider, whatever is asked.
        """
        kept = {name: value for name, value in payload.items() if name not in OUTPUT_PARAMETERS}
        if "store" in kept:
            kept["store"] = False
        return {**kept, parameter: tokens}

    def read_usage(self, body: Body) -> Usage | None:
        """Read `usage`; None for one that is not of all answers."""
        usage = read_openai_usage(body.get("usage"))
        return None if usage is not None and is_of_one_answer(usage.output_tokens, said_in(body)) else usage

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the messages, what the model reads beside them, and the answers with a tokenizer."""
        messages = payload["messages"]
        texts = chain(texts_in(without_images(messages)), schema_texts(payload))
        around = MESSAGE_TOKENS * len(messages) + REPLY_TOKENS + IMAGE_ESTIMATE * image_count(messages)
        prompt = count_tokens(texts, model=model) + around
        answers = (choice.get("message") for choice in choices_in(body))
        generated = (texts_in({**message, "role": None}) for message in answers if isinstance(message, dict))
        counted = Usage(prompt, 0, count_tokens(chain.from_iterable(generated), model=model))
        return (read_openai_usage(body.get("usage")) or counted).at_least(counted)

    def is_complete(self, body: Body) -> bool:
        """Say whether there are choices."""
        choices = body.get("choices")
        return isinstance(choices, list) and bool(choices) and all(isinstance(choice, dict) for choice in choices)

    def is_finished(self, body: Body) -> bool:
        """Return whether each choice says that it is."""
        return are_finished(choices_in(body))

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the request is deterministic as far as it can be, and nobody's own."""
        return payload.get("temperature") == 0 and not any(payload.get(name) for name in UNCACHEABLE)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream with usage at its end, whether the caller wants that or not."""
        options = {**(payload.get("stream_options") or {}), "include_usage": True}
        return {**payload, "stream": True, "stream_options": options}

    def reader(self, payload: Payload) -> ChunkReader:
        """Follow chunks."""
        return chunk_reader(payload, answers=self.answers(payload))


chat_surface = ChatSurface()


def said_in(body: Body) -> list[str]:
    """Return what the answers say, without what else a model wrote: some servers tell its thoughts twice."""
    messages = (choice.get("message") for choice in choices_in(body))
    return [
        text for message in messages if isinstance(message, dict) and isinstance(text := message.get("content"), str)
    ]


def answer_text(body: Body) -> str:
    """Return the text of the first choice. Raises ContentFiltered or UpstreamFailed where there is none to show."""
    choice = body["choices"][0]
    if choice.get("finish_reason") == "content_filter":
        raise ContentFiltered
    if choice.get("finish_reason") in GIVEN_UP:
        raise UpstreamFailed
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not content.strip():
        raise UpstreamFailed
    return content


def refuse_unbounded(payload: Payload) -> None:
    """Raise InvalidRequest for what a chat may hold and nobody can bound, or that lies at the provider."""
    refuse_foreign_tools(payload.get("tools"), own=FUNCTIONS)
    for number, message in enumerate(payload["messages"]):
        PARTS.check(message.get("content"), param=f"messages[{number}].content")
        refuse_media(message, param=f"messages[{number}]")
