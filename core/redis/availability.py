"""Whether a store is available, and how a call to it fails while it is not: one policy for all that use it.

- A call that fails is followed by a separate probe. If the probe fails, the breaker opens and no further call waits for
  the store. If it succeeds, the store is slow but not away: the call is made again (all are idempotent), and once more
  after a further probe.
- While the breaker is open, one thread probes each second and closes it; calls never pay for that.

What a caller does without the store is its own matter: see accounts.limits.backend for the limits, inference.cache for
cached answers.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from core.background import PeriodicThread, Start

PROBE_INTERVAL = 1.0  # seconds between probes while the store is down
ATTEMPTS = 3  # for one call, as long as the store answers the probes between them

log = structlog.get_logger(__name__)

T = TypeVar("T")


class StoreAway(RedisConnectionError):
    """The store is down. `sent` means that the call may have reached it."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the store is down")
        self.sent = sent


class Availability:
    """The availability of a store, as this process knows it.

    `probe` raises RedisError unless the store answers at once; `name` is for the log; `clock` returns monotonic
    seconds; `start` runs the probing thread.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        *,
        name: str = "state",
        clock: Callable[[], float] = time.monotonic,
        start: Start | None = None,
    ) -> None:
        self._probe = probe
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._answered_at = float("-inf")
        self._prober = PeriodicThread(
            self.try_close,
            has_work=lambda: self.is_away,
            seconds=lambda: PROBE_INTERVAL,
            name="store-prober",
            event="store_not_probed",
            start=start,
        )
        self.is_away = False

    def ask(self, call: Callable[..., T], *arguments: Any, attempts: int = ATTEMPTS) -> T:
        """Make an idempotent call. Raises StoreAway, or what the call raises although the store is there."""
        if self.is_away:
            self._prober.begin()  # it runs already, unless its start failed or it was killed
            raise StoreAway(sent=False)
        while True:
            try:
                return call(*arguments)
            except (RedisConnectionError, RedisTimeoutError):
                self._suspect()
                attempts -= 1
                if not attempts:
                    raise

    def try_close(self) -> bool:
        """Probe the store if it is down, and return whether it is there."""
        if self.is_away and self._answers():
            self.is_away = False
            log.warning("store_is_back", store=self._name)
        return not self.is_away

    def end(self) -> None:
        """Stop the probing thread of a store that is used no longer."""
        self._prober.end()

    def _suspect(self) -> None:
        """Probe the store after a failed call; raise StoreAway if the probe fails.

        If many calls fail at the same time, one of them probes and the others wait for its result.
        """
        failed_at = self._clock()
        with self._lock:
            if not self.is_away and self._answered_at < failed_at and not self._answers():
                self.is_away = True
                self._prober.begin()
                log.error("store_is_away", store=self._name)
        if self.is_away:
            raise StoreAway(sent=True) from None

    def _answers(self) -> bool:
        try:
            self._probe()
        except (RedisError, OSError) as error:
            log.info("store_probe_failed", store=self._name, cause=type(error).__name__)
            return False
        self._answered_at = self._clock()
        return True
