"""From what the limits answer to what the caller is told: the error of a refusal, the headers of an answer."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from accounts.exceptions import (
    ApiError,
    BoundExceedsLimit,
    BudgetExhausted,
    ConcurrencyLimited,
    LimitExceeded,
    RateLimited,
    TokensLimited,
)
from accounts.limits.contract import LEAVES, MINUTE, SECOND, Admission, LimitName, Refusal, Subject, Window

#: Windows of the limits by unit, in seconds. Tokens are counted by whole seconds, which leave one later: never early.
WINDOWS = {"requests": MINUTE // SECOND, "tokens": LEAVES}
NANO_DOLLARS = 1_000_000_000

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


def nano(amount: Decimal) -> int:
    """Return US dollars as whole nano-dollars."""
    return int((Decimal(amount) * NANO_DOLLARS).to_integral_value())


def dollars(nano: int) -> str:
    """Write nano-dollars as US dollars with nine decimals, without going through a float."""
    return f"{nano // NANO_DOLLARS}.{nano % NANO_DOLLARS:09d}"


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
