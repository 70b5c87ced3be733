"""Records of the memory backend on their way to the database: none is lost because it can't be written just now."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from accounts.limits.journal import Journal
from accounts.limits.records import Record

logger = logging.getLogger(__name__)

CAPACITY = 20_000


class Outbox:
    """Writes records and closes their reservations in the journal, at once or, where that fails, again later.

    What waits is lost with the process, but its row in the journal is not: the next start charges the bound then. The
    same holds for what falls out because too much waits. Safe for threads; writing a record twice changes nothing.
    """

    def __init__(self, sink: Callable[[Record], None], journal: Journal, *, capacity: int = CAPACITY) -> None:
        self._sink = sink
        self._journal = journal
        self._capacity = capacity
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, record: Record) -> None:
        """Write a record, or keep it; never raises what the sink does."""
        if self._written(record):
            self._remove(record)
            return
        with self._lock:
            kept = self._waiting.get(record["id"])
            if kept is None or kept["revision"] <= record["revision"]:
                self._waiting[record["id"]] = record
            dropped = self._waiting.popitem(last=False)[0] if len(self._waiting) > self._capacity else None
        if dropped is not None:
            logger.error("limits: too many records wait for the database: that of %s is dropped", dropped)

    def flush(self) -> bool:
        """Write what waits, oldest first; stop at the first that fails. Answer whether nothing is left."""
        for record in list(self._waiting.values()):
            if not self._written(record):
                return False
            self._remove(record)
        return True

    def _written(self, record: Record) -> bool:
        try:
            self._sink(record)
            self._journal.closed(record["id"])
        except Exception:
            logger.exception("limits: the record of %s waits for the database", record["id"])
            return False
        return True

    def _remove(self, record: Record) -> None:
        """Take a record out, and what it replaces with it."""
        with self._lock:
            kept = self._waiting.get(record["id"])
            if kept is not None and kept["revision"] <= record["revision"]:
                del self._waiting[record["id"]]
