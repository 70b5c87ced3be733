"""redis-py's client for django-redis, over the connection that a process's greenlets share (core.redis.connection).

redis-py takes a connection from its pool for each command and checks it, which took a tenth of a model call's CPU time.
"""

from functools import cache
from typing import Any

import redis

from core.redis.wire import DirectWire


@cache
def _wire(pool: redis.ConnectionPool) -> DirectWire:
    """Return the process's wire to a server; django-redis has one pool for it, and a client for each thread."""
    return DirectWire(pool)


class SharedRedis(redis.Redis):
    """The client. Failures are raised as RedisError, and nothing is retried."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command and return its reply as redis-py does."""
        reply = _wire(self.connection_pool).command(*args)
        callback: Any = self.response_callbacks.get(args[0])  # type: ignore[no-untyped-call]
        return reply if callback is None else callback(reply, **options)
