"""Keeps the leases of this process's open calls alive, so that a slow call is not taken for a dead one.

One thread a process (a greenlet under gevent) renews every third of a lease what has been open for longer than that;
most calls end before and never cost a renewal.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

from accounts.limits import get_limits
from core.background import ProcessThread, outlived

RENEWALS_A_LEASE = 3

Owner = TypeVar("Owner", bound=Hashable)


class LeaseKeeper(Generic[Owner]):
    """The open operations of this process, by the time (monotonic seconds) at which each was opened.

    `renew` prolongs the leases of an owner's operations (an account's, by its id), and may raise what Redis raises.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, renew: Callable[[Owner, list[str]], object]
    ) -> None:
        self._clock = clock
        self._renew = renew
        self._open: dict[str, tuple[Owner, float]] = {}
        self._thread = ProcessThread(self._keep, name="lease-keeper")

    def hold(self, owner: Owner, operation: str) -> str:
        """Keep the lease of an operation alive until it is let go; answer the operation."""
        self._thread.start()
        self._open[operation] = (owner, self._clock())
        return operation

    def let_go(self, operation: str) -> None:
        """Renew the lease of an operation no more."""
        self._open.pop(operation, None)

    @contextmanager
    def held(self, owner: Owner, operation: str) -> Iterator[None]:
        """Keep the lease of an operation alive while the block runs."""
        self.hold(owner, operation)
        try:
            yield
        finally:
            self.let_go(operation)

    def renew_due(self, interval: float) -> int:
        """Renew what has been open for `interval` seconds or longer; answer how many operations that were."""
        due: dict[Owner, list[str]] = defaultdict(list)
        for operation, (owner, opened) in list(self._open.items()):
            if self._clock() - opened >= interval:
                due[owner].append(operation)
        for owner, operations in due.items():
            # A lease that runs out for want of a renewal becomes a charge, which the late settle corrects.
            outlived(partial(self._renew, owner, operations), event="leases_not_renewed")
        return sum(map(len, due.values()))

    def _keep(self) -> None:
        interval = get_limits().lease_seconds / RENEWALS_A_LEASE
        while True:
            time.sleep(interval)
            self.renew_due(interval)


def _renew(account_id: int, operations: list[str]) -> None:
    get_limits().renew(account_id, operations)


keeper: LeaseKeeper[int] = LeaseKeeper(renew=_renew)
