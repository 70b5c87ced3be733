"""The cache of answers: its keys, its entries and its failure policy.

The account is a required part of every key, so answers are never shared between accounts.

Failure policy: an unavailable cache costs time, never an answer. A call that fails (after REDIS_TIMEOUT at the latest)
is logged, and the cache is then left alone until a thread that probes it every PROBE_SECONDS gets an answer. A cache in
the state store is also skipped while that is unavailable. The cache's server decides which entries it evicts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from redis.exceptions import RedisError, ResponseError

from accounts.limits import state_store_is_away
from core.background import PeriodicThread, yield_to_others
from inference import prompts

PROBE_SECONDS = 1.0
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A provider's complete, successful answer, with its usage and its cost (nano-dollars; 0 if unknown)."""

    body: dict[str, Any]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
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
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    yield_to_others(len(canonical))
    return hashlib.sha256(canonical.encode()).hexdigest()


def answer_cache() -> BaseCache:
    """Return the cache of answers that the settings configure."""
    return caches[settings.ANSWER_CACHE]


class _Guard:
    """Implements the module's failure policy: one state a process, whether the cache may be asked."""

    def __init__(self) -> None:
        self.is_away = False
        self._prober = PeriodicThread(
            self._probe,
            has_work=lambda: self.is_away,
            seconds=lambda: PROBE_SECONDS,
            name="cache-probe",
            event="cache_not_probed",
        )

    def call(self, operation: Callable[[], T]) -> T | None:
        """Return the operation's result; None if it fails or the cache is left alone."""
        if self.is_away or state_store_is_away(beside=settings.CACHES[settings.ANSWER_CACHE].get("LOCATION", "")):
            return None
        try:
            return operation()
        except ResponseError as error:  # the server is up and refuses, for example out of memory
            log.warning("cache_refused", cause=type(error).__name__)
        except (RedisError, OSError) as error:
            log.warning("cache_failed", cause=type(error).__name__)
            self._leave_alone()
        return None

    def forget(self) -> None:
        """Forget that the cache was unavailable, so that calls ask it again."""
        self.is_away = False

    def _leave_alone(self) -> None:
        self.is_away = True
        self._prober.begin()

    def _probe(self) -> None:
        """Ask the cache, apart from any call, whether it is available again."""
        if self.is_away and _answers():
            self.is_away = False


def _answers() -> bool:
    try:
        answer_cache().get("probe")
    except ResponseError:
        return True
    except (RedisError, OSError):
        return False
    log.info("cache_is_back")
    return True


guard = _Guard()


def look_up(key: str) -> CachedAnswer | None:
    """Return the answer under a key; None if there is none, the cache is unavailable, or the entry is unreadable."""
    try:
        stored = guard.call(lambda: answer_cache().get(key))
        return None if stored is None else CachedAnswer(**json.loads(stored))
    except (TypeError, ValueError):
        log.warning("cache_entry_unreadable")
        return None


def store(key: str, answer: CachedAnswer) -> None:
    """Store an answer for CACHE_TTL seconds, unless it is longer than CACHE_ANSWER_BYTES."""
    fields = {name: getattr(answer, name) for name in CachedAnswer.__slots__}
    text = json.dumps(fields, separators=(",", ":"))
    if len(text) <= settings.CACHE_ANSWER_BYTES:
        guard.call(lambda: answer_cache().set(key, text))
