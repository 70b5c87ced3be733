"""Requests of a make-believe platform, as many days of them as are wanted, for looking at pages that show figures.

As a program, on the platform that the environment names: `python -m tests.demo DAYS A_DAY`.
"""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from accounts.limits.records import UsageRecord

ACCOUNTS = {
    "demo-acme": ("web", "nightly-batch"),
    "demo-globex": ("app",),
    "demo-initech": ("reports", "intern"),
    "demo-umbrella": ("lab",),
}
MODELS = {"gpt-4o": 6, "gpt-4o-mini": 2, "gpt-3.5-turbo": 1, "llama-3-70b": 1, "mistral-large": 2, "o3": 9, "haiku": 1}
ENDPOINTS = ("chat", "summarize", "v1/chat/completions")
BATCH = 500
#: Of a day, when nothing is asked: pages show it as a gap. In the last hour something is, at whatever time of the day.
NIGHT, LATELY = range(2, 4), timedelta(hours=1)


def records(keys: list[Any], *, days: float, a_day: int, seed: int = 1) -> Iterator[UsageRecord]:
    """Make records of keys, the last of them just now; busier by day, with an hour of outage a day ago."""
    chance = random.Random(seed)
    now = datetime.now(UTC)
    for number in range(int(days * a_day)):
        moment = now - timedelta(days=days) * (1 - (number + chance.random()) / (days * a_day))
        is_night = moment.hour in NIGHT and now - moment > LATELY
        is_out = timedelta(hours=20) < now - moment < timedelta(hours=21)
        is_quiet = is_night or chance.random() > (0.5 + (moment.hour in range(8, 19)) / 2)
        if days > 1 and is_quiet and not is_out:  # the outage is seen at whatever time of the day
            continue
        yield _record(chance, chance.choices(keys, range(len(keys), 0, -1))[0], moment, is_out=is_out)


def _record(chance: random.Random, key: Any, moment: datetime, *, is_out: bool) -> UsageRecord:
    model = chance.choices(list(MODELS), (5, 9, 6, 3, 2, 1, 2))[0]
    micros = int(moment.timestamp() * 1_000_000)
    is_stream = chance.random() < 0.4
    latency = chance.lognormvariate(6.8, 0.6) * (3 if is_out else 1)
    return UsageRecord(
        id=uuid.UUID(int=(micros // 1000 << 80) | 0x7 << 76 | 0x2 << 62 | chance.getrandbits(60)).hex,
        revision=1,
        label=f"demo-{micros}",
        admitted_at=micros,
        account_id=key.account_id,
        account_name=key.account.name,
        key_id=key.pk,
        key_name=key.name,
        endpoint=chance.choices(ENDPOINTS, (5, 1, 4))[0],
        model=model,
        deployment=f"openai/{model}",
        **_outcome(chance, model, is_out=is_out),
        latency_ms=latency,
        first_token_ms=latency / chance.uniform(3, 6) if is_stream else None,
    )


def _outcome(chance: random.Random, model: str, *, is_out: bool) -> dict[str, Any]:
    """Draw how it ended: mostly well, some from the cache; refused, or failed, above all during an outage."""
    drawn = chance.random()
    if drawn < (0.9 if is_out else 0.01):
        return {"status": 502, "error_code": "upstream_failed", "attempts": 3}
    if drawn > 0.97:
        return {"status": 429, "error_code": "rate_limited", "count": chance.randint(1, 5)}
    if drawn > 0.95:
        return {"status": 400, "error_code": "invalid_request"}
    tokens = {"input_tokens": int(chance.lognormvariate(6, 1)), "output_tokens": int(chance.lognormvariate(5, 0.8))}
    cost = (tokens["input_tokens"] + 4 * tokens["output_tokens"]) * 500 * MODELS[model]
    if drawn > 0.7:
        return {"status": 200, "cache": "hit", "usage_source": "cache", "saved_cost": cost}
    return {"status": 200, "cache": "miss", "usage_source": "provider", "attempts": 1, "cost": cost, **tokens}


def fill(days: float, a_day: int) -> int:
    """Write accounts, keys and such records; say how many."""
    from accounts.tests.factories import make_account, make_key, make_tier
    from monitoring.recorder import write_records

    tier = make_tier("demo", requests_per_minute=600)
    keys = []
    for name, key_names in ACCOUNTS.items():
        account = make_account(name, monthly_token_budget=10_000_000)
        keys += [make_key(account=account, tier=tier, name=each).key for each in key_names]
    written, batch = 0, list[UsageRecord]()
    for record in records(keys, days=days, a_day=a_day):
        batch.append(record)
        if len(batch) == BATCH:
            written += write_records(batch)
            batch = []
    return written + write_records(batch)


if __name__ == "__main__":
    import os

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiapi.settings")
    django.setup()
    sys.stdout.write(f"{fill(float(sys.argv[1]), int(sys.argv[2]))} records\n")
