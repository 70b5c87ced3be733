"""What a key has left: every limit of key and account, how much of it is used, and when it is whole again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from accounts.limits import get_limits, settled_in_database
from accounts.limits.bounds import Amount
from accounts.limits.contract import SECOND, LimitName, Scope, Subject, Unavailable, Window
from accounts.limits.local import wall_clock
from accounts.limits.months import month_end, month_of
from accounts.refusals import describe_owner, dollars, epoch_seconds

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
