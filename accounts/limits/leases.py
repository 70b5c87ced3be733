"""Keeps the leases of this process's open calls alive, so that a slow call is not taken for a dead one.

One thread a process (a greenlet under gevent) renews every third of a lease what has been open for longer than that;
most calls end before and never cost a renewal.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from accounts.limits import get_limits
from core.background import ProcessThread, outlived

RENEWALS_A_LEASE = 3


class LeaseKeeper:
    """The open operations of this process, by the time (monotonic seconds) at which each was opened.

    `renew` prolongs the leases of a shard's operations, and may raise what Redis raises.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, renew: Callable[[int, list[str]], object]
    ) -> None:
        self._clock = clock
        self._renew = renew
        self._open: dict[str, tuple[int, float]] = {}
        self._thread = ProcessThread(self._keep, name="lease-keeper")

    def hold(self, shard: int, operation: str) -> None:
        """Keep the lease of an operation alive until it is let go."""
        self._thread.start()
        self._open[operation] = (shard, self._clock())

    def let_go(self, operation: str) -> None:
        """Renew the lease of an operation no more."""
        self._open.pop(operation, None)

    @contextmanager
    def held(self, shard: int, operation: str) -> Iterator[None]:
        """Keep the lease of an operation alive while the block runs."""
        self.hold(shard, operation)
        try:
            yield
        finally:
            self.let_go(operation)

    def renew_due(self, interval: float) -> int:
        """Renew what has been open for `interval` seconds or longer; answer how many operations that were."""
        due: dict[int, list[str]] = defaultdict(list)
        for operation, (shard, opened) in list(self._open.items()):
            if self._clock() - opened >= interval:
                due[shard].append(operation)
        for shard, operations in due.items():
            # A lease that runs out for want of a renewal becomes a charge, which the late settle corrects.
            outlived(partial(self._renew, shard, operations), event="leases_not_renewed")
        return sum(map(len, due.values()))

    def _keep(self) -> None:
        interval = get_limits().lease_seconds / RENEWALS_A_LEASE
        while True:
            time.sleep(interval)
            self.renew_due(interval)


def _renew(shard: int, operations: list[str]) -> None:
    get_limits().renew(shard, operations)


keeper = LeaseKeeper(renew=_renew)
