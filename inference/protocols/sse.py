"""Parsing of server-sent events (HTML standard, section 9.2), and of errors that providers send with status 200.

Such an error comes as a body, as an event, or as a failed response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from inference.protocols.base import Body, Usage, choices_in, read_openai_usage, read_response_usage, written_json

END_OF_EVENT = b"\n\n"
DONE = b"[DONE]"
#: Beginnings of an event's lines (HTML standard, section 9.2.6); the first is that of a comment.
FIELDS = (b":", b"data", b"event", b"id", b"retry")
#: The name of an event that is an error whatever its data are.
ERROR = re.compile(rb"^event: ?error$", re.MULTILINE)
#: Most bytes of one event.
LONGEST_EVENT = 16 * 1024 * 1024


class BrokenStream(Exception):
    """The provider's stream contains something that is no event. The text of the exception must not be passed on.

    `before` is the valid part received with it, to be forwarded first.
    """

    before: bytes = b""


class EventBuffer:
    """Collects bytes of a stream into whole events, and ends their lines with LF.

    Takes linear time: each byte is searched once, however many pieces an event comes in.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()

    @property
    def rest(self) -> bytes:
        """The bytes of the unfinished event."""
        return bytes(self._waiting)

    @property
    def is_empty(self) -> bool:
        """Whether there is no unfinished event."""
        return not self._waiting

    def add(self, data: bytes) -> bytes:
        """Add received bytes and return the whole events; raises BrokenStream if one is longer than LONGEST_EVENT."""
        waiting = self._waiting
        if waiting.endswith(b"\r"):
            data = b"\r" + data
            del waiting[-1]
        if b"\r" in data:  # a CR at the end is kept, since an LF may follow it
            last = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(last)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + last
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
        """Return the unfinished event, which ends with the stream; empty if there is none."""
        last = self.rest.rstrip(b"\r\n")
        self._waiting.clear()
        return last + END_OF_EVENT if last else b""


def parse_events(text: bytes) -> Iterator[Body]:
    """Yield the JSON objects in the events of a stream; leave out `[DONE]` and all other data."""
    for event in text.split(END_OF_EVENT):
        data = event_data(event)
        if data and data != DONE:
            try:
                yield parse_data(data)
            except BrokenStream:
                continue


def read_opening(pieces: Iterator[bytes], opens: Callable[[Body], bool]) -> bytes:
    """Read up to the first event with data, and return the bytes received from its beginning on.

    Comments before it, which some providers send while they work, are skipped. Raises ProviderError if that event or
    the whole body is an error, BrokenStream if the stream ends before or `opens` rejects the event.
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
    """Return the events from the first one with data on; empty if none has data. Raises the errors of _is_opening."""
    at = 0
    while (end := events.find(END_OF_EVENT, at)) >= 0:
        if _is_opening(events[at:end], opens):
            return events[at:]
        at = end + len(END_OF_EVENT)
    return b""


def _is_opening(event: bytes, opens: Callable[[Body], bool]) -> bool:
    """Return whether an event has data; raises ProviderError or BrokenStream if it can't open the stream."""
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
    """Raise BrokenStream for lines that are neither fields nor comments, such as a proxy's HTML page."""
    if not all(line.startswith(FIELDS) for line in event.split(b"\n") if line):
        raise BrokenStream("no event")


def event_data(event: bytes) -> bytes:
    """Return the data of an event: its `data:` lines (HTML standard, section 9.2.6)."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def parse_data(data: bytes, *, is_error: bool = False) -> Body:
    """Parse an event's data as a JSON object.

    For other data, raises BrokenStream, or returns an empty object if the event is an error.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    if is_error:
        return {}
    raise BrokenStream("no JSON object")


def server_sent(event: str, data: Body) -> bytes:
    """Return a named event with a JSON object."""
    return b"event: " + event.encode() + b"\ndata: " + written_json(data) + b"\n\n"


class ProviderError(Exception):
    """An error that a provider sent instead of an answer, or in the middle of one.

    `fields` is its error object (code, param, type, and a message that must not be passed on), `response` the failed
    response that contains it (empty if there is none). `usage` is the usage of the call; None if it is unknown or
    nothing was generated.
    """

    def __init__(self, fields: Body, *, response: Body, usage: Usage | None) -> None:
        super().__init__("the answer is an error")
        self.fields = fields
        self.response = response
        self.usage = usage
        self.usage_source = "provider"


def find_error(body: Body, *, is_named: bool = False) -> ProviderError | None:
    """Return the error in a body or an event's data; None if there is none. `is_named`: the event is named an error."""
    response = body.get("response") if body.get("type") == "response.failed" else body
    if not isinstance(response, dict):
        response = {}
    of_choices = (choice.get("error") for choice in choices_in(response))  # where OpenRouter puts it
    error = response.get("error") or next(filter(None, of_choices), None)
    is_failed = response is not body or body.get("status") == "failed"
    is_error = is_named or is_failed or body.get("type") == "error" or body.get("object") == "error"
    if not error and not is_error:
        return None
    fields = error if isinstance(error, dict) else {} if error or is_failed else body
    reported = response.get("usage")
    usage = read_openai_usage(reported) or read_response_usage(reported)
    return ProviderError(
        fields, response=response if is_failed else {}, usage=usage if usage != Usage(0, 0, 0) else None
    )
