"""The limits' Lua scripts: their Redis keys, their arguments, and what their replies mean.

All keys of an account begin with `aiapi:{s<shard>}:`, so that a script touches one slot of a cluster. Redis's clock is
the only one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from accounts.limits.types import (
    Admission,
    Amount,
    InFlight,
    LimitName,
    LimitSet,
    OperationClosed,
    Refusal,
    Reserved,
    Settlement,
    Status,
    Subject,
    SubjectUsage,
    Window,
    binding,
)
from core.redis.wire import Argument, Script, script

UNLIMITED = -1
NO_MONTH = 0  # of a provider's own limits, which have no ledgers
RESERVE_LIMITS = (  # in the order of their numbers in reserve.lua
    LimitName.TOKENS_PER_MINUTE,
    LimitName.CONCURRENT_REQUESTS,
    LimitName.MONTHLY_TOKENS,
    LimitName.MONTHLY_COST,
    LimitName.REQUESTS_PER_MINUTE,
)
AWAITED = script(b"return redis.call('EXISTS', KEYS[1] .. 'y:' .. ARGV[1] .. ':awaited')")
WRITE = script(b"redis.call('SET', KEYS[1] .. 'written', 1, 'EX', 10)")

_LUA = Path(__file__).with_name("lua")


@cache
def load(name: str) -> Script:
    """Load a script of the lua folder, with the prelude that all share."""
    return script(b"\n".join((_LUA / f"{part}.lua").read_bytes() for part in ("prelude", name)))


@cache
def prefix_of(shard: int) -> str:
    """Return the prefix, with the hash tag, of all Redis keys of a shard."""
    return f"aiapi:{{s{shard}}}:"


def records_stream(shard: int) -> str:
    """Return the key of the stream for a shard's usage records."""
    return prefix_of(shard) + "records"


@dataclass(frozen=True, slots=True)
class LedgerMissing:
    """A script's reply: these subjects have no ledger for this month (YYYYMM). Missing is not zero."""

    subjects: tuple[Subject, ...]
    month: int


def admit_arguments(scope: LimitSet) -> list[Argument]:
    """Return the arguments of admit.lua after the operation."""
    arguments: list[Argument] = []
    for subject in scope.subjects:
        limits = subject.limits
        arguments += (subject.name, _number(limits.requests_per_minute), _number(limits.tokens_per_minute))
    return arguments


def admission(scope: LimitSet, reply: Sequence[int]) -> Admission:
    """Parse the reply of admit.lua."""
    admitted, at, *numbers = reply
    statuses, refusals = [], []
    for subject, (used, reset, tokens, tokens_reset) in zip(scope.subjects, _rows(numbers, 4), strict=True):
        limit = subject.limits.requests_per_minute
        requests = _window(limit, used, reset)
        statuses.append(Status(subject, requests, _window(subject.limits.tokens_per_minute, tokens, tokens_reset)))
        if limit is not None and used >= limit and not admitted:
            refusals.append(Refusal(LimitName.REQUESTS_PER_MINUTE, subject, used, limit, at, reset))
    return Admission(bool(admitted), at, tuple(statuses), binding(refusals) if refusals else None)


def reserve_arguments(scope: LimitSet) -> list[Argument]:
    """Return the arguments of reserve.lua about the subjects; only a provider's requests are counted there."""
    arguments: list[Argument] = []
    for subject in scope.subjects:
        limits = subject.limits
        arguments += (
            subject.name,
            _number(limits.tokens_per_minute),
            _number(limits.concurrent_requests),
            _number(limits.monthly_tokens),
            _number(limits.monthly_cost),
            _number(limits.requests_per_minute if scope.is_provider else None),
        )
    return arguments


def reservation(
    scope: LimitSet, operation: str, month: int, reply: Sequence[Any]
) -> Reserved | Refusal | InFlight | LedgerMissing:
    """Parse the reply of reserve.lua; raises OperationClosed."""
    kind, *numbers = reply
    if kind == b"ok":
        leads_flight, output, tokens, cost, at, lease_until, *used = numbers
        windows = tuple(
            _window(subject.limits.tokens_per_minute, *row)
            for subject, row in zip(scope.subjects, _rows(used, 2), strict=True)
        )
        return Reserved(output, Amount(tokens, cost), at, lease_until, windows, bool(leads_flight))
    if kind == b"flight":
        is_open, at, error = numbers
        return InFlight(bool(is_open), at, error.decode())
    if kind == b"missing":
        return missing(scope, numbers, month)
    if kind == b"closed":
        raise OperationClosed(operation)
    at, *numbers = numbers
    refusals = []
    for number, limit_number, used_now, reset_at, impossible in _rows(numbers, 5):
        subject, name = scope.subjects[number - 1], RESERVE_LIMITS[limit_number - 1]
        limit = getattr(subject.limits, name.value)
        refusals.append(Refusal(name, subject, used_now, limit, at, reset_at, impossible=bool(impossible)))
    return binding(refusals)


def settlement(scope: LimitSet, month: int, reply: Sequence[Any]) -> Settlement | LedgerMissing:
    """Parse the reply of settle.lua."""
    state, *numbers = reply
    if state == b"missing":
        return missing(scope, numbers, month)
    tokens, cost, overrun = numbers
    return Settlement(Amount(tokens, cost), bool(overrun), late=state == b"b", duplicate=state == b"s")


def usage_arguments(scope: LimitSet, month: int) -> list[Argument]:
    """Return the arguments of usage.lua."""
    arguments: list[Argument] = [month]
    for subject in scope.subjects:
        arguments += (subject.name, int(subject.limits.requests_per_minute is not None))
    return arguments


def usages(scope: LimitSet, month: int, reply: Sequence[Any]) -> tuple[SubjectUsage, ...] | LedgerMissing:
    """Parse the reply of usage.lua."""
    kind, *numbers = reply
    if kind == b"missing":
        return missing(scope, numbers, month)
    return tuple(
        SubjectUsage(
            subject,
            None if subject.limits.requests_per_minute is None else requests,
            tokens,
            slots,
            settled=Amount(settled_tokens, settled_cost),
            reserved=Amount(reserved_tokens, reserved_cost),
        )
        for subject, (
            requests, tokens, slots, settled_tokens, settled_cost, reserved_tokens, reserved_cost
        ) in zip(scope.subjects, _rows(numbers, 7), strict=True)
    )  # fmt: skip


def missing(scope: LimitSet, numbers: Sequence[int], month: int) -> LedgerMissing:
    """Return the subjects that a script has named by their numbers, which begin at 1."""
    return LedgerMissing(tuple(scope.subjects[number - 1] for number in numbers), month)


def _number(limit: int | None) -> int:
    return UNLIMITED if limit is None else limit


def _rows(numbers: Sequence[int], width: int) -> list[Sequence[int]]:
    return [numbers[start : start + width] for start in range(0, len(numbers), width)]


def _window(limit: int | None, used: int, reset_at: int) -> Window | None:
    return None if limit is None else Window(limit, max(0, limit - used), reset_at)
