"""Streams of server-sent events (HTML standard, section 9.2): their bytes, and readers of a provider's stream.

Readers relay events as bytes and parse only those that matter. Chunks of text pass unchanged, as whole events. Only the
few events with usage, an error or the end are parsed. If the stream breaks off, all its events are parsed once to
estimate its usage.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, ClassVar

from django.conf import settings

from core.background import LEAST_SLEEP
from core.errors import ApiError
from core.json import to_json
from inference.protocols.base import Body, ProviderError, find_error
from inference.usage import NOTHING, Usage, parse_usage

END_OF_EVENT = b"\n\n"
#: End of an event that holds a whole object; an event with another end is parsed.
END_OF_OBJECT = b"}" + END_OF_EVENT
DONE = b"[DONE]"
#: Beginnings of an event's lines (HTML standard, section 9.2.6); the first is that of a comment.
FIELDS = (b":", b"data", b"event", b"id", b"retry")
#: The name of an event that is an error whatever its data are.
ERROR = re.compile(rb"^event: ?error$", re.MULTILINE)
#: Most bytes of one event.
LONGEST_EVENT = 16 * 1024 * 1024
#: Bytes of events to parse before other greenlets run; takes some milliseconds.
TURN = 256 * 1024
#: Bytes of kept events that are compressed together.
BLOCK = 4 * 1024


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
        self.rest = bytearray()

    def add(self, data: bytes) -> bytes:
        """Add received bytes and return the whole events; raises BrokenStream if one is longer than LONGEST_EVENT."""
        rest = self.rest
        if rest.endswith(b"\r"):
            data = b"\r" + data
            del rest[-1]
        if b"\r" in data:  # a CR at the end is kept, since an LF may follow it
            last = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(last)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + last
        if not rest and data.endswith(END_OF_EVENT):
            return data
        searched = max(0, len(rest) - 1)
        rest += data
        end = rest.rfind(END_OF_EVENT, searched) + len(END_OF_EVENT)
        if end < len(END_OF_EVENT):
            if len(rest) > LONGEST_EVENT:
                raise BrokenStream("an event without end")
            return b""
        events = bytes(rest[:end])
        del rest[:end]
        return events

    def end(self) -> bytes:
        """Return the unfinished event, which ends with the stream; empty if there is none."""
        last = bytes(self.rest).rstrip(b"\r\n")
        self.rest.clear()
        return last + END_OF_EVENT if last else b""


class KeptEvents:
    """Events in the order in which they came, compressed by blocks, since the chunks of a stream differ in a few bytes.

    A thousand chunks then take 20 KiB of memory rather than 200, for a microsecond of CPU time each.
    """

    #: The compressors of all streams (made anew, they would take ten times as long), which forget each block. One is
    #: taken out while in use, and not put back after an exception: it may still hold bytes of that stream.
    _compressors: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._last = bytearray()

    def add(self, events: bytes) -> None:
        """Add whole events."""
        self._last += events
        if len(self._last) < BLOCK:
            return
        if len(self._last) > TURN:  # only copied: to compress it would hold up other greenlets
            self._blocks.append(zlib.compress(self._last, 0, wbits=-15))
        else:
            try:
                compressor = self._compressors.pop()
            except IndexError:
                compressor = zlib.compressobj(level=1, wbits=-13, memLevel=6)
            self._blocks.append(compressor.compress(self._last) + compressor.flush(zlib.Z_FULL_FLUSH))
            self._compressors.append(compressor)
        self._last.clear()

    def __iter__(self) -> Iterator[bytes]:
        """Yield everything in pieces that are whole events."""
        for block in self._blocks:
            yield zlib.decompressobj(wbits=-15).decompress(block)
        yield bytes(self._last)


def parse_events(text: bytes) -> Iterator[Body]:
    """Yield the JSON objects in the events of a stream; leave out `[DONE]` and all other data."""
    for event in text.split(END_OF_EVENT):
        data = event_data(event)
        if data and data != DONE:
            with suppress(BrokenStream):
                yield parse_data(data)


def read_opening(pieces: Iterator[bytes], opens: Callable[[Body], bool]) -> bytes:
    """Read up to the first event with data, and return the bytes received from its beginning on.

    Comments before it, which some providers send while they work, are skipped. Raises ProviderError if that event or
    the whole body is an error, BrokenStream if the stream ends before or `opens` rejects the event.
    """
    buffer = EventBuffer()
    for piece in pieces:
        events, at = buffer.add(piece), 0
        while (end := events.find(END_OF_EVENT, at)) >= 0:
            if _is_opening(events[at:end], opens):
                return events[at:] + bytes(buffer.rest)
            at = end + len(END_OF_EVENT)
    last = bytes(buffer.rest).rstrip(b"\r\n")
    if last and _is_opening(last, opens):
        return last
    raise BrokenStream("no event")


def _is_opening(event: bytes, opens: Callable[[Body], bool]) -> bool:
    """Return whether an event has data; raises ProviderError or BrokenStream if it can't open the stream."""
    is_body = event.lstrip().startswith(b"{")  # instead of events
    found = find_error(body := parse_data(event)) or body if is_body else parse_event(event, event_data(event))
    if found is None:
        return False
    if isinstance(found, ProviderError):
        raise found
    if is_body or not opens(found):
        raise BrokenStream("no event of this endpoint")
    return True


def parse_event(event: bytes, data: bytes) -> Body | ProviderError | None:
    """Return the object or the error in an event's data; None if it has none.

    Raises BrokenStream for other data, and for lines that are neither fields nor comments, such as a proxy's HTML page.
    """
    is_named_error = ERROR.search(event) is not None
    if data or is_named_error:
        body = parse_data(data, is_error=is_named_error)
        return find_error(body, is_named=is_named_error) or body
    if not all(line.startswith(FIELDS) for line in event.split(b"\n") if line):
        raise BrokenStream("no event")
    return None


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
    return b"event: " + event.encode() + b"\ndata: " + to_json(data) + b"\n\n"


class EventReader(ABC):
    """Reads one stream: returns the bytes to forward, and notes the usage, an error and the end.

    The stream is over at its end (`is_done`) or at a provider's error (`error`), which is not forwarded. Events after
    the end are ignored; events after an error are only searched for the usage.
    """

    #: Bytes of events that must be parsed.
    signs: tuple[bytes, ...] = (b'"usage"', b'"error"', DONE)
    #: Beginning of events that need no parsing; an event with another beginning is parsed.
    start: bytes = b"data:"
    #: Whether every event is parsed.
    parses_all = False

    def __init__(self) -> None:
        self.usage: Usage | None = None
        #: The provider's name of the tier in which it served the call; None if it named none.
        self.service_tier: Any = None
        self.is_done = False
        self.error: ProviderError | None = None
        #: Whether the usage came in a chunk without choices, and whether more output followed it.
        self._usage_stands_alone = True
        self._usage_is_early = False
        self._buffer = EventBuffer()
        self._kept = KeptEvents()
        self._size, self._most = 0, settings.MAX_ANSWER_BYTES  # asking the settings for each chunk takes a microsecond
        self._postponed: ApiError | None = None

    def feed(self, data: bytes) -> bytes:
        """Process received bytes and return the whole events to forward.

        Raises BrokenStream, or the ApiError of an answer that the endpoint can't use; the next call raises it if there
        is something to forward first. Lines may end with CR, LF or both (HTML standard, section 9.2.6); forwarded
        lines end with LF.
        """
        if self._postponed is not None:
            raise self._postponed
        events = self.stripped(self._buffer.add(data))
        if plain := self._relay(events):
            return plain
        forwarded = bytearray()
        try:
            for event in filter(None, events.split(END_OF_EVENT)):
                if not self.is_over:
                    forwarded += self._read(event)
                elif self.error is not None:
                    self._look_for_usage(event)
        except BrokenStream as error:
            error.before = bytes(forwarded)
            raise
        except ApiError as error:
            if not forwarded:
                raise
            self._postponed = error
        return bytes(forwarded)

    def pass_on(self, data: bytes) -> bytes:
        """Process bytes that are whole events without signs, and return what to forward.

        Any other bytes are left for `feed`, and nothing is returned.
        """
        if self._buffer.rest or b"\r" in data or not data.endswith(END_OF_OBJECT):
            return b""
        return self._relay(self.stripped(data))

    def _relay(self, events: bytes) -> bytes:
        """Keep and return whole events if they need no parsing; nothing otherwise."""
        if self.is_over or self.parses_all:
            return b""
        number = events.count(END_OF_EVENT)
        are_whole = events.count(END_OF_OBJECT) == number and events.startswith(self.start)
        is_plain = are_whole and events.count(END_OF_EVENT + self.start) == number - 1 and not self.is_signed(events)
        if not is_plain or self._size + len(events) > self._most:
            return b""
        self._keep(events)
        return events

    def finish(self) -> bytes:
        """Process the end of the stream, which may also end the last event, and return what to forward."""
        return self.feed(self._buffer.end())

    @property
    def is_over(self) -> bool:
        """Whether further events are not forwarded."""
        return self.is_done or self.error is not None

    @property
    def needs_no_more(self) -> bool:
        """Whether the stream ended with an error whose usage is known."""
        return self.error is not None and self.usage is not None

    @property
    def is_free(self) -> bool:
        """Whether the provider reported an error without usage, before it generated anything."""
        return self.error is not None and self.usage is None and not self.has_generated()

    @property
    def text(self) -> bytes:
        """Every event received until the stream was over, without the parts that are never forwarded."""
        return b"".join(self._kept)

    def events(self) -> Iterator[Body]:
        """Parse every event received so far; other greenlets run in between."""
        parsed = 0
        for events in self._kept:
            parsed += len(events)
            if parsed > TURN:
                parsed = 0
                time.sleep(LEAST_SLEEP)
            yield from parse_events(events)

    def billed_usage(self, estimate: Callable[[Body], Usage]) -> tuple[Usage, str]:
        """Return the usage of the stream and its source: "provider" or "estimated".

        The provider's usage is final if the stream has ended, or if it came in a chunk without choices and no output
        followed. A usage that is not final, or that does not cover all answers, is too low: then each figure is the
        higher one of the provider's and the estimate that `estimate` makes from the body. A final figure of 0 is
        replaced by the estimate's.
        """
        reported = self.usage
        is_last = not self._usage_is_early and (self.is_done or self._usage_stands_alone)
        is_final = reported is not None and is_last and self.is_of_all(reported)
        if reported is not None and is_final and reported.input_tokens and reported.output_tokens:
            return reported, "provider"
        counted = estimate(self.body())
        if reported is None or not is_final:
            return (reported or counted).at_least(counted), "estimated"
        return reported.filled(counted)

    @abstractmethod
    def read(self, event: bytes, body: Body) -> bytes:
        """Process an event with its parsed data (empty if it has none), and return the bytes to forward.

        Raises BrokenStream.
        """

    @abstractmethod
    def read_done(self, event: bytes) -> bytes:
        """Process the event whose data are `[DONE]`, and return the bytes to forward; raises BrokenStream."""

    @abstractmethod
    def has_generated(self) -> bool:
        """Return whether any output was received."""

    @abstractmethod
    def body(self) -> Body:
        """Return the output received so far as a non-streamed body, for estimates."""

    def is_of_all(self, reported: Usage) -> bool:
        """Return whether the provider's usage covers all answers."""
        return True

    def stripped(self, events: bytes) -> bytes:
        """Return events without the parts that are never forwarded."""
        return events

    def is_signed(self, events: bytes) -> bool:
        """Return whether events must be parsed. After the usage all are, to notice further output."""
        if self.usage is not None and not self._usage_is_early:
            return True
        for sign in self.signs:  # noqa: SIM110  (any() takes twice as long, for each chunk)
            if sign in events:
                return True
        return False

    def _read(self, event: bytes) -> bytes:
        """Process one event, keep it unless it is an error, and return the bytes to forward."""
        forwarded = event + END_OF_EVENT
        is_whole = event.endswith(b"}") and event.startswith(self.start)
        if self.parses_all or not is_whole or self.is_signed(event):
            data = event_data(event)
            if data == DONE:
                forwarded = self.read_done(event)
            elif isinstance(found := parse_event(event, data), ProviderError):
                self.error = found
                self._take_usage(found.usage)
                return b""
            else:
                forwarded = self.read(event, found or {})
        self._keep(event + END_OF_EVENT)
        return forwarded

    def _keep(self, events: bytes) -> None:
        """Keep events for the cache and for estimates; raises BrokenStream beyond MAX_ANSWER_BYTES."""
        self._size += len(events)
        if self._size > self._most:
            raise BrokenStream("too large an answer")
        self._kept.add(events)

    def _look_for_usage(self, event: bytes) -> None:
        """Search an event after an error for the usage, which may come alone or in the failed response."""
        with suppress(BrokenStream):
            found = parse_event(event, event_data(event))
            if not isinstance(found, ProviderError):
                self._take_usage(parse_usage((found or {}).get("usage")))
                return
            if found.response and self.error is not None:
                self.error = ProviderError(
                    found.fields or self.error.fields, response=found.response, usage=found.usage
                )
            self._take_usage(found.usage)

    def _take_usage(self, usage: Usage | None) -> None:
        """Note the usage of a failed stream, which covers all its output."""
        if usage is not None and usage != NOTHING:
            self.usage, self._usage_is_early, self._usage_stands_alone = usage, False, True
