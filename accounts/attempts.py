"""The cache that failed attempts are counted in (`attempts`): one that is away costs one caller a second its time-out.

django-ratelimit asks it twice for each bad key; without this, each of them would wait twice for a Redis that is paused.
What can't be counted is let through: the key is wrong all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import structlog
from django_redis.cache import RedisCache
from redis.exceptions import RedisError

from accounts.outage import Outage

log = structlog.get_logger(__name__)

#: By address of the cache. Django makes the caches anew in every thread.
outages: defaultdict[str, Outage] = defaultdict(Outage)


class AttemptsCache(RedisCache):  # type: ignore[misc]  # django-redis is not typed
    """Redis as a counter that answers None at once where it was away a moment ago."""

    def add(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a counter."""
        return self._ask(lambda: super(AttemptsCache, self).add(*args, **kwargs))

    def incr(self, *args: Any, **kwargs: Any) -> Any:
        """Count; raises ValueError where there is no counter."""
        return self._ask(lambda: super(AttemptsCache, self).incr(*args, **kwargs))

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Read a counter."""
        return self._ask(lambda: super(AttemptsCache, self).get(*args, **kwargs))

    def _ask(self, method: Callable[[], Any]) -> Any:
        outage = outages[self._server]
        if not outage.may_ask():
            return None
        try:
            answer = method()
        except (RedisError, OSError) as error:
            outage.failed()
            log.warning("attempts_not_counted", cause=type(error).__name__)
            return None
        except ValueError:
            outage.over()
            raise
        outage.over()
        return answer
