"""The protocol of POST /chat/completions."""

from __future__ import annotations

from itertools import chain

from core.errors import ContentFiltered, UpstreamFailed
from inference.protocols.base import (
    GIVEN_UP,
    MESSAGE_TOKENS,
    PART_OVERHEAD,
    REPLY_TOKENS,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    Usage,
    choices_in,
    count_tokens,
    json_bytes,
    read_openai_usage,
)
from inference.protocols.choices import ChoicesProtocol
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
from inference.protocols.parameters import (
    ANSWER_NAMES,
    MOST_ANSWERS,
    MOST_OUTPUT,
    OUTPUT_NAMES,
    REFUSED,
    SAMPLING,
    integer,
    is_list_of_objects,
    is_objects,
    only_text,
    others,
)

#: The content parts that messages may have.
PARTS = PartTypes(texts=frozenset({"text", "refusal"}), image="image_url")
#: Names of the longest answer, in order of precedence.
OUTPUT_PARAMETERS = ("max_completion_tokens", "max_tokens")


class ChatProtocol(ChoicesProtocol):
    """Chat completions, for /v1/chat/completions and for the platform's own endpoints."""

    path = "/chat/completions"
    prompt_parameter = "messages"
    refused = {
        **REFUSED,
        **others(OUTPUT_NAMES, "max_completion_tokens", reads=["max_tokens"]),
        **others(ANSWER_NAMES, "n"),
    }
    checks = {
        **refused,
        **SAMPLING,
        "messages": is_list_of_objects,
        "max_tokens": integer(1, MOST_OUTPUT),
        "max_completion_tokens": integer(1, MOST_OUTPUT),
        "n": integer(1, MOST_ANSWERS),
        "tools": is_objects,
        "functions": is_objects,
        "modalities": only_text,
    }

    def check_content(self, payload: Payload) -> None:
        """Raise InvalidRequest for tools that the provider runs, and for parts and fields that are not accepted."""
        refuse_foreign_tools(payload.get("tools"), own=FUNCTIONS)
        for number, message in enumerate(payload["messages"]):
            PARTS.check(message.get("content"), param=f"messages[{number}].content")
            refuse_media(message, param=f"messages[{number}]")

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
        return super().is_complete(body) and all(isinstance(choice, dict) for choice in body["choices"])

    def texts(self, body: Body) -> list[str]:
        """Return the `content` of the answers, without reasoning, which some servers send twice."""
        messages = (choice.get("message") for choice in choices_in(body))
        return [
            text
            for message in messages
            if isinstance(message, dict) and isinstance(text := message.get("content"), str)
        ]


chat_protocol = ChatProtocol()


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
