"""Count and record refusals in this process while Redis is down."""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace

from accounts.limits.records import UsageRecord
from accounts.limits.types import MINUTE, REFUSALS_A_MINUTE, RefusalGroup

logger = logging.getLogger(__name__)

#: At this count a new record is started: the database stores revisions in 16 bits.
LARGEST_COUNT = 30_000
#: The most records that wait for the database.
CAPACITY = 20_000


class RefusalCounts:
    """The refusals of the current minute, by owner and kind. Thread-safe.

    Each is written to `sink` at once, so that none is lost if the process is killed: as a row of its own, or as the
    next revision of a counting record. Records that the sink fails to store wait for `flush`.
    """

    def __init__(self, sink: Callable[[UsageRecord], None]) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._minute = 0
        self._seen: Counter[str] = Counter()
        self._sums: dict[RefusalGroup, UsageRecord] = {}
        self._waiting: OrderedDict[str, UsageRecord] = OrderedDict()

    def __len__(self) -> int:
        """Return how many records wait."""
        return len(self._waiting)

    def add(self, group: RefusalGroup, operation: str, record: UsageRecord, now: int) -> None:
        """Record a refusal at `now` (µs); errors of the sink are logged, not raised."""
        counted = self._counted(group, operation, record, now)
        with self._lock:
            self._waiting[counted.id] = counted
            dropped = self._waiting.popitem(last=False)[0] if len(self._waiting) > CAPACITY else None
        if dropped is not None:
            logger.error("limits: too many records wait for the database: that of %s is dropped", dropped)
        self._write(counted)

    def flush(self) -> bool:
        """Write the waiting records, oldest first, until one fails. Return whether none is left."""
        return all(self._write(record) for record in list(self._waiting.values()))

    def _write(self, record: UsageRecord) -> bool:
        try:
            self._sink(record)
        except Exception:
            logger.exception("limits: the record of %s waits for the database", record.id)
            return False
        with self._lock:
            if self._waiting.get(record.id) is record:  # else it has grown meanwhile
                del self._waiting[record.id]
        return True

    def _counted(self, group: RefusalGroup, operation: str, record: UsageRecord, now: int) -> UsageRecord:
        with self._lock:
            if now // MINUTE != self._minute:
                self._minute = now // MINUTE
                self._seen.clear()
                self._sums.clear()
            self._seen[group.owner] += 1
            if self._seen[group.owner] <= REFUSALS_A_MINUTE:
                return replace(record, id=operation)
            counted = self._sums[group] = _grown(self._sums.get(group), operation, record)
            return counted


def _grown(known: UsageRecord | None, operation: str, record: UsageRecord) -> UsageRecord:
    """Add a refusal to its counting record, or start one."""
    if known is None or known.count >= LARGEST_COUNT:
        return replace(record, id=operation)
    return replace(known, count=known.count + 1, revision=known.revision + 1)
