"""Present limits to callers: errors of refusals, rate headers, and how much of every limit is used."""

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
    LimitSet,
    Refusal,
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

#: Windows of the limits by unit, in seconds. Tokens are counted by whole seconds, and leave the window up to one later.
WINDOWS = {"requests": MINUTE // SECOND, "tokens": LEAVES}

_ERRORS: dict[LimitName, type[LimitExceeded]] = {
    LimitName.REQUESTS_PER_MINUTE: RateLimited,
    LimitName.TOKENS_PER_MINUTE: TokensLimited,
    LimitName.CONCURRENT_REQUESTS: ConcurrencyLimited,
    LimitName.MONTHLY_TOKENS: BudgetExhausted,
    LimitName.MONTHLY_COST: BudgetExhausted,
}


def refusal_error(refusal: Refusal) -> ApiError:
    """Return the error for a refusal: a 429, or a 400 if the bound could never fit."""
    extra = {"limit": describe_refusal(refusal)}
    error: ApiError
    if refusal.impossible:
        error = BoundExceedsLimit()
        error.extra.update(extra)
    elif refusal.limit is LimitName.REQUESTS_PER_MINUTE:
        error = RateLimited(retry_after=refusal.retry_after, extra=extra)
    else:
        error = _ERRORS[refusal.limit](retry_after=refusal.retry_after, extra=extra)
    if refusal.subject.maker:
        error.detail += f" This is a limit of {maker_text(refusal.subject.maker)}."
    error.refusal = refusal
    return error


def describe_refusal(refusal: Refusal) -> dict[str, Any]:
    """Return the limit's name, its owner, the used amount, the limit, and its reset (epoch seconds).

    Amounts of money are strings in US dollars with all their digits.
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
    """Return the owner of a limit: `key`, `maker`, `account`, or one of these with ` model` for a model budget.

    A model budget has the model's name under `model`, a maker its name under `maker`.
    """
    kind = subject.kind.replace("key", "maker") if subject.maker else subject.kind
    owner = {"owner": kind.replace("_", " ")}
    named = {"maker": subject.maker, "model": subject.model}
    return owner | {name: text for name, text in named.items() if text}


def maker_text(name: str) -> str:
    """Return a phrase for a key that created the calling key."""
    return f"the key {name} that made this one"


def epoch_seconds(micros: int) -> int:
    """Round microseconds up to whole seconds since the epoch."""
    return -(-micros // SECOND)


def rate_headers(admission: Admission) -> dict[str, str]:
    """Return the rate headers: X-RateLimit-* for the tightest request limit, and the IETF draft's for all limits.

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
    """Return OpenAI's x-ratelimit-{limit,remaining,reset}-{requests,tokens}; resets are durations such as `12s`."""
    headers: dict[str, str] = {}
    for unit in WINDOWS:
        tightest = _tightest(unit, admission)
        if tightest is not None:
            headers[f"x-ratelimit-limit-{unit}"] = str(tightest.limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(tightest.remaining)
            headers[f"x-ratelimit-reset-{unit}"] = f"{_seconds_left(tightest, unit, admission)}s"
    return headers


def _tightest(unit: str, admission: Admission) -> Window | None:
    """Return the window that refused the request, else the one with the least left; None if there is none."""
    windows: dict[Subject, Window] = {
        status.subject: window for status in admission.statuses if (window := getattr(status, unit)) is not None
    }
    refusal = admission.refusal
    if refusal is not None and refusal.limit == f"{unit}_per_minute" and refusal.subject in windows:
        return windows[refusal.subject]
    return min(windows.values(), key=lambda window: window.remaining, default=None)


def _draft_items(admission: Admission) -> tuple[list[str], list[str]]:
    """Return the items of RateLimit-Policy and RateLimit. Makers after the nearest are numbered from 2."""
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
    """Return the seconds until all of a window is available again, rounded up and at most its length."""
    return min(WINDOWS[unit], max(0, -((admission.at - window.reset_at) // SECOND)))


#: Sources of usage: the limits themselves, or (while Redis is away) the records in the database.
LIVE, RECORDS = "limits", "records"


@dataclass(frozen=True, slots=True)
class LimitUsage:
    """The usage of all limits of a scope, at a time (µs).

    Each state is `{name, owner, limit, used, remaining, reset}`, with `model` for a model budget and `maker` for a
    limit of a key that created the calling key; see describe_owner. Without a limit, `limit` and `remaining` are None;
    `used` is still given if it is counted. Money is a string in US dollars. `reset` is in epoch seconds, None for
    concurrency. With the source RECORDS, the monthly amounts lack open calls and records that are not ingested yet, and
    the use of rates and slots is unknown.
    """

    at: int
    source: str
    states: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Used:
    """What one subject has used; None for what is unknown or not counted."""

    month: Amount
    requests: int | None = None
    tokens: int | None = None
    slots: int | None = None
    requests_window: Window | None = None
    tokens_window: Window | None = None


def get_limit_usage(scope: LimitSet) -> LimitUsage:
    """Return the usage of every limit of a scope; raises database errors if Redis is away too."""
    try:
        return _from_limits(scope)
    except Unavailable:
        return _from_records(scope)


def _from_limits(scope: LimitSet) -> LimitUsage:
    limits = get_limits()
    admission = limits.peek(scope)
    states: list[dict[str, Any]] = []
    for usage, status in zip(limits.usage(scope), admission.statuses, strict=True):
        month = usage.settled + usage.reserved
        used = Used(month, usage.requests, usage.tokens, usage.slots, status.requests, status.tokens)
        states += subject_states(usage.subject, used, admission.at)
    return LimitUsage(admission.at, LIVE, states)


def _from_records(scope: LimitSet) -> LimitUsage:
    now = wall_clock()
    settled = settled_in_database(scope.subjects, month_of(now))
    states = [state for subject in scope.subjects for state in subject_states(subject, Used(settled[subject]), now)]
    return LimitUsage(now, RECORDS, states)


def subject_states(subject: Subject, used: Used, now: int) -> list[dict[str, Any]]:
    """List the five limits of one subject in the order in which they are checked; of a model budget, its two.

    For a maker, only the limits that it has: the rest of its usage does not concern the calling key.
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
    """Return the calendar month (UTC) of a time in µs, such as `2026-11`."""
    return datetime.fromtimestamp(micros // SECOND, tz=UTC).strftime("%Y-%m")
