"""Usage records as the pipeline makes them, for tests that need some without a model call."""

from __future__ import annotations

import itertools
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone

from accounts.key_cache import build_authenticated_key
from accounts.limits.backend import LimitBackend
from accounts.limits.records import UsageRecord
from accounts.limits.types import Amount, Bound, LimitSet, Reserved
from accounts.tests.factories import IssuedKey
from monitoring.recorder import write_record

_numbers = itertools.count()


def now_micros() -> int:
    """Return the time in µs since the epoch."""
    return time.time_ns() // 1000


def micros(at: datetime) -> int:
    """Return a datetime as records have it: µs since the epoch."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def micros_at(month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    """Return a time of 2026 (UTC) as records have it."""
    return micros(datetime(2026, month, day, hour, minute, tzinfo=UTC))


def an_operation() -> str:
    """Make the id of a request, later than those before it also within a millisecond."""
    return uuid.UUID(int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | 2 << 62 | next(_numbers)).hex


def a_draft(issued: IssuedKey, **changes: Any) -> UsageRecord:
    """Make what the pipeline knows of a call to the model that went well."""
    key = issued.key
    fields: dict[str, Any] = {
        "label": "label-1",
        "admitted_at": now_micros(),
        "account_id": key.account_id,
        "account_name": key.account.name,
        "key_id": key.pk,
        "key_name": key.name,
        "endpoint": "chat",
        "model": "gpt-3.5-turbo",
        "deployment": "openai/gpt-3.5-turbo",
        "status": 200,
        "cache": "miss",
        "usage_source": "provider",
        "input_tokens": 20,
        "output_tokens": 10,
        "cost": 25_000,
        "latency_ms": 12.5,
        "attempts": 1,
    }
    return UsageRecord(**{**fields, **changes})


def a_record(issued: IssuedKey, **changes: Any) -> UsageRecord:
    """Make a complete record, as the limits emit it."""
    return a_draft(issued, **{"id": an_operation(), **changes})


def recorded(issued: IssuedKey, **changes: Any) -> UsageRecord:
    """Write a record to the database and return it."""
    record = a_record(issued, **changes)
    write_record(record)
    return record


def scope_of(issued: IssuedKey) -> LimitSet:
    """Return the subjects that a call of a key counts against."""
    return build_authenticated_key(issued.key, timezone.now()).limits


def open_call(limits: LimitBackend, issued: IssuedKey, *, tokens: int = 100) -> str:
    """Reserve for a call of a key and return its operation: as a process does that dies before it settles."""
    operation, draft = an_operation(), a_draft(issued, status=500, error_code="interrupted", usage_source="")
    bound = Bound(prompt=Amount(40, 40), output_tokens=tokens - 40, output_price=1_000_000)
    answer = limits.reserve(scope_of(issued), operation, admitted_at=draft.admitted_at, bound=bound, draft=draft)
    assert isinstance(answer, Reserved)
    return operation
