"""The cache of answers: what makes two requests the same, and what is kept.

The account comes first in every key, as an argument that can't be left out: no answer crosses from one to another.

Failure policy: a cache that is away costs time, never an answer. A call that fails (REDIS_TIMEOUT at the latest) is
logged, and the cache is left alone for PAUSE_SECONDS, so that a broken one slows one call a second and not all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.core.cache import caches
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError

from inference import prompts

PAUSE_SECONDS = 1.0
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A provider's whole, successful answer, with what it used then, and cost (nano-dollars; 0 where unknown)."""

    body: dict[str, Any]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    deployment: str
    cost: int = 0


def answer_key(
    account_id: int, *, endpoint: str, model: str, payload: Mapping[str, Any], generation: Sequence[str] = ()
) -> str:
    """Make the key of a request: SHA-256 of the canonical JSON of all that shapes its answer, the account first.

    `generation` are marks of account and model that change when their answers are cleared: what lies under the old
    ones is never asked for again.
    """
    parts = [account_id, generation, endpoint, model, prompts.VERSION, payload]
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class _Guard:
    """Carries the module's failure policy: one state a process, of when the cache may be asked again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.paused_until = float("-inf")

    def call(self, operation: Callable[[], T]) -> T | None:
        """Return what the operation returns; None while the cache is left alone or when it fails."""
        if self.clock() < self.paused_until:
            return None
        try:
            return operation()
        except (ConnectionInterrupted, RedisError, OSError) as error:
            self.paused_until = self.clock() + PAUSE_SECONDS
            log.warning("cache_failed", cause=type(error.__cause__ or error).__name__)
            return None


guard = _Guard()


def look_up(key: str) -> CachedAnswer | None:
    """Return the answer under a key; None if there is none, or the cache is away or holds something unreadable."""
    stored = guard.call(lambda: caches[settings.ANSWER_CACHE].get(key))
    if stored is None:
        return None
    try:
        return CachedAnswer(**json.loads(stored))
    except (TypeError, ValueError):
        log.warning("cache_entry_unreadable")
        return None


def store(key: str, answer: CachedAnswer) -> None:
    """Keep an answer for CACHE_TTL seconds."""
    fields = {name: getattr(answer, name) for name in CachedAnswer.__slots__}
    text = json.dumps(fields, separators=(",", ":"))
    guard.call(lambda: caches[settings.ANSWER_CACHE].set(key, text))
