"""Present limits to callers: errors of refusals, rate headers, and how much of every limit is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from accounts.limits import get_limits, settled_in_database
from accounts.limits.local import wall_clock
from accounts.limits.types import (
    LIMITS,
    MINUTE,
    SECOND,
    TOKEN_WINDOW_SECONDS,
    Admission,
    Amount,
    LimitName,
    LimitSet,
    LimitsUnavailable,
    Refusal,
    Status,
    Subject,
    SubjectUsage,
    Window,
)
from core.errors import ApiError, BoundExceedsLimit
from core.formats import exact_money, money, utc_text
from core.money import dollars
from core.times import month_end, month_of

#: Windows of the limits by unit, in seconds. Tokens are counted by whole seconds, and leave the window up to one later.
WINDOWS = {"requests": MINUTE // SECOND, "tokens": TOKEN_WINDOW_SECONDS}


def refusal_error(refusal: Refusal, needed: Amount | None = None) -> ApiError:
    """Return the error for a refusal: a 429, or a 400 if the bound could never fit.

    `needed` is the most that the refused call may use; of a budget, the error says it.
    """
    blocking = LimitUsage(refusal.limit, refusal.subject, refusal.limit_value, refusal.used, refusal.reset_at)
    extra = {"limit": {name: value for name, value in blocking.as_json().items() if name != "remaining"}}
    error: ApiError
    if refusal.impossible:
        error = BoundExceedsLimit()
        error.extra.update(extra)
    else:
        error = LIMITS[refusal.limit].error(retry_after=refusal.retry_after, extra=extra)
        if needed is not None and LIMITS[refusal.limit].is_budget and blocking.remaining:
            most = needed.cost if blocking.is_money else needed.tokens
            extra["limit"]["needed"] = blocking.amount(most)
            write = money if blocking.is_money else "{:,} tokens".format
            error.detail = (
                f"What is left of the monthly budget, {write(blocking.remaining)}, does not cover this call, "
                f"which may use up to {write(most)}. Ask for fewer tokens, or wait until the month ends (UTC)."
            )
    if refusal.subject.maker:
        error.detail += f" This is a limit of {blocking.holder}."
    error.refusal = refusal
    return error


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


def anthropic_rate_headers(admission: Admission) -> dict[str, str]:
    """Return Anthropic's anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}; resets are times (RFC 3339)."""
    headers: dict[str, str] = {}
    for unit in WINDOWS:
        tightest = _tightest(unit, admission)
        if tightest is not None:
            reset = datetime.fromtimestamp(epoch_seconds(tightest.reset_at), UTC)
            headers[f"anthropic-ratelimit-{unit}-limit"] = str(tightest.limit)
            headers[f"anthropic-ratelimit-{unit}-remaining"] = str(tightest.remaining)
            headers[f"anthropic-ratelimit-{unit}-reset"] = f"{reset:%Y-%m-%dT%H:%M:%SZ}"
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


@dataclass(frozen=True, slots=True)
class LimitUsage:
    """How much of one limit of a subject is used, in the limit's own unit (money in nano-dollars).

    `limit` is None if there is none, `used` if it is not counted, or unknown because Redis is down. `reset_at` (µs) is
    when all of it is available again; None for concurrency, and if it is unknown. `source` says where the limit's value
    comes from; only accounts.explain sets it. Of a budget's `used`, open calls have `reserved` a part.
    """

    name: LimitName
    subject: Subject
    limit: int | None
    used: int | None
    reset_at: int | None = None
    source: str = ""
    reserved: int = 0

    @property
    def settled(self) -> int:
        """What is used without the part of open calls; 0 if it is unknown."""
        return (self.used or 0) - self.reserved

    @property
    def remaining(self) -> int | None:
        """What is left; None without a limit or if the used amount is unknown."""
        return None if self.limit is None or self.used is None else max(0, self.limit - self.used)

    @property
    def share(self) -> float:
        """The used part: 1 is all, more is possible; 0 without a limit or if the used amount is unknown."""
        if self.limit is None or self.used is None:
            return 0.0
        return self.used / self.limit if self.limit else 1.0

    @property
    def percent(self) -> int:
        """The used part in whole percent, rounded down: 100 means that nothing is left."""
        return (self.used or 0) * 100 // self.limit if self.limit else round(self.share * 100)

    @property
    def owner(self) -> str:
        """`key`, `maker` or `account`, with ` model` for a model budget."""
        kind = self.subject.kind.replace("key", "maker") if self.subject.maker else self.subject.kind
        return kind.replace("_", " ")

    @property
    def holder(self) -> str:
        """The owner in a sentence."""
        maker = self.subject.maker
        return f"the key {maker} that made this one" if maker else f"the {self.owner.split()[0]}"

    @property
    def whose(self) -> str:
        """The owner, with the name of a maker and the model of a model budget."""
        return " ".join(part for part in (self.owner, self.subject.maker, self.subject.model) if part)

    @property
    def is_money(self) -> bool:
        """Whether amounts are nano-dollars, not counts."""
        return self.name is LimitName.MONTHLY_COST

    @property
    def title(self) -> str:
        """The limit's name for people, with the model of a model budget."""
        return ", ".join(part for part in (LIMITS[self.name].title, self.subject.model) if part)

    @property
    def text(self) -> str:
        """How much is used, for people: `1,200 of 10,000 (12 %)`; money is rounded."""
        if self.limit is None:
            return "no limit" if self.used is None else f"{self.rounded(self.used)} (no limit)"
        return f"{self.rounded(self.used)} of {self.rounded(self.limit)} ({self.percent} %)"

    def rounded(self, value: int | None) -> str:
        """Return an amount for people, money rounded; what is unknown as 0."""
        return money(value or 0) if self.is_money else f"{value or 0:,}"

    def shown(self, value: int) -> str:
        """Return an amount exactly, for people: $25.00, or 1,200."""
        return exact_money(value) if self.is_money else f"{value:,}"

    def amount(self, value: int | None) -> int | str | None:
        """Return an amount as callers see it: money as a string in US dollars with all digits."""
        return dollars(value) if value is not None and self.is_money else value

    def as_json(self) -> dict[str, Any]:
        """Return `{name, owner, limit, used, remaining, reset}`, with `maker`, `model` and `source` if it has one.

        `maker` is the name of a key that created the calling key; `reset` is in epoch seconds.
        """
        named = {"maker": self.subject.maker, "model": self.subject.model, "source": self.source}
        return {
            "name": str(self.name),
            "owner": self.owner,
            **{name: text for name, text in named.items() if text},
            "limit": self.amount(self.limit),
            "used": self.amount(self.used),
            "remaining": self.amount(self.remaining),
            "reset": None if self.reset_at is None else epoch_seconds(self.reset_at),
        }

    def cells(self, unlimited: str, unknown: str, never: str) -> tuple[str, str, str, str]:
        """Return limit, used, remaining and reset time as the texts of a table, with these for absent values."""
        reset = None if self.reset_at is None else datetime.fromtimestamp(epoch_seconds(self.reset_at), tz=UTC)
        amounts = ((self.limit, unlimited), (self.used, unknown), (self.remaining, unknown))
        limit, used, remaining = (absent if value is None else self.shown(value) for value, absent in amounts)
        return limit, used, remaining, utc_text(reset, never, seconds=True)


#: Sources of usage: the limits themselves, or (while Redis is down) the records in the database.
LIVE, RECORDS = "limits", "records"


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The usage of the limits of some subjects, at a time (µs).

    With the source RECORDS, the monthly amounts lack open calls and records that are not ingested yet, and the use of
    rates and slots is unknown.
    """

    at: int
    source: str
    limits: list[LimitUsage]


def get_limit_usage(scope: LimitSet) -> UsageReport:
    """Return the usage of every limit of a scope; raises database errors if Redis is down too."""
    try:
        limits = get_limits()
        admission = limits.peek(scope)
        pairs = zip(limits.usage(scope), admission.statuses, strict=True)
        rows = [row for used, status in pairs for row in usage_of_subject(used, admission.at, status)]
        return UsageReport(admission.at, LIVE, rows)
    except LimitsUnavailable:
        return UsageReport(wall_clock(), RECORDS, recorded_usage(scope.subjects))


def usage_of_scopes(scopes: Sequence[LimitSet]) -> UsageReport:
    """Return the usage of the limits of many scopes in one step, without the times at which rates are reset.

    While Redis is down, that of the monthly limits alone.
    """
    now = wall_clock()
    try:
        used = [each for usages in get_limits().usages(scopes) for each in usages] if scopes else []
    except LimitsUnavailable:
        rows = recorded_usage([subject for scope in scopes for subject in scope.subjects])
        return UsageReport(now, RECORDS, [row for row in rows if LIMITS[row.name].is_budget])
    return UsageReport(now, LIVE, [row for each in used for row in usage_of_subject(each, now)])


def recorded_usage(subjects: Sequence[Subject]) -> list[LimitUsage]:
    """List the usage of the limits of subjects as far as the records in the database know it: that of the month."""
    now = wall_clock()
    settled = settled_in_database(subjects, month_of(now)) if subjects else {}
    return [row for subject in subjects for row in _rows(subject, settled[subject], now, rates={})]


def usage_of_subject(used: SubjectUsage, now: int, windows: Status | None = None) -> list[LimitUsage]:
    """List the usage of each limit of a subject; `windows` has the times at which its rates are reset."""
    requests, tokens = (windows.requests, windows.tokens) if windows is not None else (None, None)
    rates = {
        LimitName.REQUESTS_PER_MINUTE: (used.requests, requests.reset_at if requests is not None else None),
        LimitName.TOKENS_PER_MINUTE: (used.tokens, tokens.reset_at if tokens is not None else None),
        LimitName.CONCURRENT_REQUESTS: (used.slots, None),
    }
    rows = _rows(used.subject, used.settled + used.reserved, now, rates)
    reserved = {LimitName.MONTHLY_TOKENS: used.reserved.tokens, LimitName.MONTHLY_COST: used.reserved.cost}
    return [replace(row, reserved=reserved.get(row.name, 0)) for row in rows]


def _rows(
    subject: Subject, month: Amount, now: int, rates: Mapping[LimitName, tuple[int | None, int | None]]
) -> list[LimitUsage]:
    """List the limits of a subject in the order in which they are checked; of a model budget, its two monthly ones.

    `rates` are the used amounts and times of reset of the other limits, as far as they are known. For a maker, only the
    limits that it has: the rest of its usage does not concern the calling key.
    """
    ends = month_end(month_of(now))
    used = {**rates, LimitName.MONTHLY_TOKENS: (month.tokens, ends), LimitName.MONTHLY_COST: (month.cost, ends)}
    rows = [
        LimitUsage(name, subject, getattr(subject.limits, name), *used.get(name, (None, None)))
        for name, limit in LIMITS.items()
        if limit.is_budget or not subject.model
    ]
    return [row for row in rows if row.limit is not None] if subject.maker else rows


def month_text(micros: int) -> str:
    """Return the calendar month (UTC) of a time in µs, such as `2026-11`."""
    return datetime.fromtimestamp(micros // SECOND, tz=UTC).strftime("%Y-%m")
