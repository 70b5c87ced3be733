"""Readers of a provider's event stream, which relay events as bytes and parse only those that matter.

Chunks of text pass unchanged, as whole events. Only the few events with usage, an error or the end are parsed. If the
stream breaks off, all its events are parsed once to estimate its usage.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress

from django.conf import settings

from core.background import LEAST_SLEEP
from core.errors import ApiError
from inference.protocols.base import (
    Body,
    Usage,
    read_openai_usage,
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

#: End of an event that holds a whole object; an event with another end is parsed.
END_OF_OBJECT = b"}" + END_OF_EVENT
#: The last usage of some servers, which sent the real one before.
NOTHING = Usage(0, 0, 0)
#: Bytes of events to parse before other greenlets run; takes some milliseconds.
TURN = 256 * 1024


class EventReader(ABC):
    """Reads one stream: returns the bytes to forward, and notes the usage, an error and the end.

    The stream is over at its end (`is_done`) or at a provider's error (`error`), which is not forwarded. Events after
    the end are ignored; events after an error are only searched for the usage.
    """

    #: Bytes of events that must be parsed.
    signs: tuple[bytes, ...] = (b'"usage"', b'"error"', DONE)
    #: Beginning of events that need no parsing; an event with another beginning is parsed.
    start: bytes = b"data:"

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.is_done = False
        self.error: ProviderError | None = None
        #: Whether the usage came in a chunk without choices, and whether more output followed it.
        self._usage_stands_alone = True
        self._usage_is_early = False
        self._buffer = EventBuffer()
        self._kept: list[bytes] = []
        self._size = 0
        self._postponed: ApiError | None = None

    def feed(self, data: bytes) -> bytes:
        """Process received bytes and return the whole events to forward.

        Raises BrokenStream, or the ApiError of an answer that the endpoint can't use; the next call raises it if there
        is something to forward first. Lines may end with CR, LF or both (HTML standard, section 9.2.6); forwarded
        lines end with LF.
        """
        if self._postponed is not None:
            raise self._postponed
        events = self._buffer.add(data)
        return self._forward(events) if events else b""

    def pass_on(self, data: bytes) -> bytes:
        """Process bytes that are whole events without signs, and return what to forward.

        Any other bytes are left for `feed`, and nothing is returned.
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
        is_of_all = reported is not None and is_last and not self.lacks_answers(reported)
        if reported is not None and is_of_all and reported.input_tokens and reported.output_tokens:
            return reported, "provider"
        counted = estimate(self.body())
        if reported is None or not is_of_all:
            return (reported or counted).at_least(counted), "estimated"
        used = reported.filled(counted)
        return used, "provider" if used == reported else "estimated"

    def lacks_answers(self, reported: Usage) -> bool:
        """Return whether the provider's usage does not cover all answers."""
        return False

    @abstractmethod
    def has_generated(self) -> bool:
        """Return whether any output was received."""

    @abstractmethod
    def body(self) -> Body:
        """Return the output received so far as a non-streamed body, for estimates."""

    @abstractmethod
    def look(self, event: Body) -> bool:
        """Process a parsed event and return whether to forward it; raises BrokenStream."""

    @abstractmethod
    def take_done(self) -> bool:
        """Process the event `[DONE]` and return whether to forward it; raises BrokenStream."""

    def _forward(self, events: bytes) -> bytes:
        """Return events without signs unchanged, and process all others one by one."""
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
        """Return the bytes to forward of one event and keep the event; nothing if the stream is over."""
        if self.is_over:
            self._look_for_usage(event)
            return b""
        forwarded = self._relay(event)
        if self.error is None:
            self._keep(event + END_OF_EVENT)
        return forwarded

    def _look_for_usage(self, event: bytes) -> None:
        """Search an event after an error for the usage, which may come alone or in the failed response."""
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
        """Keep events for the cache and for estimates; raises BrokenStream beyond MAX_ANSWER_BYTES."""
        self._size += len(events)
        if self._size > settings.MAX_ANSWER_BYTES:
            raise BrokenStream("too large an answer")
        self._kept.append(events)

    def _fail(self, error: ProviderError) -> None:
        self.error = error
        self._take_usage(error.usage)

    def _take_usage(self, usage: Usage | None) -> None:
        """Note the usage of a failed stream, which covers all its output."""
        if usage is not None and usage != NOTHING:
            self.usage, self._usage_is_early, self._usage_stands_alone = usage, False, True

    def _stripped(self, events: bytes) -> bytes:
        """Return events without the parts that are never forwarded."""
        return events

    def _is_plain(self, events: bytes) -> bool:
        number = events.count(END_OF_EVENT)
        are_whole = events.count(END_OF_OBJECT) == number and events.startswith(self.start)
        return are_whole and events.count(END_OF_EVENT + self.start) == number - 1 and not self._is_signed(events)

    def _is_signed(self, events: bytes) -> bool:
        """Return whether events must be parsed. After the usage all are, to notice further output."""
        if self.usage is not None and not self._usage_is_early:
            return True
        for sign in self.signs:  # noqa: SIM110  (any() takes twice as long, for each chunk)
            if sign in events:
                return True
        return False

    def _relay(self, event: bytes) -> bytes:
        """Return the bytes to forward of one event; raises BrokenStream."""
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
