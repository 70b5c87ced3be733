"""The protocol of POST /chat/completions."""

from __future__ import annotations

from itertools import chain

from core.errors import ContentFiltered, UpstreamFailed
from inference.protocols.base import (
    GIVEN_UP,
    PART_OVERHEAD,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    Usage,
    WireProtocol,
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

#: The content parts that messages may have.
PARTS = PartTypes(texts=frozenset({"text", "refusal"}), image="image_url")
#: Names of the longest answer, in order of precedence.
OUTPUT_PARAMETERS = ("max_completion_tokens", "max_tokens")
#: Parameters of requests with effects outside, with stored data, or of one user: their answers are not cached.
UNCACHEABLE = ("tools", "functions", "store", "user", "safety_identifier", "metadata", "prompt_cache_key", "audio")


class ChatProtocol(WireProtocol):
    """Chat completions, for /v1/chat/completions and for the platform's own endpoints."""

    path = "/chat/completions"

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON, plus IMAGE_TOKENS an image, plus overhead."""
        messages = payload["messages"]
        parts = len(messages) + len(payload.get("tools") or []) + len(payload.get("functions") or [])
        rest = {name: value for name, value in payload.items() if name != "messages"}
        images = image_count(messages)
        size = json_bytes(without_images(messages) if images else messages) + json_bytes(rest)
        return REQUEST_OVERHEAD + PART_OVERHEAD * parts + size + IMAGE_TOKENS * images

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_completion_tokens or, by its older name, max_tokens."""
        for name in OUTPUT_PARAMETERS:
            if payload.get(name) is not None:
                return int(payload[name])
        return None

    def answers(self, payload: Payload) -> int:
        """Return `n`."""
        return int(payload.get("n") or 1)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum under the deployment's name: an unknown parameter would bound nothing.

        `store` is always false, so that the provider stores nothing.
        """
        kept = {name: value for name, value in payload.items() if name not in OUTPUT_PARAMETERS}
        if "store" in kept:
            kept["store"] = False
        return {**kept, parameter: tokens}

    def read_usage(self, body: Body) -> Usage | None:
        """Return the usage in `usage`; None if it does not cover all answers."""
        usage = read_openai_usage(body.get("usage"))
        return None if usage is not None and is_of_one_answer(usage.output_tokens, said_in(body)) else usage

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the messages, the schemas, the images and the answers."""
        messages = payload["messages"]
        texts = chain(texts_in(without_images(messages)), schema_texts(payload))
        around = MESSAGE_TOKENS * len(messages) + REPLY_TOKENS + IMAGE_ESTIMATE * image_count(messages)
        prompt = count_tokens(texts, model=model) + around
        answers = (choice.get("message") for choice in choices_in(body))
        generated = (texts_in({**message, "role": None}) for message in answers if isinstance(message, dict))
        counted = Usage(prompt, 0, count_tokens(chain.from_iterable(generated), model=model))
        return (read_openai_usage(body.get("usage")) or counted).at_least(counted)

    def is_complete(self, body: Body) -> bool:
        """Return whether there are choices, all of them objects."""
        choices = body.get("choices")
        return isinstance(choices, list) and bool(choices) and all(isinstance(choice, dict) for choice in choices)

    def is_finished(self, body: Body) -> bool:
        """Return whether each choice has a finish reason of a complete answer."""
        return are_finished(choices_in(body))

    def is_cacheable(self, payload: Payload) -> bool:
        """Return whether the temperature is 0 and the request has no tools and no personal parameters."""
        return payload.get("temperature") == 0 and not any(payload.get(name) for name in UNCACHEABLE)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream with the usage at its end, which the platform always needs."""
        options = {**(payload.get("stream_options") or {}), "include_usage": True}
        return {**payload, "stream": True, "stream_options": options}

    def reader(self, payload: Payload) -> ChunkReader:
        """Return a reader of chunks."""
        return chunk_reader(payload, answers=self.answers(payload))


chat_surface = ChatProtocol()


def said_in(body: Body) -> list[str]:
    """Return the `content` of the answers, without reasoning, which some servers send twice."""
    messages = (choice.get("message") for choice in choices_in(body))
    return [
        text for message in messages if isinstance(message, dict) and isinstance(text := message.get("content"), str)
    ]


def answer_text(body: Body) -> str:
    """Return the text of the first choice; raises ContentFiltered, or UpstreamFailed if it is aborted or empty."""
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
    """Raise InvalidRequest for content whose tokens can't be bounded, or that is stored at the provider."""
    refuse_foreign_tools(payload.get("tools"), own=FUNCTIONS)
    for number, message in enumerate(payload["messages"]):
        PARTS.check(message.get("content"), param=f"messages[{number}].content")
        refuse_media(message, param=f"messages[{number}]")
