"""Keeps the leases of this process's open calls alive, so that a slow call is not taken for a dead one.

One thread a process (a greenlet under gevent) renews every third of a lease what has been open for longer than that;
most calls end before and never cost a renewal. The same thread tends the limits: in the embedded mode nobody else
charges what died, or writes the records that had to wait for the database. With Redis the ingester does that.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from django.db import close_old_connections
from redis.exceptions import RedisError

from accounts.limits import get_limits
from accounts.limits.contract import Unavailable

RENEWALS_A_LEASE = 3

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """The open operations of this process, by the time (monotonic seconds) at which each was opened."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._pid = 0

    @contextmanager
    def held(self, account_id: int, operation: str) -> Iterator[None]:
        """Keep the lease of an operation alive while the block runs."""
        self._start()
        self._open[operation] = (account_id, self._clock())
        try:
            yield
        finally:
            self._open.pop(operation, None)

    def renew_due(self, interval: float) -> int:
        """Renew what has been open for `interval` seconds or longer; answer how many operations that were."""
        due: dict[int, list[str]] = defaultdict(list)
        for operation, (account_id, opened) in list(self._open.items()):
            if self._clock() - opened >= interval:
                due[account_id].append(operation)
        for account_id, operations in due.items():
            try:
                get_limits().renew(account_id, operations)
            except (Unavailable, RedisError) as error:
                # A lease that runs out for want of a renewal becomes a charge, which the late settle corrects.
                log.warning("leases_not_renewed", operations=len(operations), cause=type(error).__name__)
        return sum(map(len, due.values()))

    def _start(self) -> None:
        """Start the renewing thread once a process: a fork takes no threads along."""
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                atexit.register(_tend)  # a process that ends in good order writes what waits
                threading.Thread(target=self._keep, name="lease-keeper", daemon=True).start()

    def _keep(self) -> None:
        interval = get_limits().lease_seconds / RENEWALS_A_LEASE
        while True:
            time.sleep(interval)
            self.renew_due(interval)
            _tend()


def _tend() -> None:
    get_limits().tend()
    close_old_connections()


keeper = LeaseKeeper()
