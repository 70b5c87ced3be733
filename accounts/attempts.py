"""Failed attempts by address, and the cache that they are counted in (`attempts`).

Where it is away that costs one caller a second its time-out: django-ratelimit asks it twice for each bad key, so that
each would wait twice for a Redis that is paused. What can't be counted is let through: the key is wrong all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import structlog
from django.http import HttpRequest
from django_ratelimit.core import get_usage
from django_redis.cache import RedisCache
from redis.exceptions import RedisError

from accounts.addresses import rate_limit_group_key
from accounts.exceptions import TooManyFailures
from accounts.limits import state_store_is_away
from accounts.outage import Outage

log = structlog.get_logger(__name__)

#: By address of the cache. Django makes the caches anew in every thread.
outages: defaultdict[str, Outage] = defaultdict(Outage)


def count_attempt(request: HttpRequest, *, group: str, rate: str) -> None:
    """Count an attempt of a kind against its address; raises TooManyFailures for one above the rate.

    It tells when the address may try again: django-ratelimit counts in windows that begin anew for each, a second after
    `time_left` is 0.
    """
    usage = get_usage(request, group=group, key=rate_limit_group_key, rate=rate, increment=True)
    if usage is not None and usage["should_limit"]:
        raise TooManyFailures(retry_after=usage["time_left"] + 1)


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
        if state_store_is_away(beside=self._server) or not outage.may_ask():
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
