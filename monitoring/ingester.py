"""Moves usage records from the state store's streams into the database, each exactly once.

Records are read through a consumer group, written in one statement (idempotent by id and revision), and only then
acknowledged and deleted. After a crash they are read again, and writing them again changes nothing. Records that an
ingester could not write are read again in its next round; those that a dead one had read are taken over after
CLAIM_IDLE. An entry that is no record is moved to a stream named `...:rejected`, and logged: left in place, it would
block all later ones.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import structlog
from django.conf import settings
from django.db import DataError, IntegrityError, transaction
from redis.exceptions import ResponseError

from accounts.limits import get_limits
from accounts.limits.records import decode_record
from accounts.limits.scripts import records_stream
from accounts.limits.types import SHARDS
from core.redis.client import redis_client
from monitoring.recorder import write_records

log = structlog.get_logger(__name__)

#: The one client of the process for this; its pool knows of forks.
_client = lru_cache(maxsize=1)(redis_client)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many records wait, and for how many seconds the oldest of them has; 0 and 0 when none does."""

    records: int = 0
    seconds: float = 0.0


def ingest_backlog() -> Backlog:
    """Ask all streams in one round trip; raises redis.RedisError when the store is down."""
    pipeline = _client(settings.REDIS_URL).pipeline(transaction=False)
    for shard in range(SHARDS):
        pipeline.xlen(records_stream(shard))
        pipeline.xrange(records_stream(shard), count=1)
    answers = pipeline.execute()
    oldest = [int(entries[0][0].split(b"-")[0]) for entries in answers[1::2] if entries]
    seconds = max(0.0, time.time() - min(oldest) / 1000) if oldest else 0.0
    return Backlog(sum(answers[::2]), seconds)


GROUP = "ingest"
BATCH = 500
CLAIM_IDLE = 10_000  # ms: how long a batch may be in the hands of an ingester before another takes it
READ_TIMEOUT = 5.0  # seconds
REAP_INTERVAL = 1.0  # seconds between two looks for the reservations of dead processes
REJECTED_KEPT = 1000  # entries of a shard that were no records: the newest are kept, for a person to look at
#: How an entry shows that it is no record: in reading it, in making a row of it, in the database.
UNREADABLE = (KeyError, ValueError, TypeError, ArithmeticError, DataError, IntegrityError)

Entry = tuple[bytes, dict[bytes, bytes]]
Batch = dict[str, Sequence[Entry]]  # by stream


class Ingester:
    """One consumer of all shards' streams. Several may run, in one process or in many."""

    def __init__(self, client: Any = None, name: str | None = None) -> None:
        self.client = client or redis_client(settings.REDIS_URL, read_timeout=READ_TIMEOUT)
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._grouped: set[str] = set()
        self._is_unfinished = False  # a round failed: this consumer may hold records that it has not written
        self._reaped_at = float("-inf")

    def run_once(self) -> int:
        """Charge dead reservations, then move all waiting records; return how many were written."""
        if time.monotonic() - self._reaped_at >= REAP_INTERVAL:
            self._reaped_at = time.monotonic()
            for shard in range(SHARDS):
                get_limits().reap(shard)
        streams = [records_stream(shard) for shard in range(SHARDS)]
        pipeline = self.client.pipeline(transaction=False)
        for stream in streams:
            pipeline.xlen(stream)
        waiting = deque(stream for stream, length in zip(streams, pipeline.execute(), strict=True) if length)
        has_old, self._is_unfinished = self._is_unfinished, True
        moved = sum(self._write_left(stream, has_old=has_old) for stream in waiting)
        while waiting:
            # A batch takes records of several streams: a transaction for each stream would cost most of the time where
            # many accounts ask a little each. A stream that may hold more goes to the end of the queue.
            batch: Batch = {}
            while waiting and sum(map(len, batch.values())) < BATCH:
                stream = waiting.popleft()
                batch[stream] = self._read(stream, ">")
                if len(batch[stream]) == BATCH:
                    waiting.append(stream)
            moved += self._write(batch)
        self._is_unfinished = False
        return moved

    def leave(self) -> None:
        """Delete this consumer where it holds no records: the store would keep each one that ever was."""
        for stream in list(self._grouped):
            pending = self.client.xpending_range
            held = self._of_group(stream, pending, stream, GROUP, "-", "+", 1, consumername=self.name)
            if held == []:
                self._of_group(stream, self.client.xgroup_delconsumer, stream, GROUP, self.name)

    def _write_left(self, stream: str, *, has_old: bool) -> int:
        """Write the records of a stream that this ingester (`has_old`) or a dead one has read and not written."""
        if stream not in self._grouped:
            try:
                self.client.xgroup_create(stream, GROUP, id="0")
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            self._grouped.add(stream)
        moved, last = 0, "0"
        while has_old and (entries := self._read(stream, last)):
            moved += self._write({stream: [(identifier, fields) for identifier, fields in entries if fields]})
            last = entries[-1][0].decode()
        answer = self._of_group(stream, self.client.xautoclaim, stream, GROUP, self.name, CLAIM_IDLE, count=BATCH)
        taken_over = [(identifier, fields) for identifier, fields in answer[1] if fields] if answer else []
        return moved + self._write({stream: taken_over})

    def _read(self, stream: str, after: str) -> list[Entry]:
        """Read a batch: `>` those that nobody has read, an id those behind it that this ingester has not written."""
        answer = self._of_group(stream, self.client.xreadgroup, GROUP, self.name, {stream: after}, count=BATCH)
        streams = answer.items() if isinstance(answer, dict) else answer or []  # a dictionary by RESP3
        return [
            entry for _, found in streams for entry in (found[0] if found and isinstance(found[0], list) else found)
        ]

    def _of_group(self, stream: str, command: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Send a command of the stream's consumer group; return None if the store was emptied and has no group."""
        try:
            return command(*arguments, **options)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._grouped.discard(stream)
            return None

    def _write(self, batch: Batch) -> int:
        """Write entries; then acknowledge and delete them, and put aside those that are no records."""
        entries = list(chain.from_iterable(batch.values()))
        if not entries:
            return 0
        refused: set[tuple[str, bytes]] = set()
        try:
            written = _store(entries)
        except UNREADABLE:
            written = 0
            for stream, entry in ((stream, entry) for stream, of_stream in batch.items() for entry in of_stream):
                try:
                    written += _store([entry])
                except UNREADABLE as error:
                    log.error("record_refused", entry=entry[0].decode(), cause=type(error).__name__)
                    refused.add((stream, entry[0]))
        for stream, of_stream in batch.items():
            if of_stream:
                identifiers = [identifier for identifier, _ in of_stream]
                pipeline: Any = self.client.pipeline(transaction=True)
                for identifier, fields in of_stream:
                    if (stream, identifier) in refused:
                        pipeline.xadd(f"{stream}:rejected", fields, maxlen=REJECTED_KEPT)
                pipeline.xack(stream, GROUP, *identifiers)
                pipeline.xdel(stream, *identifiers)
                pipeline.execute()
        return written


def _store(entries: Iterable[Entry]) -> int:
    records = [decode_record(fields) for _, fields in entries]
    with transaction.atomic():
        return write_records(records)
