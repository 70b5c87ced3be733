"""Server-sent events as bytes (HTML standard, section 9.2): where one ends, what it holds, and what is none.

An error that a provider sends inside an answer of status 200: as a body, as an event, or as a failed response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from inference.protocols.base import Body, Usage, choices_in, read_openai_usage, read_response_usage

END_OF_EVENT = b"\n\n"
DONE = b"[DONE]"
#: How the lines of an event begin (HTML standard, section 9.2.6); the first is a comment's.
FIELDS = (b":", b"data", b"event", b"id", b"retry")
#: How an event says that it is an error whatever its data are.
ERROR = re.compile(rb"^event: ?error$", re.MULTILINE)
#: The most that may wait for the end of its event.
LONGEST_EVENT = 16 * 1024 * 1024


class BrokenStream(Exception):
    """The provider sent no events in the middle of a stream; its text is not ours to pass on.

    `before` is what came with it and is to be forwarded first.
    """

    before: bytes = b""


class EventBuffer:
    """Bytes of a stream that wait for the end of their event, whose lines end by LF from here on.

    It takes as long as it has bytes: each is looked at once, however many pieces an event comes in.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()

    @property
    def rest(self) -> bytes:
        """What waits for the end of its event."""
        return bytes(self._waiting)

    @property
    def is_empty(self) -> bool:
        """Whether the last event came to its end."""
        return not self._waiting

    def add(self, data: bytes) -> bytes:
        """Take bytes as they came, and return those that are whole events now. Raises BrokenStream for one too long."""
        waiting = self._waiting
        if waiting.endswith(b"\r"):
            data = b"\r" + data
            del waiting[-1]
        if b"\r" in data:
            data = _with_lf(data)
        if not waiting and data.endswith(END_OF_EVENT):
            return data
        searched = max(0, len(waiting) - 1)
        waiting += data
        end = waiting.rfind(END_OF_EVENT, searched) + len(END_OF_EVENT)
        if end < len(END_OF_EVENT):
            if len(waiting) > LONGEST_EVENT:
                raise BrokenStream("an event without end")
            return b""
        events = bytes(waiting[:end])
        del waiting[:end]
        return events

    def end(self) -> bytes:
        """Take the stream's end for that of the last event, and return that event; nothing if there is none."""
        last = self.rest.rstrip(b"\r\n")
        self._waiting.clear()
        return last + END_OF_EVENT if last else b""


def _with_lf(data: bytes) -> bytes:
    """End lines by LF alone; a CR at the very end waits for what follows it."""
    last = b"\r" if data.endswith(b"\r") else b""
    return data[: len(data) - len(last)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + last


def parse_events(text: bytes) -> Iterator[Body]:
    """Parse the events of a stream, leaving out its end and what is no JSON object."""
    for event in text.split(END_OF_EVENT):
        data = event_data(event)
        if data and data != DONE:
            try:
                yield parse_data(data)
            except BrokenStream:
                continue


def read_opening(pieces: Iterator[bytes], opens: Callable[[Body], bool]) -> bytes:
    """Read until the first event is there that holds data, and return what came from there on.

    Comments, which providers send while they work, are no answer yet. Raises ProviderError where that event is an error
    or all of the body is one, BrokenStream where the stream ends before, or the event is none that `opens` it.
    """
    buffer = EventBuffer()
    for piece in pieces:
        opening = _opening_in(buffer.add(piece), opens)
        if opening:
            return opening + buffer.rest
    last = buffer.rest.rstrip(b"\r\n")
    if last and _is_opening(last, opens):
        return last
    raise BrokenStream("no event")


def _opening_in(events: bytes, opens: Callable[[Body], bool]) -> bytes:
    """Return events from the first on that holds data; nothing if none does. Raises what _is_opening raises."""
    at = 0
    while (end := events.find(END_OF_EVENT, at)) >= 0:
        if _is_opening(events[at:end], opens):
            return events[at:]
        at = end + len(END_OF_EVENT)
    return b""


def _is_opening(event: bytes, opens: Callable[[Body], bool]) -> bool:
    """Say whether an event holds data. Raises ProviderError or BrokenStream if that is not what opens the stream."""
    is_json, is_named_error = event.lstrip().startswith(b"{"), ERROR.search(event) is not None
    data = event if is_json else event_data(event)
    if not data and not is_named_error:
        refuse_garbage(event)
        return False
    body = {} if data == DONE else parse_data(data, is_error=is_named_error)
    error = find_error(body, is_named=is_named_error)
    if error is not None:
        raise error
    if is_json or not opens(body):
        raise BrokenStream("no event of this endpoint")
    return True


def refuse_garbage(event: bytes) -> None:
    """Raise BrokenStream for lines that are neither fields nor comments: a page of a proxy, say."""
    if not all(line.startswith(FIELDS) for line in event.split(b"\n") if line):
        raise BrokenStream("no event")


def event_data(event: bytes) -> bytes:
    """Return the data of an event: its `data:` lines (HTML standard, section 9.2.6)."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def parse_data(data: bytes, *, is_error: bool = False) -> Body:
    """Parse an event's data as a JSON object. Raises BrokenStream; those of an error may be anything."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    if is_error:
        return {}
    raise BrokenStream("no JSON object")


class ProviderError(Exception):
    """What a provider said instead of an answer, or in the middle of one.

    `fields` is its error object (code, param, type, and a message that must not be passed on), `response` the failed
    response that it is part of, empty where there is none. `usage` is what the call used; None where nobody knows, or
    nothing was generated.
    """

    def __init__(self, fields: Body, *, response: Body, usage: Usage | None) -> None:
        super().__init__("the answer is an error")
        self.fields = fields
        self.response = response
        self.usage = usage
        self.usage_source = "provider"


def find_error(body: Body, *, is_named: bool = False) -> ProviderError | None:
    """Return the error that a body or an event's data are, or None. `is_named`: the event's name says so already."""
    response = body.get("response") if body.get("type") == "response.failed" else body
    if not isinstance(response, dict):
        response = {}
    error = response.get("error") or _error_of_a_choice(response)
    is_failed = response is not body or body.get("status") == "failed"
    is_error = is_named or is_failed or body.get("type") == "error" or body.get("object") == "error"
    if not error and not is_error:
        return None
    fields = error if isinstance(error, dict) else {} if error or is_failed else body
    told = response.get("usage")
    usage = read_openai_usage(told) or read_response_usage(told)
    return ProviderError(
        fields, response=response if is_failed else {}, usage=usage if usage != Usage(0, 0, 0) else None
    )


def _error_of_a_choice(body: Body) -> Any:
    """Return the error that one of several answers ended with: OpenRouter tells it there."""
    return next(filter(None, (choice.get("error") for choice in choices_in(body))), None)
