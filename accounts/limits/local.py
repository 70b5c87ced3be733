"""The limits of one process for the time when the state store is down: rates, tokens a minute and slots.

Exact among the threads and greenlets of the process, and nowhere else. There are no budgets (calls under one are
refused meanwhile), no leases and no records.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from accounts.limits.types import (
    MINUTE,
    SECOND,
    Admission,
    Amount,
    Bound,
    LimitName,
    LimitSet,
    Refusal,
    Reserved,
    Settlement,
    Status,
    Subject,
    Window,
    binding,
)


def wall_clock() -> int:
    """Return the time in µs since the epoch."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class _Use:
    """What a subject uses: its requests (µs) and settled tokens of the last minute, what open calls hold."""

    requests: deque[int] = field(default_factory=deque)
    settled: deque[tuple[int, int]] = field(default_factory=deque)
    held: int = 0
    slots: int = 0
    touched: int = 0

    @property
    def tokens(self) -> int:
        """Return what counts against the tokens a minute."""
        return self.held + sum(tokens for _, tokens in self.settled)

    def touch(self, now: int) -> None:
        """Drop entries older than the window, and those more than a window ahead: the clock was set back."""
        self.touched = now
        if self.requests and self.requests[-1] > now + MINUTE:
            self.requests.clear()
        if self.settled and self.settled[-1][0] > now + MINUTE:
            self.settled.clear()
        while self.requests and self.requests[0] + MINUTE <= now:
            self.requests.popleft()
        while self.settled and self.settled[0][0] + MINUTE <= now:
            self.settled.popleft()

    def tokens_free_at(self, excess: int, now: int) -> int:
        """Return when so many settled tokens will have left the window; for those of open calls that is unknown."""
        for at, tokens in self.settled:
            excess -= tokens
            if excess <= 0:
                return at + MINUTE
        return now + SECOND


@dataclass(slots=True)
class _Open:
    """An open call: what it holds in all, and the answer to its last attempt."""

    subjects: tuple[str, ...]
    held: Amount
    attempt: int
    answer: Reserved


class LocalLimiter:
    """The limits as one process keeps them. `clock` returns µs since the epoch."""

    def __init__(self, clock: Callable[[], int] = wall_clock) -> None:
        self._clock = clock
        self._latest = 0
        self._lock = threading.Lock()
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self._open: dict[str, _Open] = {}

    def admit(self, scope: LimitSet, *, counts: bool = True) -> Admission:
        """Count one request against all subjects, or none; without `counts`, only check."""
        with self._lock:
            now = self._now()
            uses = [(subject, self._use(subject.name, now)) for subject in scope.subjects]
            refusals = [refusal for subject, use in uses if (refusal := _full(subject, use, now))]
            if counts and not refusals:
                for _, use in uses:
                    use.requests.append(now)
            statuses = tuple(_status(subject, use, now, refusals) for subject, use in uses)
            return Admission(not refusals, now, statuses, binding(refusals) if refusals else None)

    def holds(self, operation: str) -> bool:
        """Return whether a call has reserved here, and not settled yet."""
        return operation in self._open

    def reserve(self, scope: LimitSet, operation: str, *, bound: Bound, attempt: int) -> Reserved | Refusal:
        """Take a slot and tokens from all subjects, or nothing; a further attempt adds tokens and takes no slot.

        Of a provider, count the request as well.
        """
        with self._lock:
            now, known = self._now(), self._open.get(operation)
            if known is not None and attempt <= known.attempt:
                return known.answer
            uses = [(subject, self._use(subject.name, now)) for subject in scope.subjects]
            slots, least = int(known is None), bound.at(bound.least_output).tokens
            refusals = [refusal for subject, use in uses for refusal in _lacking(subject, use, least, slots, now)]
            if scope.is_provider:
                refusals += [refusal for subject, use in uses if (refusal := _full(subject, use, now))]
            if refusals:
                return binding(refusals)
            limits = [(subject.limits.tokens_per_minute, use) for subject, use in uses]
            left = min((limit - use.tokens for limit, use in limits if limit is not None), default=None)
            output = bound.largest_output(left, None)
            assert output is not None, "the least output fits"  # noqa: S101
            held = bound.at(output)
            for _, use in uses:
                use.slots += slots
                use.held += held.tokens
                if scope.is_provider:
                    use.requests.append(now)
            total = held + (known.held if known else Amount())
            windows = tuple(_tokens(subject, use, now) for subject, use in uses)
            answer = Reserved(output, total, now, now + MINUTE, windows)
            self._open[operation] = _Open(tuple(subject.name for subject in scope.subjects), total, attempt, answer)
            return answer

    def settle(self, operation: str, used: Amount) -> Settlement | None:
        """Release the slot, and replace what the call holds by what it used; None if it holds nothing here."""
        with self._lock:
            now, call = self._now(), self._open.pop(operation, None)
            if call is None:
                return None
            for name in call.subjects:
                use = self._use(name, now)
                use.slots -= 1
                use.held -= call.held.tokens
                if used.tokens:
                    use.settled.append((now, used.tokens))
        return Settlement(used, overrun=used.tokens > call.held.tokens or used.cost > call.held.cost)

    def _now(self) -> int:
        """Return the time, which does not go back if the clock is set back by less than a window."""
        now = self._clock()
        self._latest = self._latest if now < self._latest <= now + MINUTE else now
        return self._latest

    def _use(self, name: str, now: int) -> _Use:
        """Return what a subject uses, and forget subjects that have used nothing for a minute."""
        use = self._uses.setdefault(name, _Use())
        use.touch(now)
        self._uses.move_to_end(name)
        while (oldest := next(iter(self._uses.values()))).touched + MINUTE <= now:
            name, _ = self._uses.popitem(last=False)
            if oldest.slots:
                oldest.touch(now)
                self._uses[name] = oldest
        return use


def _full(subject: Subject, use: _Use, now: int) -> Refusal | None:
    """Refuse a request that has no place in the minute; `reset_at` is when the next one is free."""
    limit, used = subject.limits.requests_per_minute, len(use.requests)
    if limit is None or used < limit:
        return None
    free = use.requests[used - limit] + MINUTE if limit else now + MINUTE
    return Refusal(LimitName.REQUESTS_PER_MINUTE, subject, used, limit, now, free)


def _lacking(subject: Subject, use: _Use, tokens: int, slots: int, now: int) -> list[Refusal]:
    """Refuse a call whose tokens or slot do not fit."""
    refusals, used, limits = [], use.tokens, subject.limits
    if (most := limits.tokens_per_minute) is not None and used + tokens > most:
        free = use.tokens_free_at(used + tokens - most, now)
        refusals.append(Refusal(LimitName.TOKENS_PER_MINUTE, subject, used, most, now, free, impossible=tokens > most))
    if (most := limits.concurrent_requests) is not None and use.slots + slots > most:
        refusals.append(
            Refusal(LimitName.CONCURRENT_REQUESTS, subject, use.slots, most, now, now + SECOND, impossible=slots > most)
        )
    return refusals


def _status(subject: Subject, use: _Use, now: int, refusals: list[Refusal]) -> Status:
    limit = subject.limits.requests_per_minute
    if limit is None:
        return Status(subject, None, _tokens(subject, use, now))
    whole = use.requests[-1] + MINUTE if use.requests else now
    reset = next((refusal.reset_at for refusal in refusals if refusal.subject == subject), whole)
    return Status(subject, Window(limit, max(0, limit - len(use.requests)), reset), _tokens(subject, use, now))


def _tokens(subject: Subject, use: _Use, now: int) -> Window | None:
    limit = subject.limits.tokens_per_minute
    if limit is None:
        return None
    whole = now + MINUTE if use.held else use.settled[-1][0] + MINUTE if use.settled else now
    return Window(limit, max(0, limit - use.tokens), whole)
