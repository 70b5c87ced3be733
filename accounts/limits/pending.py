"""Settlements that wait for Redis: a bounded queue in this process."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from accounts.limits.records import UsageRecord
from accounts.limits.types import MINUTE, Amount, LimitSet, RefusalGroup

logger = logging.getLogger(__name__)

CAPACITY = 20_000
MOST_FAILURES = 3  # of settlements, before the rest waits for the next attempt
SETTLED_TTL = 60 * MINUTE  # µs; how long Redis remembers that an operation was settled: SETTLED_TTL in prelude.lua


@dataclass(frozen=True, slots=True)
class Pending:
    """A settlement to be made. It has a record only if that could not be stored in another way.

    `recorded_at` is when the record was written to the database. `maybe_done` means that it was sent before and only
    the reply is missing. A `group` makes it a refusal, which is emitted instead of settled. Times are in µs.
    """

    scope: LimitSet
    operation: str
    admitted_at: int
    used: Amount
    since: int
    recorded_at: int | None = None
    record: UsageRecord | None = None
    maybe_done: bool = False
    group: RefusalGroup | None = None
    flight_error: str = ""

    def is_ambiguous(self, now: int) -> bool:
        """Return whether Redis may have forgotten that this was settled already: settling again could charge twice."""
        return self.maybe_done and self.record is None and now - self.since >= SETTLED_TTL


class PendingSettlements:
    """A bounded queue of settlements, one for each operation, oldest first. Thread-safe."""

    def __init__(self, clock: Callable[[], int], capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._queue: OrderedDict[str, Pending] = OrderedDict()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, pending: Pending) -> None:
        """Queue a settlement. It replaces an earlier one of its operation; a full queue drops its oldest."""
        with self._lock:
            self._queue[pending.operation] = pending
            overflow = self._queue.popitem(last=False)[0] if len(self._queue) > self._capacity else None
            self.dropped += overflow is not None
        if overflow is not None:
            logger.error("limits: too many settlements wait for Redis, dropped that of %s", overflow)

    def flush(self, make: Callable[[Pending], object]) -> bool:
        """Make the settlements in the order of the queue. Return whether none is left.

        One that fails goes to the end, so that it does not hold up the others; after MOST_FAILURES the rest waits.
        """
        failures = 0
        while failures < MOST_FAILURES:
            with self._lock:
                pending = next(iter(self._queue.values()), None)
            if pending is None:
                return True
            has_failed = False
            if pending.is_ambiguous(self._clock()):
                self.dropped += 1
                logger.error("limits: dropped the settlement of %s, which may have been made before", pending.operation)
            else:
                try:
                    make(pending)
                except Exception:
                    logger.exception("limits: a settlement has to wait: %s", pending.operation)
                    has_failed = True
                    failures += 1
            with self._lock:
                if self._queue.get(pending.operation) is not pending:
                    continue  # another of its operation has replaced it
                if has_failed:
                    self._queue.move_to_end(pending.operation)
                else:
                    del self._queue[pending.operation]
        return False
