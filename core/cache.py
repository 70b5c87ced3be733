"""A cache of Django's in Redis, over the connection that all greenlets of a process share (core.redis.connection).

Django's own backend takes a connection from a pool for each command and checks it, which took a tenth of a model call's
CPU time. Failures are raised as RedisError, after the option `timeout` (seconds) at the latest; nothing is retried.
Values are texts and whole numbers; a text of digits comes back as a number.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from core.redis.client import redis_client
from core.redis.wire import DirectWire


@cache
def _wire(url: str, timeout: float) -> DirectWire:
    """Return the process's wire to a server. Django makes a cache for each thread or greenlet."""
    client: Any = redis_client(url, connect_timeout=timeout, read_timeout=timeout)
    return DirectWire(client.connection_pool)


class SharedRedisCache(BaseCache):
    """The cache backend. `timeout`: seconds for which a value is kept."""

    def __init__(self, url: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self.url = url
        self._wire = _wire(url, params["OPTIONS"]["timeout"])

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        """Return a value; `default` if there is none."""
        stored: bytes | None = self._wire.command("GET", self.make_key(key, version))
        if stored is None:
            return default
        return int(stored) if stored.isdigit() else stored.decode(errors="replace")

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store a value."""
        self._wire.command("SET", self.make_key(key, version), value, "EX", self._lifetime(timeout))

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store a value unless there is one; return whether it was stored."""
        lifetime = self._lifetime(timeout)
        return bool(self._wire.command("SET", self.make_key(key, version), value, "EX", lifetime, "NX"))

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Increment a number and return it; raises ValueError if there is none."""
        name = self.make_key(key, version)
        if not self._wire.command("EXISTS", name):
            raise ValueError(f"Key '{key}' not found")
        return int(self._wire.command("INCRBY", name, delta))

    def clear(self) -> None:
        """Drop everything in the server's database."""
        self._wire.command("FLUSHDB")

    def _lifetime(self, timeout: Any) -> Any:
        return self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
