"""Settlements that could not reach Redis, kept until it is back. Bounded; what falls out is counted and logged."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from accounts.limits.bounds import Amount
from accounts.limits.contract import MINUTE, Draft, LimitBackend, Scope, Tally

logger = logging.getLogger(__name__)

CAPACITY = 20_000
REMEMBERED = 60 * MINUTE  # how long Redis knows that an operation was settled: SETTLED_TTL in prelude.lua


@dataclass(frozen=True, slots=True)
class Pending:
    """One settlement to be made. A record is only in it if the record could not be stored by another way.

    `maybe_done` says that it was sent before and only the reply is missing. `tally` makes it a refusal, to be recorded
    as such. Times are in µs.
    """

    scope: Scope
    operation: str
    admitted_at: int
    used: Amount
    since: int
    recorded_at: int | None
    record: Draft | None = None
    maybe_done: bool = False
    tally: Tally | None = None

    def settle(self, backend: LimitBackend) -> None:
        """Settle on the backend; raises what that raises."""
        if self.tally is not None and self.record is not None:
            backend.emit(self.scope.account_id, self.operation, self.record, tally=self.tally)
            return
        backend.settle(
            self.scope,
            self.operation,
            admitted_at=self.admitted_at,
            used=self.used,
            record=self.record,
            recorded_at=self.recorded_at,
        )

    def is_ambiguous(self, now: int) -> bool:
        """Tell whether Redis may have forgotten that it was settled already: again could charge twice."""
        return self.maybe_done and self.record is None and now - self.since >= REMEMBERED


class PendingSettlements:
    """A bounded queue of settlements, one for each operation, oldest first. Safe for threads."""

    def __init__(self, clock: Callable[[], int], capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._queue: OrderedDict[str, Pending] = OrderedDict()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, pending: Pending) -> None:
        """Keep a settlement; it replaces an earlier one of its operation, and may push out the oldest of all."""
        with self._lock:
            self._queue[pending.operation] = pending
            overflow = self._queue.popitem(last=False)[0] if len(self._queue) > self._capacity else None
            self.dropped += overflow is not None
        if overflow is not None:
            logger.error("limits: too many settlements wait for Redis, dropped that of %s", overflow)

    def flush(self, backend: LimitBackend) -> bool:
        """Make all settlements, oldest first; stop at the first that fails. Answer whether none is left."""
        while pending := self._oldest():
            if pending.is_ambiguous(self._clock()):
                self.dropped += 1
                logger.error("limits: dropped the settlement of %s, which may have been made before", pending.operation)
            else:
                try:
                    pending.settle(backend)
                except Exception:
                    logger.exception("limits: a settlement has to wait: %s", pending.operation)
                    return False
            self._remove(pending)
        return True

    def _oldest(self) -> Pending | None:
        with self._lock:
            return next(iter(self._queue.values()), None)

    def _remove(self, pending: Pending) -> None:
        with self._lock:
            if self._queue.get(pending.operation) is pending:
                del self._queue[pending.operation]
