"""Server-sent events of a provider's stream: relayed as bytes, and looked into only where something may be in them.

A chunk of text passes through untouched, whole events at a time. Parsed are the few events that hold usage, an error or
the end; and all of them, once, when the stream broke off and somebody has to know what it said until then.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from django.conf import settings

from core.background import LEAST_SLEEP
from core.errors import ApiError
from inference.protocols.base import (
    Body,
    Payload,
    Usage,
    choices_in,
    is_count,
    is_of_one_answer,
    read_openai_usage,
    read_response_usage,
    written_json,
)
from inference.protocols.sse import (
    DONE,
    END_OF_EVENT,
    ERROR,
    BrokenStream,
    EventBuffer,
    ProviderError,
    event_data,
    find_error,
    parse_data,
    parse_events,
    refuse_garbage,
)

#: How an event ends that holds a whole object; one that ends otherwise is looked into.
END_OF_OBJECT = b"}" + END_OF_EVENT
#: What chunks carry where usage was asked for and isn't there yet.
NO_USAGE = re.compile(rb',\s*"usage":\s*null')
#: How the choices of a chunk begin, where there are any.
CHOICE = re.compile(rb'"choices":\s*\[\s*\{')
#: What some servers end with that told a usage before.
NOTHING = Usage(0, 0, 0)
#: Texts of a delta that no model wrote.
LABELS = ("role", "id", "type")
#: Bytes of events that are parsed before others get their turn: some milliseconds.
TURN = 256 * 1024


class EventReader(ABC):
    """Follows one stream: what of it is forwarded, what it used, whether it came to its end.

    It is over with its end (`is_done`), or with an error of the provider's (`error`), of which nothing is forwarded.
    What follows the end is ignored; what follows an error is looked into only for the usage, which may come with it.
    """

    #: Bytes without which an event needs no look.
    signs: tuple[bytes, ...] = (b'"usage"', b'"error"', DONE)
    #: How events begin that need no look either.
    start: bytes = b"data:"

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.is_done = False
        self.error: ProviderError | None = None
        #: Whether the usage came without a piece of the answer, and whether more of that was generated since.
        self._usage_stands_alone = True
        self._usage_is_early = False
        self._buffer = EventBuffer()
        self._kept: list[bytes] = []
        self._size = 0
        self._postponed: ApiError | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came, and return those to be forwarded: whole events. Raises BrokenStream.

        An answer that is none to its endpoint raises what it means there, once all before it was returned. A line ends
        by CR, LF or both (HTML standard, section 9.2.6); what is forwarded ends its lines by LF.
        """
        if self._postponed is not None:
            raise self._postponed
        events = self._buffer.add(data)
        return self._forward(events) if events else b""

    def pass_on(self, data: bytes) -> bytes:
        """Take bytes that are whole events in which nothing is to be seen, and return what is forwarded of them.

        Any other bytes are not taken, and nothing is returned.
        """
        if not self._buffer.is_empty or self.is_over or b"\r" in data or not data.endswith(END_OF_OBJECT):
            return b""
        events = self._stripped(data)
        if not self._is_plain(events):
            return b""
        if self._size + len(events) > settings.MAX_ANSWER_BYTES:
            return b""
        self._keep(events)
        return events

    def finish(self) -> bytes:
        """Take the stream's end, which may stand for that of the last event, and return what is to be forwarded."""
        return self.feed(self._buffer.end())

    @property
    def is_over(self) -> bool:
        """Whether nothing of what comes now is forwarded any more."""
        return self.is_done or self.error is not None

    @property
    def needs_no_more(self) -> bool:
        """Whether all is known of a stream that the provider ended with an error."""
        return self.error is not None and self.usage is not None

    @property
    def is_free(self) -> bool:
        """Whether the provider has said that it failed, without any usage and before it had generated anything."""
        return self.error is not None and self.usage is None and not self.has_generated()

    @property
    def text(self) -> bytes:
        """Every event that came until it was over, without what is on no account forwarded."""
        return b"".join(self._kept)

    def events(self) -> Iterator[Body]:
        """Parse every event that came until now, and let others have their turn in between."""
        parsed = 0
        for events in self._kept:
            parsed += len(events)
            if parsed > TURN:
                parsed = 0
                time.sleep(LEAST_SLEEP)
            yield from parse_events(events)

    def billed_usage(self, estimate: Callable[[Body], Usage]) -> tuple[Usage, str]:
        """Return what the stream used, and where that is known from: "provider" or "estimated".

        A provider is believed about all that came: at the stream's end, or by a usage that stands alone after the last
        piece. One that it told earlier, or tells with every piece, lacks what was generated since, and one that is not
        of all answers lacks the others: then each figure is the higher one of its own and of an estimate, which
        `estimate` makes of the body. A figure of 0 is the estimate's.
        """
        told = self.usage
        is_last = not self._usage_is_early and (self.is_done or self._usage_stands_alone)
        is_of_all = told is not None and is_last and not self.lacks_answers(told)
        if told is not None and is_of_all and told.input_tokens and told.output_tokens:
            return told, "provider"
        counted = estimate(self.body())
        if told is None or not is_of_all:
            return (told or counted).at_least(counted), "estimated"
        used = told.filled(counted)
        return used, "provider" if used == told else "estimated"

    def lacks_answers(self, told: Usage) -> bool:
        """Say whether the provider's usage is not of all answers that came."""
        return False

    @abstractmethod
    def has_generated(self) -> bool:
        """Return whether a piece of an answer came."""

    @abstractmethod
    def body(self) -> Body:
        """Put what came until now together, as the answer would have been without a stream; for estimates."""

    @abstractmethod
    def look(self, event: Body) -> bool:
        """Look into an event with a sign in it; say whether to forward it. Raises BrokenStream."""

    @abstractmethod
    def take_done(self) -> bool:
        """Take the event `[DONE]`; say whether to forward it. Raises BrokenStream."""

    def _forward(self, events: bytes) -> bytes:
        """Relay events in which nothing is to be seen, and that look whole, as they are; go through others singly."""
        stripped = self._stripped(events)
        if not self.is_over and self._is_plain(stripped):
            self._keep(stripped)
            return stripped
        forwarded = bytearray()
        try:
            for event in filter(None, stripped.split(END_OF_EVENT)):
                forwarded += self._relay_or_ignore(event)
        except BrokenStream as error:
            error.before = bytes(forwarded)
            raise
        except ApiError as error:
            if not forwarded:
                raise
            self._postponed = error
        return bytes(forwarded)

    def _relay_or_ignore(self, event: bytes) -> bytes:
        """Return what is forwarded of one event, and keep it; of one that comes when it is over, nothing."""
        if self.is_over:
            self._look_for_usage(event)
            return b""
        forwarded = self._relay(event)
        if self.error is None:
            self._keep(event + END_OF_EVENT)
        return forwarded

    def _look_for_usage(self, event: bytes) -> None:
        """Look into what follows an error: its usage may come in an event of its own, or with the failed response."""
        data = event_data(event)
        if self.error is None or not data or data == DONE:
            return
        with suppress(BrokenStream):
            body = parse_data(data)
            found = find_error(body)
            if found is not None and found.response:
                self._fail(ProviderError(found.fields or self.error.fields, response=found.response, usage=found.usage))
            else:
                self._take_usage(read_openai_usage(body.get("usage")))

    def _keep(self, events: bytes) -> None:
        """Keep events for the cache, and to count what they say; raises BrokenStream where they become too many."""
        self._size += len(events)
        if self._size > settings.MAX_ANSWER_BYTES:
            raise BrokenStream("too large an answer")
        self._kept.append(events)

    def _fail(self, error: ProviderError) -> None:
        self.error = error
        self._take_usage(error.usage)

    def _take_usage(self, usage: Usage | None) -> None:
        """Take the usage of a stream that failed, which is of all that came."""
        if usage is not None and usage != NOTHING:
            self.usage, self._usage_is_early, self._usage_stands_alone = usage, False, True

    def _stripped(self, events: bytes) -> bytes:
        """Leave out of events what is on no account forwarded."""
        return events

    def _is_plain(self, events: bytes) -> bool:
        number = events.count(END_OF_EVENT)
        are_whole = events.count(END_OF_OBJECT) == number and events.startswith(self.start)
        return are_whole and events.count(END_OF_EVENT + self.start) == number - 1 and not self._is_signed(events)

    def _is_signed(self, events: bytes) -> bool:
        """Say whether something may be in events; after the usage, whether more is generated is looked for in each."""
        if self.usage is not None and not self._usage_is_early:
            return True
        for sign in self.signs:  # noqa: SIM110  (any() takes twice as long, for each chunk)
            if sign in events:
                return True
        return False

    def _relay(self, event: bytes) -> bytes:
        """Return what is forwarded of one event. Raises BrokenStream."""
        return event + END_OF_EVENT if self._passes(event) else b""

    def _passes(self, event: bytes) -> bool:
        if event.endswith(b"}") and event.startswith(self.start) and not self._is_signed(event):
            return True
        is_named_error, data = ERROR.search(event) is not None, event_data(event)
        if data == DONE:
            return self.take_done()
        if not data and not is_named_error:
            refuse_garbage(event)
            return True
        body = parse_data(data, is_error=is_named_error)
        error = find_error(body, is_named=is_named_error)
        if error is not None:
            self._fail(error)
            return False
        return self.look(body)


class ChunkReader(EventReader):
    """Chunks of chat completions and completions, which end with `[DONE]`.

    The usage that was asked for on the platform's own account is not forwarded unless the caller asked for it too.
    """

    def __init__(self, *, forwards_usage: bool, answers: int = 1) -> None:
        super().__init__()
        self._forwards_usage = forwards_usage
        self._answers = answers

    def look(self, event: Body) -> bool:
        """Take the usage; drop the chunk that holds nothing else, unless the caller asked for it."""
        usage = self._told_in(event)
        if usage is not None:
            self.usage, self._usage_is_early, self._usage_stands_alone = usage, False, not event.get("choices")
        elif self.usage is not None and any(map(_generates, choices_in(event))):
            self._usage_is_early = True
        return self._forwards_usage or bool(event.get("choices")) or event.get("usage") is None

    def _told_in(self, event: Body) -> Usage | None:
        """Return the usage that an event tells: Moonshot's is in the only choice. 0/0 is none after another."""
        choices = choices_in(event) if self._answers == 1 else []
        found = (read_openai_usage(holder.get("usage")) for holder in (event, *choices))
        usage = next(filter(None, found), None)
        return None if usage == NOTHING and self.usage is not None else usage

    def _relay(self, event: bytes) -> bytes:
        """Take the usage out of an event for a caller who did not ask for it."""
        relayed = super()._relay(event)
        return relayed if self._forwards_usage or b'"usage"' not in relayed else without_usage(event)

    def take_done(self) -> bool:
        """Take it for the end; raises BrokenStream where there was no choice before it."""
        self.is_done = True
        if not any(CHOICE.search(events) for events in self._kept):
            raise BrokenStream("no choices")
        return True

    def has_generated(self) -> bool:
        """Return whether a piece of an answer came."""
        return any(_generates(chunk) for _, chunk in self._chunks())

    def _stripped(self, events: bytes) -> bytes:
        """Take the empty usage out of chunks: with it in each of them, each would have to be parsed."""
        return events if self._forwards_usage else NO_USAGE.sub(b"", events)

    def lacks_answers(self, told: Usage) -> bool:
        """Count what several answers say; a single one is not looked into."""
        if self._answers == 1:
            return False
        texts: defaultdict[int, list[str]] = defaultdict(list)
        for index, chunk in self._chunks():
            delta = chunk.get("delta")
            said = delta.get("content") if isinstance(delta, dict) else chunk.get("text")
            texts[index].append(said if isinstance(said, str) else "")
        return is_of_one_answer(told.output_tokens, ["".join(pieces) for pieces in texts.values()])

    def body(self) -> Body:
        """Join the pieces of each choice."""
        choices: defaultdict[int, _Choice] = defaultdict(_Choice)
        for index, chunk in self._chunks():
            choices[index].add(chunk)
        return {"choices": [choices[index].joined() for index in sorted(choices)]}

    def _chunks(self) -> Iterator[tuple[int, Body]]:
        """Yield every piece of a choice with the choice's number."""
        for event in self.events():
            for chunk in choices_in(event):
                yield (chunk["index"] if is_count(chunk.get("index")) else 0), chunk


def chunk_reader(payload: Payload, *, answers: int) -> ChunkReader:
    """Make what follows the chunks that a payload asks for, of so many answers."""
    options = payload.get("stream_options") or {}
    return ChunkReader(forwards_usage=bool(options.get("include_usage")), answers=answers)


class ResponseReader(EventReader):
    """Events of responses, which end with one that holds the whole response.

    Some gateways send `[DONE]` as well (vLLM's and LiteLLM's): OpenAI doesn't, and it is not forwarded.
    """

    signs = (
        b'"response.completed"',
        b'"response.incomplete"',
        b'"response.failed"',
        b'"error"',
        b"event: error",
        b"event:error",
    )
    start = b"event:"

    def __init__(self) -> None:
        super().__init__()
        self._whole: Body = {}

    def look(self, event: Body) -> bool:
        """Take the usage at the end."""
        if event.get("type") in ("response.completed", "response.incomplete"):
            self.is_done = True
            response = event.get("response")
            self._whole = response if isinstance(response, dict) else {}
            self.usage = read_response_usage(self._whole.get("usage"))
        return True

    def take_done(self) -> bool:
        """Leave it out: the end is another event."""
        return False

    def has_generated(self) -> bool:
        """Return whether a piece of an answer came."""
        return bool(_output_in(self.events()))

    def body(self) -> Body:
        """Put the items together, of those that did not come to their end the pieces of text; tell how it ended."""
        ended: Body = {name: self._whole[name] for name in ("status", "incomplete_details") if name in self._whole}
        return {"output": _output_in(self.events()), **ended}


def _output_in(events: Iterator[Body]) -> list[Body]:
    """Return the output that the events of a response tell. A call of a tool may come in one piece, without deltas."""
    whole: dict[str, Body] = {}
    pieces: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        place, kind, item = str(event.get("output_index")), str(event.get("type")), event.get("item")
        if kind == "response.output_item.done" and isinstance(item, dict):
            whole[place] = item
        elif "delta" in kind:
            pieces[place].append(str(event.get("delta") or ""))
    texts = {place: "".join(each) for place, each in pieces.items() if place not in whole}
    return [*whole.values(), *({"content": text} for text in texts.values() if text)]


def without_usage(event: bytes) -> bytes:
    """Return an event whose JSON tells no usage: not at its top, in a choice, or in another object there (Groq's)."""
    body = parse_data(event_data(event))
    holders = [body, *choices_in(body), *(value for value in body.values() if isinstance(value, dict))]
    if not any("usage" in holder for holder in holders):
        return event + END_OF_EVENT
    for holder in holders:
        holder.pop("usage", None)
    fields = [line for line in event.split(b"\n") if not line.startswith(b"data:")]
    return b"\n".join([*fields, b"data: " + written_json(body)]) + END_OF_EVENT


class _Choice:
    """The pieces of one choice: text, and of a delta its reasoning and tool arguments too, since all of it counts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._deltas: list[str] = []
        self._finish_reason: Any = None

    def add(self, chunk: Body) -> None:
        """Take a chunk of the choice."""
        text = chunk.get("text")
        if isinstance(text, str):
            self._texts.append(text)
        self._deltas += _generated(chunk.get("delta"))
        self._finish_reason = chunk.get("finish_reason") or self._finish_reason

    def joined(self) -> Body:
        """Put the pieces together, as an answer without a stream has them."""
        content, text = "".join(self._deltas), "".join(self._texts)
        return {"message": {"content": content}, "text": text, "finish_reason": self._finish_reason}


def _generates(choice: Body) -> bool:
    """Say whether a chunk's choice brings more text."""
    return bool(choice.get("text")) or any(_generated(choice.get("delta")))


def _generated(value: Any, name: str = "") -> Iterator[str]:
    """Yield every text in a delta, wherever a provider puts it, apart from its labels."""
    if isinstance(value, str):
        if name not in LABELS:
            yield value
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _generated(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _generated(item, name)
