"""Single flight between two servers: one call to the provider, one answer for all, and no answer lost with a leader."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from inference.fake_provider import FakeUpstream
from tests import load
from tests.answers import data_of
from tests.catalogue import Served, record_of, records, set_up
from tests.load import Ask
from tests.processes import wait_until
from tests.servers import Service, aiapi_server
from tests.stores import Redis
from tests.streams import CHAT, Stream, asked

MODEL = "shared"
SPARED = "spared"
CALLERS = 100
PATIENCE = 30.0
#: Seconds that a call may take, and a stream until its first byte.
LIMIT = 4.0


#: A key of the callers' account with room for one answer, but for no second try.
POOR_KEY = """
from accounts.models import Account
from accounts.tests.factories import make_key, make_tier
tier = make_tier("poor", requests_per_minute=None, tokens_per_minute=400)
print(make_key(account=Account.objects.get(name="e2e"), tier=tier, name="poor").plain)
"""


@dataclass
class Pair:
    """Two servers that share their stores, and their provider."""

    services: tuple[Service, Service]
    fake: FakeUpstream
    key: str


@pytest.fixture(scope="module")
def own_fake() -> Iterator[FakeUpstream]:
    """Run a provider of this module's own."""
    with FakeUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def running(own_fake: FakeUpstream, own_redis: Redis, prepared: Callable[[], dict[str, str]]) -> Iterator[Pair]:
    """Run two servers."""
    env = {**prepared(), "REDIS_URL": own_redis.url, "UPSTREAM_TIMEOUT": str(LIMIT)}
    with (
        FakeUpstream() as spare,
        aiapi_server(env, prepare=False) as one,
        aiapi_server(env, prepare=False) as other,
    ):
        served = [Served(MODEL, [own_fake.base_url]), Served(SPARED, [own_fake.base_url, spare.base_url])]
        yield Pair((one, other), own_fake, set_up(one, served))


@pytest.fixture
def pair(running: Pair) -> Iterator[Pair]:
    """Return the servers, with a provider without a past."""
    running.fake.reset()
    yield running
    running.fake.reset()


@pytest.fixture(scope="module")
def poor(running: Pair) -> str:
    """Return the poor key."""
    return running.services[0].manage("shell", "-c", POOR_KEY).strip().splitlines()[-1]


@dataclass(frozen=True)
class Got:
    """What one caller got; status 0 where its server died. `at` is monotonic."""

    status: int
    cache: str
    body: str
    at: float

    @property
    def answer(self) -> Any:
        """Return what was answered, without what keeps a connection alive."""
        return self.body.replace(": keep-alive\n\n", "")


async def ask(port: int, key: str, body: dict[str, Any]) -> Got:
    """Ask on a connection of its own."""
    reply = await load.ask(Ask(port, key, body, CHAT, patience=PATIENCE))
    return Got(reply.status, reply.headers.get("x-cache", "").lower(), reply.body.decode(), time.monotonic())


def ask_all(pair: Pair, body: dict[str, Any], number: int = CALLERS) -> list[Got]:
    """Ask both servers the same, all at once."""

    async def run() -> list[Got]:
        ports = [service.port for service in pair.services]
        return await asyncio.gather(*(ask(ports[i % 2], pair.key, body) for i in range(number)))

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_it_sends_a_hundred_identical_calls_once(pair: Pair, stream: bool) -> None:
    pair.fake.set(latency_ms=1000)
    before = len(records(pair.services[0]))
    body = {**asked(MODEL, f"All at once {stream}", temperature=0), "stream": stream}
    got = ask_all(pair, body)
    assert Counter(each.status for each in got) == {200: CALLERS}
    assert len(pair.fake.billed) == 1
    assert len({each.answer for each in got}) == 1
    assert "All" in got[0].answer
    outcomes = Counter(each.cache for each in got)
    assert outcomes["miss"] == 1
    assert outcomes["coalesced"] + outcomes["hit"] == CALLERS - 1

    def recorded() -> bool:
        return len(records(pair.services[0])) == before + CALLERS

    wait_until(recorded, "the records", 20)
    mine = records(pair.services[0])[before:]
    assert Counter(record.cost > 0 for record in mine) == {True: 1, False: CALLERS - 1}
    assert sum(record.input_tokens + record.output_tokens for record in mine) == sum(
        call.prompt_tokens + call.completion_tokens for call in pair.fake.billed
    )


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_it_shares_a_failure(pair: Pair, stream: bool) -> None:
    pair.fake.set(latency_ms=1000, faults={"http_400": 1})
    got = ask_all(pair, {**asked(MODEL, f"refused {stream}", temperature=0), "stream": stream}, 20)
    assert Counter(each.status for each in got) == {400: 20}
    assert all('"code":"context_length_exceeded"' in each.body for each in got)
    assert len(pair.fake.requests) == 1


def test_it_shares_a_stream_that_breaks_off(pair: Pair) -> None:
    pair.fake.set(chunk_interval_ms=200, faults={"cut": 1})
    got = ask_all(pair, asked(MODEL, "one two three four", temperature=0), 10)
    assert Counter(each.status for each in got)[200] >= 1, "the leader's had begun"
    assert all('"code":"upstream_failed"' in each.body for each in got)
    assert len(pair.fake.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_it_lets_nobody_wait_longer_than_a_call_may_take(pair: Pair, stream: bool) -> None:
    pair.fake.set(faults={"hang": 1})
    began = time.monotonic()
    got = ask_all(pair, {**asked(MODEL, f"silence {stream}", temperature=0), "stream": stream}, 20)
    assert Counter(each.status for each in got) == {504: 20}
    assert len(pair.fake.requests) == 1
    assert max(each.at for each in got) - began < LIMIT + 1.5


def test_it_lets_streams_follow_one_that_takes_longer_than_its_first_byte_may(pair: Pair) -> None:
    pair.fake.set(chunk_interval_ms=600, tokens=10)
    got = ask_all(pair, asked(MODEL, "at length", temperature=0), 10)
    assert Counter(each.status for each in got) == {200: 10}
    assert len({each.answer for each in got}) == 1
    assert data_of(got[0].answer)[-1] == "[DONE]"
    assert len(pair.fake.requests) == 1


def test_it_shares_with_a_caller_whose_own_limits_are_spent(pair: Pair, poor: str) -> None:
    """What leads holds all that the key may use; who follows elsewhere takes nothing."""
    pair.fake.set(latency_ms=1000)
    body = {**asked(MODEL, "on the house", temperature=0, max_tokens=200), "stream": False}

    async def run() -> list[Got]:
        return await asyncio.gather(*(ask(service.port, poor, body) for service in pair.services))

    got = asyncio.run(run())
    assert Counter((each.status, each.cache) for each in got) == {(200, "miss"): 1, (200, "coalesced"): 1}
    assert len(pair.fake.requests) == 1


def test_it_keeps_what_the_limits_of_one_key_say_from_the_others(pair: Pair, poor: str) -> None:
    """A key without room for a second deployment leads; the one that waits has room, and asks by itself."""
    pair.fake.set(latency_ms=1000, faults={"broken_json": 1})
    body = {**asked(SPARED, "whose limits", temperature=0, max_tokens=100), "stream": False}

    async def run() -> tuple[Got, list[Got]]:
        leader = asyncio.create_task(ask(pair.services[0].port, poor, body))
        await asyncio.to_thread(wait_until, lambda: bool(pair.fake.requests), "the leader's call")
        refused, *got = await asyncio.gather(leader, *(ask(service.port, pair.key, body) for service in pair.services))
        return refused, got

    refused, got = asyncio.run(run())
    assert refused.status == 502
    assert Counter(each.status for each in got) == {200: 2}
    assert Counter(each.cache for each in got) == {"miss": 1, "coalesced": 1}


def followed_elsewhere(pair: Pair, text: str, *, tokens: int) -> tuple[Stream, Stream]:
    """Let one server stream an answer, and another wait for it."""
    pair.fake.set(chunk_interval_ms=300, tokens=tokens)
    body = asked(MODEL, text, temperature=0)
    leader = Stream(pair.services[0], body, key=pair.key)
    leader.answer()
    follower = Stream(pair.services[1], body, key=pair.key)
    time.sleep(0.5)
    return leader, follower


def test_it_goes_on_for_those_who_wait_elsewhere_when_the_leader_s_client_leaves(pair: Pair) -> None:
    leader, follower = followed_elsewhere(pair, "left behind", tokens=8)
    leader.leave()
    follower.answer()
    assert data_of(follower.text())[-1] == "[DONE]"
    assert [call.outcome for call in pair.fake.billed] == ["complete"]
    assert record_of(pair.services[0], leader.label).status == 200
    assert record_of(pair.services[0], follower.label).cache == "coalesced"


def test_it_goes_on_for_nobody_who_has_left_elsewhere(pair: Pair) -> None:
    leader, follower = followed_elsewhere(pair, "deserted", tokens=30)
    follower.leave()
    time.sleep(2)
    left_at = leader.leave()
    wait_until(lambda: pair.fake.billed[-1].outcome == "client_left", "the provider's stream to be closed", 5)
    assert (pair.fake.billed[-1].ended_at or 0) - left_at < 1
    assert len(pair.fake.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_it_lets_one_follower_take_over_when_the_leader_s_worker_is_killed(pair: Pair, stream: bool) -> None:
    """The followers of another server notice within about a second that nobody renews the lease."""
    pair.fake.set(latency_ms=1500)
    body = {**asked(MODEL, f"orphaned {stream}", temperature=0), "stream": stream}
    leader, other = pair.services

    async def run() -> tuple[float, float, list[Got]]:
        first = asyncio.create_task(ask(leader.port, pair.key, body))
        await asyncio.to_thread(wait_until, lambda: bool(pair.fake.billed), "the leader's call")
        following = [asyncio.create_task(ask(other.port, pair.key, body)) for _ in range(10)]
        await asyncio.sleep(0.3)
        leader.kill_worker(leader.worker_pids()[0])
        killed_at = time.monotonic()
        await asyncio.to_thread(wait_until, lambda: len(pair.fake.billed) > 1, "another to take over")
        taken_at = time.monotonic()
        assert (await first).status == 0
        return killed_at, taken_at, list(await asyncio.gather(*following))

    killed_at, taken_at, got = asyncio.run(run())
    assert taken_at - killed_at < 1.3
    assert Counter(each.status for each in got) == {200: 10}
    assert len({each.answer for each in got}) == 1
    assert Counter(each.cache for each in got)["coalesced"] == 9
    assert len(pair.fake.billed) == 2
    wait_until(leader.is_live, "the worker to be replaced")
