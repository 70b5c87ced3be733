"""The memory backend's book of operations: admitted, open with a lease, and closed ones for as long as they matter."""

import heapq
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from accounts.limits.bounds import Amount
from accounts.limits.contract import MINUTE, SECOND, Draft

MARK_TTL = 2 * MINUTE  # in one process no reply is lost for longer than a call takes
REFUSED_TTL = 10 * SECOND  # of a refusal that may be one of very many
CHARGED_TTL = 24 * 60 * MINUTE


@dataclass(slots=True)
class Operation:
    """One operation: `open`, or `bound` (its lease ran out and was charged), or `settled`.

    `held` is what it holds while it is open, and what it was charged afterwards.
    """

    shard: int
    account_id: int
    state: str = "open"
    held: Amount = field(default_factory=Amount)
    overrun: bool = False
    subjects: tuple[str, ...] = ()
    month: int = 0
    attempt: int = 0
    granted: int = 0
    output: int = 0
    lease_until: int = 0
    charged_second: int = 0
    draft: Draft | None = None
    forget_at: int = 0


class OperationBook:
    """All operations of a process. Not locked: the backend's lock is around every use."""

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}
        self._admitted: OrderedDict[str, int] = OrderedDict()
        self._leases: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
        self._closed: dict[int, deque[tuple[int, str]]] = {ttl: deque() for ttl in (REFUSED_TTL, MARK_TTL, CHARGED_TTL)}

    def admitted_at(self, operation: str) -> int | None:
        """Give the time at which an operation was admitted, None if it was not (or too long ago)."""
        return self._admitted.get(operation)

    def mark_admitted(self, operation: str, now: int) -> None:
        """Remember that an operation was admitted."""
        self._admitted[operation] = now

    def get(self, operation: str) -> Operation | None:
        """Give an operation that has reserved or settled, None if it is unknown."""
        return self._operations.get(operation)

    def lease(self, operation: str, held: Operation, until: int) -> None:
        """Enter an open operation, or prolong its lease."""
        self._operations[operation] = held
        held.lease_until = until
        heapq.heappush(self._leases[held.shard], (until, operation))

    def expired(self, shard: int, now: int, at_most: int) -> Iterator[tuple[str, Operation]]:
        """Take out the open operations whose lease has run out, the longest expired first."""
        leases = self._leases[shard]
        while leases and leases[0][0] <= now and at_most > 0:
            until, operation = heapq.heappop(leases)
            held = self._operations.get(operation)
            if held is not None and held.state == "open" and held.lease_until == until:
                at_most -= 1
                yield operation, held
            # else it was settled, or renewed: its newer lease has an entry of its own

    def close(self, operation: str, held: Operation, *, state: str, now: int, ttl: int) -> None:
        """Enter a closed operation, to be remembered for so long (one of the TTLs above)."""
        self._operations[operation] = held
        held.state, held.draft, held.forget_at = state, None, now + ttl
        self._closed[ttl].append((held.forget_at, operation))

    def forget(self, now: int) -> None:
        """Drop what is too old to matter: each thing once, so a few steps a call."""
        while self._admitted and next(iter(self._admitted.values())) + MARK_TTL <= now:
            self._admitted.popitem(last=False)
        for closed in self._closed.values():
            while closed and closed[0][0] <= now:
                forget_at, operation = closed.popleft()
                held = self._operations.get(operation)
                if held is not None and held.forget_at == forget_at:
                    del self._operations[operation]
