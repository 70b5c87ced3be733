"""The contract of accounts.limits: amounts, bounds, limits, and what every backend guarantees.

A call takes three steps. Each is atomic over all its subjects, and idempotent by its operation id:

    admit    counts one request against the request rates, before anything else happens
    reserve  takes a slot and the bound of what the call may cost, before the provider is called
    settle   releases the slot and replaces the bound by what was used, together with the usage record

An attempt at a provider with limits of its own takes the last two steps for these as well, under an operation id of its
own. There reserve counts the request too; nothing is recorded, and there is no ledger.

Time is integer microseconds since the epoch, by Redis's clock (or an injected one). Money is integer nano-dollars,
rounded up once; prices are nano-dollars per million tokens. A limit of `None` means unlimited. Windows of a minute are
closed at their start and open at their end.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from core.errors import BudgetExhausted, ConcurrencyLimited, LimitExceeded, RateLimited, TokensLimited

MILLION = 1_000_000
EXACT = 2**53  # Lua's numbers are doubles: integers are exact below this


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of tokens and their cost (nano-dollars)."""

    tokens: int = 0
    cost: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens - other.tokens, self.cost - other.cost)


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a call may use: a fixed prompt part, and output that may be granted in part.

    The cost of `o` output tokens is `prompt.cost + ceil(o * output_price / 1,000,000)`. The grant is the largest
    multiple of `step` (the number of answers requested, which share it evenly) from `minimum_output` to `output_tokens`
    that fits every limit. Without a `minimum_output` only the whole output is granted. Raises ValueError if the parts
    contradict each other, or are too large to be counted exactly.
    """

    prompt: Amount
    output_tokens: int = 0
    output_price: int = 0
    minimum_output: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        parts = (self.prompt.tokens, self.prompt.cost, self.output_tokens, self.output_price, self.least_output)
        if min(parts) < 0 or self.step < 1:
            raise ValueError("a bound has no negative parts")
        if self.output_tokens % self.step or self.least_output % self.step:
            raise ValueError("the output is a multiple of the step")
        if self.least_output > self.output_tokens:
            raise ValueError("the least output is not above the most")
        most = self.at(self.output_tokens)
        if max(most.cost, most.tokens, self.output_price) >= EXACT // 4:
            raise ValueError("a bound too large to be counted exactly")

    @property
    def least_output(self) -> int:
        """The smallest output that is worth granting."""
        return self.output_tokens if self.minimum_output is None else self.minimum_output

    def at(self, output: int) -> Amount:
        """Return the bound with this number of output tokens."""
        cost = self.prompt.cost + -(-output * self.output_price // MILLION)
        return Amount(self.prompt.tokens + output, cost)

    def largest_output(self, tokens_left: int | None, cost_left: int | None) -> int | None:
        """Return the largest output that fits what is left (None: unlimited); None if not even the least fits."""
        output = self.output_tokens
        if tokens_left is not None:
            output = min(output, tokens_left - self.prompt.tokens)
        if cost_left is not None:
            output = min(output, self._affordable(cost_left - self.prompt.cost))
        output -= output % self.step
        return output if output >= self.least_output else None

    def _affordable(self, cost: int) -> int:
        if cost < 0:
            return -1
        return cost * MILLION // self.output_price if self.output_price else self.output_tokens


SHARDS = 64  # of accounts; each provider has one more
NO_ACCOUNT = 0  # ids in the database begin at 1
SECOND = 1_000_000
MINUTE = 60 * SECOND

MAX_REAPED = 64  # keeps one call's time in Redis below a few ms
TOKEN_WINDOW_SECONDS = 61  # the tokens of a second leave the window when its end is a minute old: never early
MAX_REAPED_BY_RESERVE = 16  # expired leases of the shard that one reserve clears at most: keeps its time bounded
REFUSALS_A_MINUTE = 60  # refusals of an owner with a record each; further ones are only counted, see RefusalGroup

SUBJECT_NAME = re.compile(r"[a-z_]+:[^\s{}]+")

#: Kinds whose ids are `<key or account>:<ledger>:<model>`.
MODEL_KINDS = ("key_model", "account_model")


class LimitName(StrEnum):
    """The names of the limits: their field names, also used in refusals and error bodies."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENT_REQUESTS = "concurrent_requests"
    MONTHLY_TOKENS = "monthly_tokens"
    MONTHLY_COST = "monthly_cost"


@dataclass(frozen=True, slots=True)
class LimitProperties:
    """A limit's title for people, the error of its refusals, and its field in the API, of accounts and of keys.

    A budget is a key's own. Other limits are fields of the tier, which a key may override in `<field>_override`.
    """

    title: str
    error: type[LimitExceeded]
    field: str
    is_budget: bool = False


LIMITS = {
    LimitName.REQUESTS_PER_MINUTE: LimitProperties("Requests in the last minute", RateLimited, "requests_per_minute"),
    LimitName.TOKENS_PER_MINUTE: LimitProperties("Tokens in the last minute", TokensLimited, "tokens_per_minute"),
    LimitName.CONCURRENT_REQUESTS: LimitProperties("Requests open now", ConcurrencyLimited, "concurrent_requests"),
    LimitName.MONTHLY_TOKENS: LimitProperties("Tokens this month", BudgetExhausted, "monthly_token_budget", True),
    LimitName.MONTHLY_COST: LimitProperties("Cost this month", BudgetExhausted, "monthly_cost_budget", True),
}
RATE_FIELDS = tuple(limit.field for limit in LIMITS.values() if not limit.is_budget)
BUDGET_FIELDS = tuple(limit.field for limit in LIMITS.values() if limit.is_budget)


class LimitsUnavailable(Exception):
    """Raised when a limit can't be enforced exactly because Redis is down: a 503, never the caller's fault.

    `retry_after` is in whole seconds.
    """

    def __init__(self, message: str = "limits are unavailable", *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OperationClosed(Exception):
    """Raised by reserve for an operation that was settled already, or whose lease expired and was charged."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one subject. None is unlimited, 0 admits nothing. `monthly_cost` is in nano-dollars."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    monthly_tokens: int | None = None
    monthly_cost: int | None = None

    @property
    def has_budget(self) -> bool:
        """Whether a monthly budget is set: such calls are refused while Redis is down."""
        return self.monthly_tokens is not None or self.monthly_cost is not None


@dataclass(frozen=True, slots=True)
class Subject:
    """An owner of limits: a key, its account, the use of one model by either, or a provider.

    Kind and id form its name in Redis. Neither may contain whitespace or braces, and the kind no colon; raises
    ValueError otherwise. `maker` is the display name of a key that created the calling key; it is empty for all other
    subjects.
    """

    kind: str
    id: str
    limits: Limits
    maker: str = ""
    #: The name of the subject in Redis, such as `key:17`.
    name: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.kind}:{self.id}")
        if not SUBJECT_NAME.fullmatch(self.name):
            raise ValueError(f"not a subject: {self.name!r}")

    @property
    def model(self) -> str | None:
        """The model that the limits apply to (`key_model` and `account_model`); None for other kinds."""
        return self.id.split(":", 2)[2] if self.kind in MODEL_KINDS else None

    @property
    def is_of_key(self) -> bool:
        """Whether the owner is a key."""
        return self.kind.startswith("key")

    @property
    def owner_id(self) -> int:
        """The id of the key, account or provider."""
        return int(self.id.split(":", 1)[0])


@dataclass(frozen=True, slots=True)
class LimitSet:
    """All subjects that one call counts against. They are stored in the shard of the account.

    A provider's own limits (see of_provider) belong to no account and are stored in a shard of their own. They have no
    ledgers and no records; their requests are counted when they are reserved.
    """

    account_id: int
    subjects: tuple[Subject, ...]
    #: Whether these are a provider's own limits.
    is_provider: bool = field(init=False, compare=False, repr=False)
    #: The shard, whose hash tag all Redis keys of the account, or of the provider, carry.
    shard: int = field(init=False, compare=False, repr=False)
    #: Whether any subject has a monthly budget in money.
    has_cost_budget: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        is_provider = bool(self.subjects) and self.subjects[0].kind == "provider"
        shard = SHARDS + self.subjects[0].owner_id if is_provider else self.account_id % SHARDS
        object.__setattr__(self, "is_provider", is_provider)
        object.__setattr__(self, "shard", shard)
        has_cost_budget = any(subject.limits.monthly_cost is not None for subject in self.subjects)
        object.__setattr__(self, "has_cost_budget", has_cost_budget)

    @classmethod
    def of_provider(cls, provider_id: int, limits: Limits) -> Self:
        """Make the scope of a provider's own limits, which have no budgets."""
        return cls(NO_ACCOUNT, (Subject("provider", str(provider_id), limits),))

    @property
    def has_budget(self) -> bool:
        """Whether any subject has a monthly budget."""
        return any(subject.limits.has_budget for subject in self.subjects)


@dataclass(frozen=True, slots=True)
class Window:
    """What is left of one limit of one subject, and when (µs) all of it is available again.

    For a refused request, `reset_at` is when the next slot is free.
    """

    limit: int
    remaining: int
    reset_at: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call was refused: the limit, its subject, how much of it is used, and when (µs) to try again.

    If several limits refuse, this is the one that blocks longest. `impossible` means that the bound of the call alone
    is above the whole limit, so that waiting does not help. Amounts are in the limit's own unit.
    """

    limit: LimitName
    subject: Subject
    used: int
    limit_value: int
    at: int
    reset_at: int
    impossible: bool = False

    @property
    def retry_after(self) -> int:
        """The seconds to wait, rounded up, at least 1."""
        return max(1, -((self.at - self.reset_at) // SECOND))


@dataclass(frozen=True, slots=True)
class Status:
    """The request and token windows of one subject; None for a limit that it does not have."""

    subject: Subject
    requests: Window | None
    tokens: Window | None


@dataclass(frozen=True, slots=True)
class Admission:
    """The result of admit (counted, if admitted) and of peek (never counted), with one status for each subject.

    `at` is the time of admission in µs; it decides the month and the quarter hour of the call's record.
    """

    admitted: bool
    at: int
    statuses: tuple[Status, ...]
    refusal: Refusal | None = None

    def with_tokens(self, windows: Sequence[Window | None]) -> Self:
        """Return a copy with later token windows, given in the order of the subjects."""
        pairs = zip(self.statuses, windows, strict=False)  # the call's model may add subjects, without rates
        statuses = tuple(replace(status, tokens=window) for status, window in pairs)
        return replace(self, statuses=statuses)

    def refused(self, refusal: Refusal) -> Self:
        """Return a copy with a later refusal; a token window that refused gets the refusal's numbers and reset."""

        def as_refused(status: Status) -> Status:
            if status.subject != refusal.subject or refusal.limit is not LimitName.TOKENS_PER_MINUTE:
                return status
            left = max(0, refusal.limit_value - refusal.used)
            return replace(status, tokens=Window(refusal.limit_value, left, refusal.reset_at))

        return replace(self, at=refusal.at, statuses=tuple(map(as_refused, self.statuses)), refusal=refusal)


@dataclass(frozen=True, slots=True)
class FlightClaim:
    """The flight that a call is to lead: the key of identical calls, and since when (µs) the end of another matters.

    That is when this call was admitted, later the time of the latest answer about the flight.
    """

    key: str
    since: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """The result of reserve where an identical call decides: it is in flight (`is_open`), or has ended meanwhile.

    `at` (µs) is the time of this answer; of a call that ended with an `error` for its followers, the time of its end.
    """

    is_open: bool
    at: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Reserved:
    """A granted reservation: the output tokens to request from the provider at most, and the bound that is held.

    At `lease_until` (µs) the bound is charged unless the lease was renewed or the call settled. `tokens` has the
    tokens-per-minute window of each subject of the scope after this reservation, None for a subject without that limit.
    `leads_flight`: other processes follow this call until it settles.
    """

    output_tokens: int
    held: Amount
    at: int
    lease_until: int
    tokens: tuple[Window | None, ...]
    leads_flight: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result of settle: the charge that now applies, whether it exceeds the bound, and how it came about.

    `late` means that the lease had expired and the charge of the bound was replaced. `duplicate` means that the
    operation had been settled before, and nothing changed.
    """

    charged: Amount
    overrun: bool = False
    late: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class RefusalGroup:
    """The group in which a refusal is counted once its owner has REFUSALS_A_MINUTE records of refusals in a minute.

    The refusals of one owner, kind and minute share one record: the first one's, with its id and a `count` that grows
    by revisions. This bounds the memory and the rows that refusals take, however many there are.
    """

    owner: str
    kind: str


@dataclass(frozen=True, slots=True)
class SubjectUsage:
    """What a subject uses now and has used in a month. `requests` is None where requests are not counted."""

    subject: Subject
    requests: int | None
    tokens: int
    slots: int
    settled: Amount
    reserved: Amount


def binding(refusals: Iterable[Refusal]) -> Refusal:
    """Return the refusal that blocks longest: one that can never fit first, then the latest reset, then the first."""
    return max(refusals, key=lambda refusal: (refusal.impossible, refusal.reset_at))
