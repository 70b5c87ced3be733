"""The cache of answers: its keys, its entries and its failure policy.

The account is a required part of every key, so answers are never shared between accounts.

Failure policy: an unavailable cache costs time, never an answer. A call that fails (after REDIS_TIMEOUT at the latest)
is logged; while the server is known to be down (core.redis.availability), no call waits for it. The cache's server
decides which entries it evicts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from redis.exceptions import RedisError, ResponseError

from core.background import yield_to_others
from core.json import to_json
from core.redis.availability import StoreAway
from inference import prompts

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A provider's complete, successful answer, with its tokens and its cost (nano-dollars; 0 if unknown)."""

    body: dict[str, Any]
    tokens: int
    deployment: str
    cost: int = 0


def answer_key(
    account_id: int, *, endpoint: str, model: str, payload: Mapping[str, Any], generation: Sequence[str] = ()
) -> str:
    """Return the key of a request: the SHA-256 of the canonical JSON of the account and all that shapes the answer.

    `generation` holds marks of the account and the model that change when their answers are cleared, so that older
    entries are never read again.
    """
    parts = [account_id, generation, endpoint, model, prompts.VERSION, payload]
    canonical = to_json(parts, sort_keys=True)
    yield_to_others(len(canonical))
    return hashlib.sha256(canonical).hexdigest()


class SharedCache:
    """The cache of answers that the settings configure, one for all threads and greenlets of the process.

    Django makes one for each: with its client, for each connection of a caller.
    """

    def __init__(self) -> None:
        self._made: tuple[object, BaseCache] | None = None  # with the settings that it was made by

    def get(self) -> BaseCache:
        """Return the cache."""
        if self._made is None or self._made[0] is not caches.settings:
            self._made = caches.settings, caches.create_connection(settings.ANSWER_CACHE)
        return self._made[1]


answer_cache = SharedCache()


def _asked(operation: Callable[[], T]) -> T | None:
    """Return the operation's result; None if the cache refuses it, or is down."""
    try:
        return operation()
    except ResponseError as error:  # the server is up and refuses, for example out of memory
        log.warning("cache_refused", cause=type(error).__name__)
    except (RedisError, OSError) as error:
        if not isinstance(error, StoreAway) or error.sent:
            log.warning("cache_failed", cause=type(error).__name__)
    return None


def look_up(key: str) -> CachedAnswer | None:
    """Return the answer under a key; None if there is none, the cache is unavailable, or the entry is unreadable."""
    try:
        stored = _asked(lambda: answer_cache.get().get(key))
        return None if stored is None else CachedAnswer(**stored)
    except (TypeError, ValueError):
        log.warning("cache_entry_unreadable")
        return None


def store(key: str, answer: CachedAnswer) -> None:
    """Store an answer for CACHE_TTL seconds, unless it is longer than CACHE_ANSWER_BYTES."""
    fields = {name: getattr(answer, name) for name in CachedAnswer.__slots__}
    if len(to_json(fields)) <= settings.CACHE_ANSWER_BYTES:
        _asked(lambda: answer_cache.get().set(key, fields))
