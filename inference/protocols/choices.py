"""What chat completions and completions share: answers with choices, streamed in chunks that end with `[DONE]`."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from inference.protocols.base import (
    Body,
    Payload,
    Usage,
    WireProtocol,
    choices_in,
    is_count,
    is_of_one_answer,
    read_openai_usage,
    written_json,
)
from inference.protocols.events import NOTHING, EventReader
from inference.protocols.sse import END_OF_EVENT, BrokenStream, event_data, parse_data

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
