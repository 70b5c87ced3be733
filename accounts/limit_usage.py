"""From what the limits answer to what the caller is told: the error of a refusal, the headers of an answer.

What a key has left: every limit of key and account, how much of it is used, and when it is whole again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from accounts.limits import get_limits, settled_in_database
from accounts.limits.local import wall_clock
from accounts.limits.types import (
    LEAVES,
    MINUTE,
    SECOND,
    Admission,
    Amount,
    LimitName,
    Refusal,
    Scope,
    Subject,
    Unavailable,
    Window,
)
from core.errors import (
    ApiError,
    BoundExceedsLimit,
    BudgetExhausted,
    ConcurrencyLimited,
    LimitExceeded,
    RateLimited,
    TokensLimited,
)
from core.money import dollars
from core.times import month_end, month_of

#: Windows of the limits by unit, in seconds. Tokens are counted by whole seconds, which leave one later: never early.
WINDOWS = {"requests": MINUTE // SECOND, "tokens": LEAVES}

_ERRORS: dict[LimitName, type[LimitExceeded]] = {
    LimitName.REQUESTS_PER_MINUTE: RateLimited,
    LimitName.TOKENS_PER_MINUTE: TokensLimited,
    LimitName.CONCURRENT_REQUESTS: ConcurrencyLimited,
    LimitName.MONTHLY_TOKENS: BudgetExhausted,
    LimitName.MONTHLY_COST: BudgetExhausted,
}


def refusal_error(refusal: Refusal) -> ApiError:
    """Make the 429 of a refusal, or the 400 of a bound that could never fit."""
    told = {"limit": describe_refusal(refusal)}
    error: ApiError
    if refusal.impossible:
        error = BoundExceedsLimit()
        error.extra.update(told)
    elif refusal.limit is LimitName.REQUESTS_PER_MINUTE:
        error = RateLimited(retry_after=refusal.retry_after, extra=told)
    else:
        error = _ERRORS[refusal.limit](retry_after=refusal.retry_after, extra=told)
    if refusal.subject.maker:
        error.detail += f" This is a limit of {maker_text(refusal.subject.maker)}."
    error.refusal = refusal
    return error


def describe_refusal(refusal: Refusal) -> dict[str, Any]:
    """Name the limit, whose it is, what is used of it, how much it is, and when (epoch seconds) it has room again.

    Amounts of money are in US dollars, as texts with all their digits.
    """
    amount = dollars if refusal.limit is LimitName.MONTHLY_COST else int
    return {
        "name": str(refusal.limit),
        **describe_owner(refusal.subject),
        "used": amount(refusal.used),
        "limit": amount(refusal.limit_value),
        "reset": epoch_seconds(refusal.reset_at),
    }


def describe_owner(subject: Subject) -> dict[str, str]:
    """Say whose a limit is: `key`, `maker`, `account`, or the use of one model by one of these.

    A model is named under `model`, a key that made the one that calls under `maker`.
    """
    kind = subject.kind.replace("key", "maker") if subject.maker else subject.kind
    owner = {"owner": kind.replace("_", " ")}
    named = {"maker": subject.maker, "model": subject.model}
    return owner | {name: text for name, text in named.items() if text}


def maker_text(name: str) -> str:
    """Name a key that made the one that calls."""
    return f"the key {name} that made this one"


def epoch_seconds(micros: int) -> int:
    """Round microseconds up to whole seconds since the epoch."""
    return -(-micros // SECOND)


def rate_headers(admission: Admission) -> dict[str, str]:
    """Make the rate headers of WIRE.md: X-RateLimit-* of the tightest request limit, and the IETF draft's of all.

    The draft is draft-ietf-httpapi-ratelimit-headers-10. A key without any limit gets none of them.
    """
    headers: dict[str, str] = {}
    tightest = _tightest("requests", admission)
    if tightest is not None:
        headers["X-RateLimit-Limit"] = str(tightest.limit)
        headers["X-RateLimit-Remaining"] = str(tightest.remaining)
        headers["X-RateLimit-Reset"] = str(epoch_seconds(tightest.reset_at))
    policies, states = _draft_items(admission)
    if policies:
        headers["RateLimit-Policy"], headers["RateLimit"] = ", ".join(policies), ", ".join(states)
    return headers


def openai_rate_headers(admission: Admission) -> dict[str, str]:
    """Make OpenAI's x-ratelimit-{limit,remaining,reset}-{requests,tokens}; resets are durations such as `12s`."""
    headers: dict[str, str] = {}
    for unit in WINDOWS:
        tightest = _tightest(unit, admission)
        if tightest is not None:
            headers[f"x-ratelimit-limit-{unit}"] = str(tightest.limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(tightest.remaining)
            headers[f"x-ratelimit-reset-{unit}"] = f"{_seconds_left(tightest, unit, admission)}s"
    return headers


def _tightest(unit: str, admission: Admission) -> Window | None:
    """Pick the window that refused the request, else the one with the least left; None where there is none."""
    windows: dict[Subject, Window] = {
        status.subject: window for status in admission.statuses if (window := getattr(status, unit)) is not None
    }
    refusal = admission.refusal
    if refusal is not None and refusal.limit == f"{unit}_per_minute" and refusal.subject in windows:
        return windows[refusal.subject]
    return min(windows.values(), key=lambda window: window.remaining, default=None)


def _draft_items(admission: Admission) -> tuple[list[str], list[str]]:
    """List policies and states. Of keys that made the one that calls, the further ones are numbered from 2."""
    policies, states, makers = [], [], 0
    for status in admission.statuses:
        owner = status.subject.kind
        if status.subject.maker:
            makers += 1
            owner = "maker" if makers == 1 else f"maker-{makers}"
        for unit, window, suffix, quota_unit in (
            ("requests", status.requests, "", ""),
            ("tokens", status.tokens, "-tokens", ';qu="tokens"'),
        ):
            if window is not None:
                name = f'"{owner}{suffix}"'
                policies.append(f"{name};q={window.limit}{quota_unit};w={WINDOWS[unit]}")
                states.append(f"{name};r={window.remaining};t={_seconds_left(window, unit, admission)}")
    return policies, states


def _seconds_left(window: Window, unit: str, admission: Admission) -> int:
    """Return the seconds until a window is whole again, rounded up: never more than it has."""
    return min(WINDOWS[unit], max(0, -((admission.at - window.reset_at) // SECOND)))


#: Who knows: the limits themselves, or (while their store is away) the records in the database.
LIVE, RECORDS = "limits", "records"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the limits of a scope stood at a moment (µs).

    Each state is `{name, owner, limit, used, remaining, reset}`, of a budget for one model `model` too, with the owner
    `key model` or `account model`, and of a key that made the one that asks its name as `maker`. `limit` and
    `remaining` are None where there is no limit; `used` is told all the same, where it is counted. Money is a text in
    US dollars, `reset` in seconds since the epoch (None for concurrency). With the source RECORDS the monthly amounts
    lack what is open or not ingested yet, and of rates and slots nobody can tell what is used.
    """

    at: int
    source: str
    states: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Used:
    """What one subject has used; None where nobody knows or counts."""

    month: Amount
    requests: int | None = None
    tokens: int | None = None
    slots: int | None = None
    requests_window: Window | None = None
    tokens_window: Window | None = None


def limits_standing(scope: Scope) -> Standing:
    """Tell where every limit of a scope's subjects stands; raises what the database raises, where it is needed."""
    try:
        return _from_limits(scope)
    except Unavailable:
        return _from_records(scope)


def _from_limits(scope: Scope) -> Standing:
    limits = get_limits()
    admission = limits.peek(scope)
    states: list[dict[str, Any]] = []
    for usage, status in zip(limits.usage(scope), admission.statuses, strict=True):
        month = usage.settled + usage.reserved
        used = Used(month, usage.requests, usage.tokens, usage.slots, status.requests, status.tokens)
        states += subject_states(usage.subject, used, admission.at)
    return Standing(admission.at, LIVE, states)


def _from_records(scope: Scope) -> Standing:
    now = wall_clock()
    settled = settled_in_database(scope.subjects, month_of(now))
    states = [state for subject in scope.subjects for state in subject_states(subject, Used(settled[subject]), now)]
    return Standing(now, RECORDS, states)


def subject_states(subject: Subject, used: Used, now: int) -> list[dict[str, Any]]:
    """List the five limits of one subject, in the order in which they are held; of a model's budgets the two.

    Of a key that made the one that asks, only those that it has: what else it uses is its own affair.
    """
    ends = month_end(month_of(now))
    rows = (
        (LimitName.REQUESTS_PER_MINUTE, used.requests, _reset(used.requests_window)),
        (LimitName.TOKENS_PER_MINUTE, used.tokens, _reset(used.tokens_window)),
        (LimitName.CONCURRENT_REQUESTS, used.slots, None),
        (LimitName.MONTHLY_TOKENS, used.month.tokens, ends),
        (LimitName.MONTHLY_COST, used.month.cost, ends),
    )
    return [
        _state(name, subject, amount, reset)
        for name, amount, reset in rows[-2 if subject.model else 0 :]
        if not subject.maker or getattr(subject.limits, name) is not None
    ]


def _state(name: LimitName, subject: Subject, used: int | None, reset: int | None) -> dict[str, Any]:
    amount = dollars if name is LimitName.MONTHLY_COST else int
    limit: int | None = getattr(subject.limits, name)
    return {
        "name": str(name),
        **describe_owner(subject),
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
