"""What the memory backend keeps of one subject: the same windows and ledgers as the Lua scripts keep in Redis."""

from collections import deque
from dataclasses import dataclass, field

from accounts.limits.bounds import Amount
from accounts.limits.contract import MINUTE, SECOND, LimitName, Limits, Refusal, Subject, SubjectUsage, Window

LEAVES = 61  # a second's bucket leaves the window when its last moment is a minute old: late, never early


@dataclass(slots=True)
class Ledger:
    """The budget of one subject in one month: what was settled, what is reserved, and when (µs) it was seeded."""

    settled: Amount
    seeded_at: int
    reserved: Amount = field(default_factory=Amount)

    def total(self) -> Amount:
        """Give what counts against the budget."""
        return self.settled + self.reserved


class SubjectState:
    """The request log, the tokens of the last minute, the open slots and the ledgers of one subject."""

    __slots__ = ("_buckets", "_settled", "ledgers", "open_tokens", "requests", "slots", "touched")

    def __init__(self) -> None:
        self.requests: deque[int] = deque()
        self.slots = 0
        self.open_tokens = 0
        self.ledgers: dict[int, Ledger] = {}
        self.touched = 0
        self._settled = 0
        self._buckets: dict[int, int] = {}

    def latest_request(self, now: int) -> int:
        """Give the time of the newest request, 0 if there is none.

        A log more than a window ahead of the clock was written before a step of the clock: it is dropped.
        """
        if self.requests and self.requests[-1] > now + MINUTE:
            self.requests.clear()
        return self.requests[-1] if self.requests else 0

    def requests_used(self, now: int) -> int:
        """Count the requests of the last minute, forgetting older ones."""
        while self.requests and self.requests[0] + MINUTE <= now:
            self.requests.popleft()
        return len(self.requests)

    def tokens_used(self, now: int) -> int:
        """Count the open bounds and what was settled in the last minute, forgetting older buckets."""
        gone = now // SECOND - LEAVES
        while self._buckets and (oldest := next(iter(self._buckets))) <= gone:
            self._settled -= self._buckets.pop(oldest)
        return self.open_tokens + self._settled

    def tokens_whole_at(self, now: int) -> int:
        """Give the time at which the tokens window is whole again, if nothing more comes."""
        if self.open_tokens > 0:
            return now + LEAVES * SECOND
        return (max(self._buckets) + LEAVES) * SECOND if self._settled > 0 else now

    def tokens_free_at(self, now: int, excess: int) -> int:
        """Give the time at which so many settled tokens will have left; open ones leave at a time nobody knows."""
        at = now + SECOND
        if self._settled == 0:
            return at
        for second, tokens in self._buckets.items():
            if excess <= 0:
                break
            excess -= tokens
            at = (second + LEAVES) * SECOND
        return at

    def add_tokens(self, now: int, tokens: int) -> int:
        """Put settled tokens into the bucket of this second (the latest if the clock ran backward); answer which."""
        self.tokens_used(now)
        second = max([now // SECOND, *self._buckets])
        self._put(second, tokens)
        return second

    def replace_tokens(self, now: int, second: int, difference: int) -> None:
        """Correct a bucket that is still in the window."""
        self.tokens_used(now)
        if second > now // SECOND - LEAVES:
            self._put(second, difference)

    def _put(self, second: int, tokens: int) -> None:
        late = bool(self._buckets) and second < next(reversed(self._buckets)) and second not in self._buckets
        self._buckets[second] = self._buckets.get(second, 0) + tokens
        self._settled += tokens
        if late:
            self._buckets = dict(sorted(self._buckets.items()))


def requests_refusal(subject: Subject, state: SubjectState, now: int) -> Refusal | None:
    """Refuse a request that has no slot; `reset_at` is when the next one is free."""
    limit = subject.limits.requests_per_minute
    used = state.requests_used(now)
    if limit is None or used < limit:
        return None
    free = state.requests[used - limit] + MINUTE if limit else now + MINUTE
    return Refusal(LimitName.REQUESTS_PER_MINUTE, subject, used, limit, now, free)


def tokens_window(limits: Limits, state: SubjectState, now: int) -> Window | None:
    """Tell where the tokens a minute stand; None without such a limit."""
    if limits.tokens_per_minute is None:
        return None
    left = max(0, limits.tokens_per_minute - state.tokens_used(now))
    return Window(limits.tokens_per_minute, left, state.tokens_whole_at(now))


def subject_usage(subject: Subject, state: SubjectState, ledger: Ledger, now: int) -> SubjectUsage:
    """Tell what a subject uses now, and has used in the ledger's month."""
    requests = None if subject.limits.requests_per_minute is None else state.requests_used(now)
    tokens = state.tokens_used(now)
    return SubjectUsage(subject, requests, tokens, state.slots, ledger.settled, ledger.reserved)
