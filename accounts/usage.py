"""What a key has left: every limit of key and account, how much of it is used, and when it is whole again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from accounts.limits import get_limits
from accounts.limits.contract import SECOND, LimitName, Scope, Status, SubjectUsage, Window
from accounts.limits.months import month_end, month_of
from accounts.refusals import dollars, epoch_seconds


def limit_states(scope: Scope) -> list[dict[str, Any]]:
    """List every limit of a scope's subjects: `{name, owner, limit, used, remaining, reset}`.

    `limit` and `remaining` are None where there is none; `used` is told all the same, where it is counted. Money is a
    text in US dollars, `reset` in seconds since the epoch (None for concurrency). Raises accounts.limits' Unavailable
    while nobody can tell.
    """
    limits = get_limits()
    statuses = limits.peek(scope)
    used = limits.usage(scope)
    ends = month_end(month_of(statuses.at))
    return [
        state
        for usage, status in zip(used, statuses.statuses, strict=True)
        for state in _subject_states(usage, status, ends)
    ]


def _subject_states(usage: SubjectUsage, status: Status, ends: int) -> list[dict[str, Any]]:
    limits, owner = usage.subject.limits, usage.subject.kind
    month_tokens = usage.settled.tokens + usage.reserved.tokens
    month_cost = usage.settled.cost + usage.reserved.cost
    return [
        _state(
            LimitName.REQUESTS_PER_MINUTE, owner, limits.requests_per_minute, usage.requests, _reset(status.requests)
        ),
        _state(LimitName.TOKENS_PER_MINUTE, owner, limits.tokens_per_minute, usage.tokens, _reset(status.tokens)),
        _state(LimitName.CONCURRENT_REQUESTS, owner, limits.concurrent_requests, usage.slots, None),
        _state(LimitName.MONTHLY_TOKENS, owner, limits.monthly_tokens, month_tokens, ends),
        _state(LimitName.MONTHLY_COST, owner, limits.monthly_cost, month_cost, ends),
    ]


def _state(name: LimitName, owner: str, limit: int | None, used: int | None, reset: int | None) -> dict[str, Any]:
    amount = dollars if name is LimitName.MONTHLY_COST else int
    return {
        "name": str(name),
        "owner": owner,
        "limit": None if limit is None else amount(limit),
        "used": None if used is None else amount(used),
        "remaining": None if limit is None or used is None else amount(max(0, limit - used)),
        "reset": None if reset is None else epoch_seconds(reset),
    }


def _reset(window: Window | None) -> int | None:
    return None if window is None else window.reset_at


def month_text(micros: int) -> str:
    """Name the calendar month (UTC) of a moment in µs, as in `2026-11`."""
    return datetime.fromtimestamp(micros // SECOND, tz=UTC).strftime("%Y-%m")
