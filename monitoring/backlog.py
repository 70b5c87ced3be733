"""How much waits for the ingester, as the streams of the limit store tell."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings

from accounts.limits.contract import SHARDS
from accounts.limits.redis import records_stream, redis_client

#: The one client of the process for this; its pool knows of forks.
_client = lru_cache(maxsize=1)(redis_client)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many records wait, and for how many seconds the oldest of them has; 0 and 0 when none does."""

    records: int = 0
    seconds: float = 0.0


def ingest_backlog() -> Backlog:
    """Ask all streams in one round trip; raises redis.RedisError when the store is away."""
    pipeline = _client(settings.REDIS_URL).pipeline(transaction=False)
    for shard in range(SHARDS):
        pipeline.xlen(records_stream(shard))
        pipeline.xrange(records_stream(shard), count=1)
    answers = pipeline.execute()
    oldest = [int(entries[0][0].split(b"-")[0]) for entries in answers[1::2] if entries]
    seconds = max(0.0, time.time() - min(oldest) / 1000) if oldest else 0.0
    return Backlog(sum(answers[::2]), seconds)
