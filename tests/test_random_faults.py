"""Faults at random, and clients that leave at random: in the end the ledger is the provider's bill, to the nano-dollar.

10 % of the provider's answers are 500s, 5 % dropped connections, 5 % 429s; a third of the clients leave early. What the
platform could not know (a stream that broke off, an attempt without an answer) is marked as estimated or bound.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from inference.fake_provider import FakeCall, FakeUpstream
from tests import load
from tests.catalogue import Record, Served, records, set_up
from tests.load import Ask
from tests.processes import wait_until
from tests.servers import Service, aiapi_server
from tests.stores import Redis
from tests.streams import CHAT, asked

MODEL = "unlucky"
#: Dollars per million tokens (thousands of nano-dollars a token) of each part, and dollars a request.
PRICES = {"cache_write_per_million": 3, "reasoning_per_million": 20, "per_request": 1}
#: Shares of the prompt that the provider read from its cache and wrote to it, and of the answer that is reasoning.
PARTS = {"cached_ratio": 0.4, "cache_write_ratio": 0.3, "reasoning_ratio": 0.3}
MESSAGES = "/v1/messages"
LABEL = re.compile(r"request-\d+")
TEXT = " ".join(["word"] * 9)
FAULTS = {"http_500": 0.10, "reset": 0.05, "http_429": 0.05}
AT_ONCE = 40


@dataclass
class Run:
    """What was asked, by label; what the platform recorded; what the provider billed, by label."""

    asked: list[str]
    records: dict[str, list[Record]]
    billed: dict[str, list[FakeCall]]
    month: dict[str, Any]
    slots: int
    reasoning_ratio: float


@pytest.fixture(scope="module")
def own_fake() -> Iterator[FakeUpstream]:
    """Run a provider of this module's own."""
    with FakeUpstream(seed=20) as server:
        yield server


#: The number of workers, the endpoint, and the style of the provider.
RUNS = {
    "one worker": (1, CHAT, "openai"),
    "two workers": (2, CHAT, "openai"),
    "Anthropic's messages": (1, MESSAGES, "anthropic"),
    "messages translated": (1, MESSAGES, "openai"),
    "chat translated": (1, CHAT, "anthropic"),
}


@pytest.fixture(scope="module", params=RUNS)
def run(
    request: pytest.FixtureRequest,
    own_fake: FakeUpstream,
    prepared: Callable[[], dict[str, str]],
    own_redis: Redis,
    scale: Callable[[int, int], int],
) -> Run:
    """Send the requests, wait until all is settled, and collect what each side says."""
    own_fake.reset()
    settings = {"OPENAI_BASE_URL": own_fake.base_url, "OPENAI_API_KEY": "sk-fake"}
    workers, path, style = RUNS[request.param]
    if workers > 1:
        settings = {**prepared(), "REDIS_URL": own_redis.url}
    with aiapi_server(settings, workers=workers, prepare=workers == 1) as service:
        model = Served(MODEL, [own_fake.base_url], prices=PRICES, provider={"style": style})
        key = set_up(service, [model], account=f"random-{workers}")
        parts = PARTS if style == "openai" else {**PARTS, "reasoning_ratio": 0.0}  # which Anthropic does not report
        labels = [f"request-{number}" for number in range(scale(150, 4000))]
        own_fake.set(faults=FAULTS, latency_ms=5, chunk_interval_ms=8, retry_after=0, **parts)
        asyncio.run(send_all(service, key, labels, path))
        return collect(service, own_fake, key, labels)


async def send_all(service: Service, key: str, labels: list[str], path: str) -> None:
    """Send them all, some at a time."""
    chance, places = random.Random(5), asyncio.Semaphore(AT_ONCE)

    async def one(label: str, stream: bool, patience: float) -> None:
        async with places:
            body = {**asked(MODEL, f"{label} {TEXT}", max_tokens=60), "stream": stream}
            await load.ask(Ask(service.port, key, body, path, label, patience))

    plans = [
        (label, chance.random() < 0.6, chance.uniform(0.01, 0.1) if chance.random() < 1 / 3 else load.PATIENCE)
        for label in labels
    ]
    await asyncio.gather(*(one(*plan) for plan in plans))


def collect(service: Service, own_fake: FakeUpstream, key: str, labels: list[str]) -> Run:
    """Wait until nothing is open any more, and read both sides."""
    own_fake.wait_idle(20)
    found: list[Record] = []

    def complete() -> bool:
        found[:] = records(service)
        return len({record.label for record in found}) >= len(labels)

    wait_until(complete, "the records", 30)
    by_label: dict[str, list[Record]] = defaultdict(list)
    for record in found:
        by_label[record.label].append(record)
    billed: dict[str, list[FakeCall]] = defaultdict(list)
    posts = [received for received in own_fake.requests if received.method == "POST"]
    for received, call in zip(posts, own_fake.billed, strict=True):
        (label,) = set(LABEL.findall(str(received.body["messages"])))
        billed[label].append(call)
    limits = service.request("GET", "/usage", key=key).json()["limits"]
    own = {each["name"]: each["used"] for each in limits if each["owner"] == "key"}
    return Run(labels, by_label, billed, own, own["concurrent_requests"], own_fake.settings.reasoning_ratio)


def tokens(call: FakeCall) -> int:
    return call.prompt_tokens + call.completion_tokens


def bill(call: FakeCall, reasoning_ratio: float) -> int:
    """Return what the provider bills for a call, in nano-dollars."""
    if not tokens(call):
        return 0
    plain = call.prompt_tokens - call.cached_tokens - call.cache_write_tokens
    reasoning = int(call.completion_tokens * reasoning_ratio)
    thousands = plain * 2 + call.cached_tokens + call.cache_write_tokens * 3
    thousands += (call.completion_tokens - reasoning) * 10 + reasoning * 20
    return thousands * 1000 + 10**9


def charged(record: Record) -> int:
    return record.input_tokens + record.output_tokens


def test_it_records_each_request_once(run: Run) -> None:
    assert sorted(run.records) == sorted(run.asked)
    assert all(len(found) == 1 for found in run.records.values())
    assert run.slots == 0


def test_it_met_every_kind_of_luck(run: Run) -> None:
    faults = Counter(call.fault for calls in run.billed.values() for call in calls)
    assert all(faults[fault] for fault in FAULTS)
    codes = Counter(found[0].error_code for found in run.records.values())
    assert codes[""] > len(run.asked) / 2
    assert codes["client_left"] > len(run.asked) / 20


def test_it_charges_to_the_token_what_the_provider_bills(run: Run) -> None:
    crossed = 0
    for label, (record,) in run.records.items():
        calls = run.billed[label]
        billed = sum(map(tokens, calls))
        if record.usage_source == "provider":
            assert (record.input_tokens, record.output_tokens) == (
                sum(call.prompt_tokens for call in calls),
                sum(call.completion_tokens for call in calls),
            )
            assert record.cost == sum(bill(call, run.reasoning_ratio) for call in calls)
        elif record.usage_source == "bound":
            assert any(call.fault == "reset" for call in calls)
            assert charged(record) >= billed
        elif record.usage_source == "estimated":
            assert (record.error_code, record.is_partial) == ("client_left", True)
            was_unheard = record.attempts > len(calls)  # broken off while it connected
            if not (was_unheard or billed > 0 or calls[-1].outcome == "client_left" or calls[-1].fault == "reset"):
                assert calls[-1].outcome == "failed"
                crossed += 1  # the refusal was on its way when the client left, so nobody here ever read it
        else:
            assert billed == 0, label
            assert record.cost == 0
        # An attempt that was broken off while it connected never reached the provider. One that met the end of a kept
        # connection was sent twice.
        most, resets = int(record.error_code == "client_left"), sum(call.fault == "reset" for call in calls)
        assert -resets <= record.attempts - len(calls) <= most
    assert crossed <= len(run.asked) / 50, "that is a matter of milliseconds"


def test_it_charges_no_call_that_the_provider_does_not_know(run: Run) -> None:
    exact = {label for label, (record,) in run.records.items() if record.usage_source == "provider"}
    ours = sum(charged(run.records[label][0]) for label in exact)
    assert ours == sum(tokens(call) for label in exact for call in run.billed[label]) > 0
    assert set(run.billed) <= set(run.asked)


def test_it_sums_up_in_the_ledger_what_the_log_holds(run: Run) -> None:
    everything = [found[0] for found in run.records.values()]
    assert run.month["monthly_tokens"] == sum(map(charged, everything))
    assert round(float(run.month["monthly_cost"]) * 10**9) == sum(record.cost for record in everything)
