"""Keeps what was asked and answered, of accounts whose content an operator chose to log. Best effort, by design.

A request only puts its content, cut to size, into a queue of this process; a thread writes what waits there, in
batches. A queue that is full, a database that takes nothing and a process that dies lose content, never a request or
its record: what is dropped is logged by number. Nothing of the content goes anywhere else, a log least of all.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.utils import timezone

from core.background import ProcessThread
from monitoring.models import RequestContent

#: What may wait in one process: entries, each of at most twice CONTENT_MAX_BYTES.
MOST_WAITING = 500
BATCH = 50
#: Seconds that the first entry of a batch waits for others.
WRITE_AFTER = 0.2
DEEPEST = 30
ELLIPSIS = "…"
#: What putting an answer together may meet in what a provider sent.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What waits to be written. It is cut already: a request's whole body must not live on here, nor its answer."""

    record_id: UUID
    account_id: int
    created_at: datetime
    prompt: Any
    answer: Any
    is_cut: bool


class ContentKeeper:
    """One queue a process, and the thread that empties it."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._filled = threading.Event()
        self._writing = threading.Lock()
        self._thread = ProcessThread(self._run, name="content-writer")
        self._dropped = 0

    def keep(self, *, record_id: UUID, account_id: int, prompt: Any, answer: Callable[[], Any]) -> None:
        """Take content to be written; `answer` makes the answer, where it is not dropped at once. Raises nothing."""
        if len(self._waiting) >= MOST_WAITING:
            self._drop(1, "queue full")
            return
        asked, answered = Cut(settings.CONTENT_MAX_BYTES), Cut(settings.CONTENT_MAX_BYTES)
        try:
            texts = asked.of(prompt), answered.of(answer())
        except MALFORMED as error:  # an answer that can't be put together is no reason to refuse it to its caller
            self._drop(1, type(error).__name__)
            return
        is_cut = asked.is_over or answered.is_over
        self._waiting.append(Entry(record_id, account_id, timezone.now(), *texts, is_cut))
        self._thread.start()
        self._filled.set()

    def flush(self) -> None:
        """Write all that waits, here and now."""
        with self._writing:
            while self._waiting:
                entries = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    write_content(entries)
                except DatabaseError as error:
                    self._drop(len(entries), type(error).__name__)

    def _drop(self, entries: int, cause: str) -> None:
        self._dropped += entries
        log.warning("content_dropped", entries=entries, cause=cause, dropped_so_far=self._dropped)

    def _run(self) -> None:
        while True:
            self._filled.wait()
            time.sleep(WRITE_AFTER)
            self._filled.clear()
            try:
                self.flush()
            except Exception as error:  # whatever is wrong with one batch, the next one is written
                log.exception("content_not_written", cause=type(error).__name__)
            finally:
                connection.close()


keeper = ContentKeeper()


@dataclass(slots=True)
class Cut:
    """Shortens a JSON value to so many characters of texts, names and numbers, without looking at what is beyond."""

    left: int
    is_over: bool = field(default=False)

    def of(self, value: Any, depth: int = 0) -> Any:
        """Return the value, or its beginning: then `is_over` is set."""
        if self.left <= 0 or depth > DEEPEST:
            self.is_over = True
            return ELLIPSIS
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._text(str(name)): self.of(item, depth + 1) for name, item in self._some(value.items())}
        if isinstance(value, Sequence):
            return [self.of(item, depth + 1) for item in self._some(value)]
        self.left -= 8
        return value

    def _text(self, text: str) -> str:
        shown = text[: max(0, self.left)]
        self.left -= len(shown) + 2
        if len(shown) == len(text):
            return text
        self.is_over = True
        return shown + ELLIPSIS

    def _some(self, items: Any) -> Iterator[Any]:
        for item in items:
            if self.left <= 0:
                self.is_over = True
                return
            yield item


def write_content(entries: Sequence[Entry]) -> None:
    """Write entries; those of records that have content already change nothing."""
    lifetime = timedelta(hours=settings.CONTENT_RETENTION_HOURS)
    with transaction.atomic():
        RequestContent.objects.bulk_create([_row(entry, lifetime) for entry in entries], ignore_conflicts=True)


def content_of(record_id: UUID) -> RequestContent | None:
    """Return what a request asked and was answered; None if it was not logged, or has expired by whatever setting."""
    now = timezone.now()
    youngest = now - timedelta(hours=settings.CONTENT_RETENTION_HOURS)
    return RequestContent.objects.filter(pk=record_id, expires_at__gt=now, created_at__gt=youngest).first()


def _row(entry: Entry, lifetime: timedelta) -> RequestContent:
    return RequestContent(
        record_id=entry.record_id,
        account_id=entry.account_id,
        created_at=entry.created_at,
        expires_at=entry.created_at + lifetime,
        prompt=_json(entry.prompt),
        answer="" if entry.answer is None else _json(entry.answer),
        is_cut=entry.is_cut,
    )


def _json(value: Any) -> str:
    """Write JSON for people; half a surrogate pair, which no database takes, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "replace").decode()
