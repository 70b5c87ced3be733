"""Moves usage records from the limit store's streams into the database, each exactly once.

Records are read through a consumer group, written in one statement (idempotent by id and revision), and only then
acknowledged and deleted: a crash at any point leaves them to be read again, and writing them again changes nothing.
What a dead ingester had read and not acknowledged is taken over after CLAIM_IDLE.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from django.conf import settings
from redis.exceptions import ResponseError

from accounts.limits import get_limits
from accounts.limits.contract import SHARDS
from accounts.limits.records import decode_record
from accounts.limits.redis import records_stream, redis_client
from monitoring.recorder import write_records

GROUP = "ingest"
BATCH = 500
CLAIM_IDLE = 10_000  # ms: how long a batch may be in the hands of an ingester before another takes it
READ_TIMEOUT = 5.0  # seconds

Entry = tuple[bytes, Mapping[bytes, bytes]]

log = structlog.get_logger(__name__)


class Ingester:
    """One consumer of all shards' streams. Several may run, in one process or in many."""

    def __init__(self, client: Any = None, name: str | None = None) -> None:
        self.client = client or redis_client(settings.REDIS_URL, read_timeout=READ_TIMEOUT)
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._grouped: set[str] = set()

    def run_once(self) -> int:
        """Charge dead reservations, then move what is there; answer how many records were written."""
        limits = get_limits()
        moved = 0
        for shard in range(SHARDS):
            limits.reap(shard)
            moved += self._drain(records_stream(shard))
        return moved

    def _drain(self, stream: str) -> int:
        """Move a stream's records: first those that a dead ingester left, then the new ones."""
        if stream not in self._grouped and not self._join(stream):
            return 0
        moved = self._write(stream, self._abandoned(stream))
        while entries := self._new(stream):
            moved += self._write(stream, entries)
        return moved

    def _join(self, stream: str) -> bool:
        """Make the consumer group of a stream that exists; answer whether there is one."""
        if not self.client.exists(stream):
            return False
        try:
            self.client.xgroup_create(stream, GROUP, id="0")
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._grouped.add(stream)
        return True

    def _new(self, stream: str) -> list[Entry]:
        try:
            answer = self.client.xreadgroup(GROUP, self.name, {stream: ">"}, count=BATCH)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._grouped.discard(stream)  # the store was emptied
            return []
        return _entries(answer)

    def _abandoned(self, stream: str) -> list[Entry]:
        try:
            answer = self.client.xautoclaim(stream, GROUP, self.name, CLAIM_IDLE, count=BATCH)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._grouped.discard(stream)
            return []
        return [(identifier, fields) for identifier, fields in answer[1] if fields]

    def _write(self, stream: str, entries: Sequence[Entry]) -> int:
        if not entries:
            return 0
        written = write_records(list(_decoded(entries)))
        identifiers = [identifier for identifier, _ in entries]
        pipeline = self.client.pipeline(transaction=False)
        pipeline.xack(stream, GROUP, *identifiers)
        pipeline.xdel(stream, *identifiers)
        pipeline.execute()
        return written


def _entries(answer: Any) -> list[Entry]:
    streams: Iterable[Any] = answer.items() if isinstance(answer, dict) else answer or []
    return [entry for _, found in streams for entry in (found[0] if found and isinstance(found[0], list) else found)]


def _decoded(entries: Iterable[Entry]) -> Iterable[dict[str, Any]]:
    """Read the entries; one that is none of ours is logged and dropped, or it would stop all behind it for ever."""
    for identifier, fields in entries:
        try:
            yield decode_record(fields)
        except (KeyError, ValueError) as error:
            log.error("record_unreadable", entry=identifier.decode(), cause=type(error).__name__)
