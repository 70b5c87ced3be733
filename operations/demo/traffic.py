"""The requests of the sample data: who asks which model when, how it is answered, and an outage of one provider.

All numbers are invented; the costs follow from the tokens and the models' prices as those of real calls do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

from accounts.limits.records import UsageRecord
from accounts.models import ApiKey
from core.times import new_id
from inference.models import Price
from inference.prices import Rates
from inference.usage import Usage
from monitoring.rollups.periods import EPOCH

#: Requests of the whole time, approximately.
REQUESTS = 20_000
#: How many times as much traffic the end of the time has as its beginning.
GROWTH = 5.0
WEEKEND = 0.35
#: Shares of calls that fail, and that are invalid, at any time.
FAILING, INVALID = 0.003, 0.008
ONE_HOUR, OUTAGE_MINUTES = timedelta(hours=1), 40
CHAT, RESPONSES, EMBEDDINGS = "v1.chat.completions", "v1.responses", "v1.embeddings"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model, its name at its providers in the order of routing, its prices per million tokens, and its speed."""

    name: str
    upstream_name: str
    providers: tuple[str, ...]
    input_price: str
    cached_price: str | None
    output_price: str
    context: int
    first_token_ms: float
    token_ms: float
    is_embedding: bool = False

    def price(self) -> Price:
        """Return the prices, for an unsaved row."""
        cached = None if self.cached_price is None else Decimal(self.cached_price)
        prices = {"input_per_million": Decimal(self.input_price), "output_per_million": Decimal(self.output_price)}
        return Price(cached_input_per_million=cached, **prices)

    @property
    def rates(self) -> Rates:
        """Return the prices as calls are billed by them."""
        return Rates.of([self.price()]) or Rates()


DOWN, SPARE = "openai-eu", "azure-west"
LARGE, SMALL, REPORTS, FAST, OPEN, VECTORS = (
    *("assistant-large", "assistant-small", "assistant-pro", "translate-fast", "open-70b", "embed-large"),
)
MODELS = {
    model.name: model
    for model in (
        DemoModel(LARGE, "gpt-4.1", (DOWN,), "2", "0.5", "8", 1_047_576, 620, 9),
        DemoModel(SMALL, "gpt-5-mini", (DOWN, SPARE), "0.25", "0.025", "2", 400_000, 480, 7),
        DemoModel(REPORTS, "o1-pro", (DOWN,), "150", None, "600", 200_000, 2_100, 9),
        DemoModel(FAST, "mistral-small-latest", ("mistral",), "0.1", None, "0.3", 128_000, 310, 8),
        DemoModel(OPEN, "llama-3.3-70b", ("gpu-rack",), "0", None, "0", 131_072, 240, 10),
        DemoModel(VECTORS, "text-embedding-3-large", (DOWN,), "0.13", None, "0", 8_191, 190, 0, is_embedding=True),
    )
}


@dataclass(frozen=True, slots=True)
class Caller:
    """A key and how it is used: its share of the requests, what it asks, when, and how many are hits."""

    account: str
    key: str
    tier: str
    share: float
    endpoints: Mapping[str, float] = field(hash=False)
    models: Mapping[str, float] = field(hash=False)
    input_tokens: int
    output_tokens: int
    peak: int = 14  # the busiest hour (UTC)
    daily: float = 0.9  # how much the night differs from the day: 0 not at all, 1 most
    hits: float = 0.0
    bursts: int = 0  # after which it is refused


BUSINESS, STARTER = "business", "starter"
ACCOUNTS = {
    "acme-corp": "Acme Corp",
    "globex": "Globex",
    "initech": "Initech",
    "hooli": "Hooli",
    "umbrella-labs": "Umbrella Labs",
}
#: The account whose budget is nearly used up.
NEARLY_SPENT = "initech"
CALLERS = (
    Caller("acme-corp", "production", BUSINESS, 34, {CHAT: 1}, {SMALL: 7, LARGE: 3}, 7_500, 380, hits=0.05),
    Caller("acme-corp", "search", BUSINESS, 13, {EMBEDDINGS: 1}, {VECTORS: 1}, 420, 0, hits=0.2),
    Caller(
        *("globex", "web-chat", BUSINESS, 21, {"chat": 4, CHAT: 1}, {SMALL: 2, FAST: 3}),
        *(640, 260),
        peak=19,
        hits=0.31,
    ),
    Caller(NEARLY_SPENT, "documents", BUSINESS, 9, {"summarize": 3, RESPONSES: 1}, {LARGE: 1}, 21_000, 420, peak=9),
    Caller("hooli", "agents", BUSINESS, 14, {RESPONSES: 3, CHAT: 2}, {OPEN: 1}, 2_600, 340, daily=0.3),
    Caller("umbrella-labs", "notebook", STARTER, 6, {CHAT: 1}, {FAST: 1}, 700, 300, bursts=12),
    Caller("umbrella-labs", "ci", STARTER, 3, {CHAT: 1}, {OPEN: 1}, 180, 40, peak=3, hits=0.5),
)


@dataclass(frozen=True, slots=True)
class Outage:
    """The time in which the provider DOWN answers 502; its breakers open a minute later."""

    begin: datetime
    end: datetime

    def covers(self, at: datetime) -> bool:
        """Return whether the provider was down at a time."""
        return self.begin <= at < self.end

    @property
    def noticed(self) -> datetime:
        """When the breakers opened."""
        return self.begin + timedelta(minutes=1)


def requests(
    keys: Mapping[Caller, ApiKey], *, begin: datetime, end: datetime, outage: Outage, random: Random
) -> Iterator[UsageRecord]:
    """Yield the records of all callers' requests, in no order."""
    hours = [begin + number * ONE_HOUR for number in range(math.ceil((end - begin) / ONE_HOUR))]
    parts = [(caller, hour, _level(caller, hour, begin, end, random)) for caller in CALLERS for hour in hours]
    scale = REQUESTS / sum(level for *_, level in parts)
    for caller, hour, level in parts:
        for _ in range(int(level * scale + random.random())):
            at = hour + random.random() * ONE_HOUR
            # Clients try again while the provider is down.
            for attempt in range(random.randint(2, 4) if outage.covers(at) else 1):
                if (again := at + timedelta(seconds=20 * attempt)) < end:
                    yield _request(caller, keys[caller], again, outage, random)
    for caller in CALLERS:
        for _ in range(caller.bursts):
            yield from _burst(caller, keys[caller], begin + random.random() * (end - begin), outage, random)
    first = CALLERS[0]
    for minute in range(OUTAGE_MINUTES):  # however few the requests are, some meet the outage
        yield _request(first, keys[first], outage.begin + timedelta(minutes=minute), outage, random)


def _burst(caller: Caller, key: ApiKey, at: datetime, outage: Outage, random: Random) -> Iterator[UsageRecord]:
    """Yield as many requests as the key may send in a minute, and the refusals of those that follow."""
    most = key.tier.requests_per_minute or 0
    for number in range(most):
        yield _request(caller, key, at - timedelta(seconds=2 * (most - number)), outage, random)
    refused = _begun(caller, key, at, MODELS[_chosen(caller.models, random)], random)
    _refuse(refused, 429, "rate_limited", random)
    refused.count = random.randint(1, 25)
    yield refused


def report(caller: Caller, key: ApiKey, at: datetime, most: Decimal, random: Random) -> UsageRecord:
    """Return the record of a call to the most expensive model, as for a monthly report, of about `most` dollars."""
    model = MODELS[REPORTS]
    record = _begun(caller, key, at, model, random)
    longest = math.ceil(most * 1_000_000 / Decimal(model.input_price))
    tokens = {"input_tokens": min(longest, random.randint(20_000, 26_000)), "output_tokens": random.randint(60, 90)}
    _answer(record, model, random, **tokens)
    return record


def _level(caller: Caller, hour: datetime, begin: datetime, end: datetime, random: Random) -> float:
    """Return how busy a caller is in an hour, by the hour of the day, the day of the week, and the growth."""
    wave = 0.5 + 0.5 * math.cos((hour.hour - caller.peak) / 24 * math.tau)
    day = 1 - caller.daily + caller.daily * wave**2
    week = WEEKEND if hour.weekday() >= 5 and caller.daily > 0.5 else 1
    growth = math.pow(GROWTH, (hour - begin) / (end - begin))
    return caller.share * day * week * growth * random.lognormvariate(0, 0.25)


def _request(caller: Caller, key: ApiKey, at: datetime, outage: Outage, random: Random) -> UsageRecord:
    model = MODELS[_chosen(caller.models, random)]
    record, luck = _begun(caller, key, at, model, random), random.random()
    if luck < INVALID:
        _refuse(record, 400, "invalid_request", random)
    elif luck > 1 - caller.hits:
        _answer_again(record, model, caller, random)
    elif outage.covers(at) and model.providers[0] == DOWN:
        _fail_over(record, model, caller, at >= outage.noticed, outage, random)
    elif luck > 1 - caller.hits - FAILING:
        _fail(record, f"{record.deployment}: http 500; {record.deployment}: http 500", random)
    else:
        _answer(record, model, random, **_tokens(caller, random))
    return record


def _begun(caller: Caller, key: ApiKey, at: datetime, model: DemoModel, random: Random) -> UsageRecord:
    identifier = new_id(int(at.timestamp() * 1000))
    is_cacheable = caller.hits > 0 or random.random() < 0.3
    return UsageRecord(
        id=identifier.hex,
        label=str(identifier),
        admitted_at=(at - EPOCH) // timedelta(microseconds=1),
        account_id=key.account_id,
        account_name=key.account.name,
        key_id=key.pk,
        key_name=caller.key,
        endpoint=_chosen(caller.endpoints, random),
        model=model.name,
        deployment=f"{model.providers[0]}/{model.upstream_name}",
        status=200,
        cache="miss" if is_cacheable else "bypass",
    )


def _refuse(record: UsageRecord, status: int, code: str, random: Random) -> None:
    """Complete the record of a call that was sent to no provider."""
    record.status, record.error_code, record.cache, record.deployment = status, code, "", ""
    record.latency_ms = round(random.uniform(0.6, 2.5), 3)


def _tokens(caller: Caller, random: Random) -> dict[str, int]:
    medians = {"input_tokens": caller.input_tokens, "output_tokens": caller.output_tokens}
    return {name: int(median * random.lognormvariate(0, 0.6)) for name, median in medians.items()}


def _answer(
    record: UsageRecord, model: DemoModel, random: Random, *, input_tokens: int, output_tokens: int, before: float = 0.0
) -> None:
    """Complete the record of a call that was answered; `before`: milliseconds of a failed attempt."""
    record.input_tokens, record.output_tokens = max(1, input_tokens), output_tokens
    if model.cached_price and random.random() < 0.25:
        record.cached_tokens = record.input_tokens // 2
    usage = Usage(record.input_tokens, record.cached_tokens, record.output_tokens)
    record.cost, record.usage_source = model.rates.cost(usage), "provider"
    first = before + model.first_token_ms * random.lognormvariate(0, 0.3) + record.input_tokens / 60
    whole = first + output_tokens * model.token_ms * random.lognormvariate(0, 0.15)
    is_stream = record.endpoint in (CHAT, RESPONSES) and random.random() < 0.6
    record.first_token_ms = round(first, 3) if is_stream else None
    upstream = first if is_stream else whole
    calls = (before, upstream - before) if before else (upstream,)
    _time(record, random, *calls, total=whole)


def _answer_again(record: UsageRecord, model: DemoModel, caller: Caller, random: Random) -> None:
    """Complete the record of a call that was answered from the cache, or together with an identical one."""
    tokens = _tokens(caller, random)
    record.cache, record.usage_source = ("coalesced" if random.random() < 0.06 else "hit"), "cache"
    record.saved_cost = model.rates.cost(Usage(**tokens))
    waited = model.first_token_ms * random.uniform(0.2, 1) if record.cache == "coalesced" else 0.0
    _time(record, random, total=random.lognormvariate(1.2, 0.4) + waited)
    record.stages += f" flight={waited:.1f}" if waited else ""


def _fail_over(
    record: UsageRecord, model: DemoModel, caller: Caller, is_open: bool, outage: Outage, random: Random
) -> None:
    """Complete the record of a call in the outage: another provider answers, if there is one."""
    down = f"{DOWN}/{model.upstream_name}"
    asked = f"{down}: http 502"
    skipped = f"deployment {down} is not asked since {outage.noticed.astimezone(UTC):%H:%M} UTC: http 502"
    if SPARE in model.providers:
        record.deployment = f"{SPARE}/{model.upstream_name}"
        _answer(record, model, random, before=0 if is_open else 230, **_tokens(caller, random))
        record.failures = skipped if is_open else asked
    elif is_open and random.random() < 0.6:
        record.status, record.error_code, record.deployment, record.failures = 503, "upstream_busy", "", skipped
        record.latency_ms = round(random.uniform(1, 3), 3)
    else:
        _fail(record, f"{asked}; {asked}", random)


def _fail(record: UsageRecord, failures: str, random: Random) -> None:
    record.status, record.error_code, record.failures = 502, "upstream_failed", failures
    waited = 400 + 300 * random.lognormvariate(0, 0.3)
    _time(record, random, 0.4 * waited, 0.6 * waited, total=waited)


def _time(record: UsageRecord, random: Random, *calls: float, total: float) -> None:
    """Set the attempts, and the milliseconds of the request, of its stages and of its calls to providers."""
    limits, cache = random.uniform(0.3, 0.9), random.uniform(0.2, 0.6)
    record.attempts = len(calls)
    record.latency_ms = round(total + limits + cache, 3)
    record.stages = f"limits={limits:.1f} cache={cache:.1f}" + (f" upstream={sum(calls):.1f}" if calls else "")
    record.stages += "".join(f" attempt{number}={ms:.1f}" for number, ms in enumerate(calls, 1))


def _chosen(shares: Mapping[str, float], random: Random) -> str:
    return random.choices(list(shares), list(shares.values()))[0]
