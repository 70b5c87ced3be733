"""The caches that hold answers, in the process or in Redis: both keep within CACHE_BYTES, whoever fills them.

A Redis that evicts by itself (`maxmemory-policy allkeys-*`) is bounded by its own `maxmemory` instead. Any other is
filled to half of its memory at most, all that it holds counted: the limits may need the rest.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django_redis.cache import RedisCache
from redis.exceptions import NoScriptError

from accounts.limits.scripts import script

#: Bytes that an answer takes beside itself, roughly; keep_answer.lua has the same.
OVERHEAD = 400
#: The share of maxmemory that may be in use for an answer to be cached.
CACHED_SHARE = 0.5
_KEEP = script(Path(__file__).with_name("keep_answer.lua").read_bytes())


class AnswerCache(Protocol):
    """What of Django's cache interface the pipeline needs, and one method more."""

    def get(self, key: str) -> Any:
        """Return what stands under a key, or None."""

    def keep(self, account_id: int, key: str, value: str) -> bool:
        """Keep an account's answer for the cache's time; answer whether there is room for it."""


def answer_cache() -> AnswerCache:
    """Give the cache of answers that the settings make."""
    return cast("AnswerCache", caches[settings.ANSWER_CACHE])


@dataclass(slots=True)
class _Shelf:
    """Values with their end (by time.time) and bytes, those that were not asked for the longest first."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    held: OrderedDict[str, tuple[Any, float, int]] = field(default_factory=OrderedDict)
    taken: int = 0

    def drop(self, key: str) -> bool:
        """Take a value away, if it is there."""
        _, _, size = self.held.pop(key, (None, 0.0, 0))
        self.taken -= size
        return size > 0


class ProcessAnswers(BaseCache):
    """Answers in this process: those that were not asked for the longest make room for new ones."""

    #: By location: Django makes the cache anew in every thread.
    _shelves: defaultdict[str, _Shelf] = defaultdict(_Shelf)

    def __init__(self, name: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._shelf = self._shelves[name]

    def keep(self, account_id: int, key: str, value: str) -> bool:
        """Keep an account's answer for the cache's time; answer whether there is room for it."""
        return self._put(self.make_key(key), value, self.get_backend_timeout())

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Return what stands under a key."""
        name, shelf = self.make_key(key, version), self._shelf
        with shelf.lock:
            value, ends, _ = shelf.held.get(name, (default, 0.0, 0))
            if ends <= time.time():
                shelf.drop(name)
                return default
            shelf.held.move_to_end(name)
            return value

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Put a text or bytes under a key."""
        self._put(self.make_key(key, version), value, self.get_backend_timeout(timeout))

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Forget one."""
        with self._shelf.lock:
            return self._shelf.drop(self.make_key(key, version))

    def clear(self) -> None:
        """Forget all."""
        with self._shelf.lock:
            self._shelf.held.clear()
            self._shelf.taken = 0

    def _put(self, name: str, value: str | bytes, ends: float | None) -> bool:
        shelf, size = self._shelf, len(value) + OVERHEAD
        with shelf.lock:
            shelf.drop(name)
            if size > settings.CACHE_BYTES:
                return False
            while shelf.taken + size > settings.CACHE_BYTES:
                shelf.drop(next(iter(shelf.held)))
            shelf.held[name] = (value, float("inf") if ends is None else ends, size)
            shelf.taken += size
            return True


class RedisAnswers(RedisCache):  # type: ignore[misc]  # django-redis is not typed
    """Answers in Redis, counted there by account: who has most makes room for the others."""

    def keep(self, account_id: int, key: str, value: str) -> bool:
        """Keep an account's answer for the cache's time; answer whether there is room for it. Raises RedisError."""
        encoded = self.client.encode(value)
        beside = (f"{self.key_prefix}:{name}" for name in ("accounts", "due", "bytes", "of:"))
        names = [str(self.client.make_key(key)), *beside]
        lifetime = int(self.default_timeout * 1000)
        told = (*names, encoded, lifetime, account_id, settings.CACHE_BYTES, CACHED_SHARE)
        redis = self.client.get_client(write=True)
        try:
            kept = redis.evalsha(_KEEP.sha, len(names), *told)
        except NoScriptError:
            kept = redis.eval(_KEEP.source, len(names), *told)
        return bool(kept)
