"""The breaker for Redis. It opens only if a separate probe fails too, never because of a slow call alone."""

import logging
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

logger = logging.getLogger(__name__)


class Breaker:
    """Closed while Redis is available, otherwise open.

    `probe` raises RedisError unless Redis answers at once; `clock` returns monotonic seconds.
    """

    def __init__(self, probe: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._lock = threading.Lock()
        self._answered_at = float("-inf")
        self.is_open = False

    def suspect(self) -> bool:
        """Probe Redis after a failed call, open if the probe fails, and return whether the breaker is open.

        If many calls fail at the same time, one of them probes and the others wait for its result.
        """
        failed_at = self._clock()
        with self._lock:
            if not self.is_open and self._answered_at < failed_at and not self._answers():
                self.is_open = True
                logger.error("limits: Redis is away, rates go on per process and budgets are refused")
            return self.is_open

    def try_close(self) -> bool:
        """Probe Redis if the breaker is open, close it if the probe succeeds, and return whether it is closed."""
        if self.is_open and self._answers():
            self.is_open = False
            logger.warning("limits: Redis is back")
        return not self.is_open

    def _answers(self) -> bool:
        try:
            self._probe()
        except (RedisError, OSError) as error:
            logger.info("limits: the probe of Redis failed: %s", error)
            return False
        self._answered_at = self._clock()
        return True
