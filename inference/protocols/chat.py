"""The protocol of POST /chat/completions, and what completions share with it.

Answers have choices. They are streamed in chunks, which end with `[DONE]`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import Any

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
    WireProtocol,
    choices_in,
    count_tokens,
    is_count,
    is_of_one_answer,
    json_bytes,
    read_openai_usage,
    written_json,
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
from inference.protocols.events import NOTHING, EventReader
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
from inference.protocols.sse import END_OF_EVENT, BrokenStream, event_data, parse_data

#: The content parts that messages may have.
PARTS = PartTypes(texts=frozenset({"text", "refusal"}), image="image_url")
#: Names of the longest answer, in order of precedence.
OUTPUT_PARAMETERS = ("max_completion_tokens", "max_tokens")
#: Finish reasons of a complete answer: OpenAI's, and other servers' names for `stop`.
FINISHED = ("stop", "length", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence")
#: The empty usage of chunks before the one with the usage.
NO_USAGE = re.compile(rb',\s*"usage":\s*null')
#: The beginning of a chunk's choices that are not empty.
CHOICE = re.compile(rb'"choices":\s*\[\s*\{')
#: Fields of a delta that the model did not write.
LABELS = ("role", "id", "type")


class ChoicesProtocol(WireProtocol):
    """An endpoint whose answers have choices."""

    @abstractmethod
    def texts(self, body: Body) -> list[str]:
        """Return the texts of the answers, to compare their tokens with the usage."""

    def read_usage(self, body: Body) -> Usage | None:
        """Return the usage in `usage`; None if it does not cover all answers."""
        usage = read_openai_usage(body.get("usage"))
        if usage is None or len(choices_in(body)) < 2:
            return usage
        return None if is_of_one_answer(usage.output_tokens, self.texts(body)) else usage

    def is_complete(self, body: Body) -> bool:
        """Return whether there are choices."""
        return isinstance(body.get("choices"), list) and bool(body["choices"])

    def is_finished(self, body: Body) -> bool:
        """Return whether there are choices, each with a finish reason of a complete answer."""
        choices = choices_in(body)
        return bool(choices) and all(choice.get("finish_reason") in FINISHED for choice in choices)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream with the usage at its end, which the platform always needs."""
        options = {**(payload.get("stream_options") or {}), "include_usage": True}
        return {**payload, "stream": True, "stream_options": options}

    def reader(self, payload: Payload) -> ChunkReader:
        """Return a reader of chunks, which forwards the usage if the payload asks for it."""
        options = payload.get("stream_options") or {}
        return ChunkReader(forwards_usage=bool(options.get("include_usage")), answers=self.answers(payload))


class ChunkReader(EventReader):
    """Reads chunks of chat completions and completions, which end with `[DONE]`.

    The platform always asks for the usage; it is forwarded only if the caller asked for it too.
    """

    def __init__(self, *, forwards_usage: bool, answers: int = 1) -> None:
        super().__init__()
        self._forwards_usage = forwards_usage
        self.answers = answers

    def look(self, event: Body) -> bool:
        """Note the usage. A chunk without choices that holds it is forwarded only if the caller asked for it."""
        usage = self._usage_in(event)
        if usage is not None:
            self.usage, self._usage_is_early, self._usage_stands_alone = usage, False, not event.get("choices")
        elif self.usage is not None and any(map(_generates, choices_in(event))):
            self._usage_is_early = True
        return self._forwards_usage or bool(event.get("choices")) or event.get("usage") is None

    def _usage_in(self, event: Body) -> Usage | None:
        """Return the usage in an event or, as Moonshot sends it, in its only choice; 0/0 after another is ignored."""
        choices = choices_in(event) if self.answers == 1 else []
        found = (read_openai_usage(holder.get("usage")) for holder in (event, *choices))
        usage = next(filter(None, found), None)
        return None if usage == NOTHING and self.usage is not None else usage

    def _relay(self, event: bytes) -> bytes:
        """Return the bytes to forward, without the usage unless the caller asked for it."""
        relayed = super()._relay(event)
        return relayed if self._forwards_usage or b'"usage"' not in relayed else without_usage(event)

    def take_done(self) -> bool:
        """Note the end; raises BrokenStream if no choice came before it."""
        self.is_done = True
        if not any(CHOICE.search(events) for events in self._kept):
            raise BrokenStream("no choices")
        return True

    def has_generated(self) -> bool:
        """Return whether any output was received."""
        return any(_generates(chunk) for _, chunk in self._chunks())

    def _stripped(self, events: bytes) -> bytes:
        """Return chunks without the empty usage, which would cause each to be parsed."""
        return events if self._forwards_usage else NO_USAGE.sub(b"", events)

    def lacks_answers(self, reported: Usage) -> bool:
        """Return whether the usage does not cover all of several answers; a single answer is not counted."""
        if self.answers == 1:
            return False
        texts: defaultdict[int, list[str]] = defaultdict(list)
        for index, chunk in self._chunks():
            delta = chunk.get("delta")
            said = delta.get("content") if isinstance(delta, dict) else chunk.get("text")
            texts[index].append(said if isinstance(said, str) else "")
        return is_of_one_answer(reported.output_tokens, ["".join(pieces) for pieces in texts.values()])

    def body(self) -> Body:
        """Return the choices, each joined from its pieces."""
        choices: defaultdict[int, _Choice] = defaultdict(_Choice)
        for index, chunk in self._chunks():
            choices[index].add(chunk)
        return {"choices": [choices[index].joined() for index in sorted(choices)]}

    def _chunks(self) -> Iterator[tuple[int, Body]]:
        """Yield every piece of a choice with the choice's index."""
        for event in self.events():
            for chunk in choices_in(event):
                yield (chunk["index"] if is_count(chunk.get("index")) else 0), chunk


def without_usage(event: bytes) -> bytes:
    """Return an event without usage at its top level, in a choice, or in another object there (as Groq sends it)."""
    body = parse_data(event_data(event))
    holders = [body, *choices_in(body), *(value for value in body.values() if isinstance(value, dict))]
    if not any("usage" in holder for holder in holders):
        return event + END_OF_EVENT
    for holder in holders:
        holder.pop("usage", None)
    fields = [line for line in event.split(b"\n") if not line.startswith(b"data:")]
    return b"\n".join([*fields, b"data: " + written_json(body)]) + END_OF_EVENT


class _Choice:
    """The pieces of one choice: its text, and all of its deltas, since reasoning and tool arguments count too."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._deltas: list[str] = []
        self._finish_reason: Any = None

    def add(self, chunk: Body) -> None:
        """Add a chunk of the choice."""
        text = chunk.get("text")
        if isinstance(text, str):
            self._texts.append(text)
        self._deltas += _generated(chunk.get("delta"))
        self._finish_reason = chunk.get("finish_reason") or self._finish_reason

    def joined(self) -> Body:
        """Return the choice as in a non-streamed answer."""
        content, text = "".join(self._deltas), "".join(self._texts)
        return {"message": {"content": content}, "text": text, "finish_reason": self._finish_reason}


def _generates(choice: Body) -> bool:
    """Return whether a chunk's choice contains output."""
    return bool(choice.get("text")) or any(_generated(choice.get("delta")))


def _generated(value: Any, name: str = "") -> Iterator[str]:
    """Yield every text in a delta, under whatever name, except its LABELS."""
    if isinstance(value, str):
        if name not in LABELS:
            yield value
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _generated(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _generated(item, name)


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
