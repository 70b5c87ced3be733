"""The payload log: prompts and answers of accounts with content logging. Best effort, by design.

A request puts its content, cut to CONTENT_MAX_BYTES, into a queue of its process; a thread writes the queue to the
database in batches. Content is lost if the queue is full, the database is down or the process dies; requests and their
records are not. The number of dropped entries is logged. The content itself never goes into a log.
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

#: Length of the queue in entries, each of at most twice CONTENT_MAX_BYTES.
MOST_WAITING = 500
BATCH = 50
#: Seconds between the first entry of a batch and its writing.
WRITE_AFTER = 0.2
DEEPEST = 30
ELLIPSIS = "…"
#: Errors that a malformed provider response may raise while the answer is put together.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """Content in the queue. It is cut already, so the queue does not keep whole bodies in memory."""

    record_id: UUID
    account_id: int
    created_at: datetime
    prompt: Any
    answer: Any
    is_cut: bool


class ContentKeeper:
    """The queue of this process, and the thread that writes it."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._filled = threading.Event()
        self._writing = threading.Lock()
        self._thread = ProcessThread(self._run, name="content-writer")
        self._dropped = 0

    def keep(self, *, record_id: UUID, account_id: int, prompt: Any, answer: Callable[[], Any]) -> None:
        """Queue content, or drop it if the queue is full. `answer` is called only if it is queued. Raises nothing."""
        if len(self._waiting) >= MOST_WAITING:
            self._drop(1, "queue full")
            return
        asked, answered = Cut(settings.CONTENT_MAX_BYTES), Cut(settings.CONTENT_MAX_BYTES)
        try:
            texts = asked.of(prompt), answered.of(answer())
        except MALFORMED as error:  # the caller still gets the answer
            self._drop(1, type(error).__name__)
            return
        is_cut = asked.is_over or answered.is_over
        self._waiting.append(Entry(record_id, account_id, timezone.now(), *texts, is_cut))
        self._thread.start()
        self._filled.set()

    def flush(self) -> None:
        """Write the whole queue now; drop the batches that the database does not take."""
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
            except Exception as error:  # an error in one batch must not stop the thread
                log.exception("content_not_written", cause=type(error).__name__)
            finally:
                connection.close()


keeper = ContentKeeper()


@dataclass(slots=True)
class Cut:
    """Cuts a JSON value to `left` bytes of strings, names and numbers in UTF-8, without reading the rest of it."""

    left: int
    is_over: bool = field(default=False)

    def of(self, value: Any, depth: int = 0) -> Any:
        """Return the value, or its beginning and set `is_over`."""
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
        left = max(0, self.left)
        whole = text[: left + 1].encode("utf-8", "replace")
        self.left -= min(len(whole), left) + 2
        if len(whole) <= left:
            return text
        self.is_over = True
        return whole[:left].decode("utf-8", "ignore") + ELLIPSIS

    def _some(self, items: Any) -> Iterator[Any]:
        for item in items:
            if self.left <= 0:
                self.is_over = True
                return
            yield item


def write_content(entries: Sequence[Entry]) -> None:
    """Write entries; skip records whose content is stored already."""
    lifetime = timedelta(hours=settings.CONTENT_RETENTION_HOURS)
    rows = [
        RequestContent(
            record_id=entry.record_id,
            account_id=entry.account_id,
            created_at=entry.created_at,
            expires_at=entry.created_at + lifetime,
            prompt=_json(entry.prompt),
            answer="" if entry.answer is None else _json(entry.answer),
            is_cut=entry.is_cut,
        )
        for entry in entries
    ]
    with transaction.atomic():
        RequestContent.objects.bulk_create(rows, ignore_conflicts=True)


def content_of(record_id: UUID) -> RequestContent | None:
    """Return the content of a request; None if it was not logged or expired by the present or the former setting."""
    now = timezone.now()
    youngest = now - timedelta(hours=settings.CONTENT_RETENTION_HOURS)
    return RequestContent.objects.filter(pk=record_id, expires_at__gt=now, created_at__gt=youngest).first()


def _json(value: Any) -> str:
    """Return indented JSON; a lone surrogate, which databases reject, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "replace").decode()
