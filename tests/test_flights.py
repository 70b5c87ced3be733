"""Single flight between two servers: one call to the provider, one answer for all, and no answer lost with a leader."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from inference.upstream.fake import FakeUpstream
from tests.catalogue import Served, records, set_up
from tests.processes import wait_until
from tests.servers import Redis, Service, aiapi_servers, fake_upstream
from tests.streams import CHAT, asked

MODEL = "shared"
CALLERS = 100
PATIENCE = 30.0


@dataclass
class Pair:
    """Two servers that share their stores, and their provider."""

    services: tuple[Service, Service]
    fake: FakeUpstream
    key: str


@pytest.fixture(scope="module")
def own_fake() -> Iterator[FakeUpstream]:
    """Run a provider of this module's own."""
    with fake_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def running(own_fake: FakeUpstream, own_redis: Redis, prepared: Callable[[], dict[str, str]]) -> Iterator[Pair]:
    """Run two servers."""
    with aiapi_servers({**prepared(), "REDIS_URL": own_redis.url}, 2) as (one, other):
        yield Pair((one, other), own_fake, set_up(one, [Served(MODEL, [own_fake.base_url])]))


@pytest.fixture
def pair(running: Pair) -> Iterator[Pair]:
    """Return the servers, with a provider without a past."""
    running.fake.reset()
    yield running
    running.fake.reset()


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
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.0\r\nHost: localhost\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        raw = await asyncio.wait_for(reader.read(-1), PATIENCE)
        writer.close()
    except ConnectionError:
        raw = b""
    header, _, said = raw.partition(b"\r\n\r\n")
    if not header:
        return Got(0, "", "", time.monotonic())
    lines = header.decode().lower().split("\r\n")
    cache = next((line.partition(": ")[2] for line in lines if line.startswith("x-cache:")), "")
    return Got(int(lines[0].split()[1]), cache, said.decode(), time.monotonic())


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
    pair.fake.set(latency_ms=500, faults={"http_400": 1})
    got = ask_all(pair, {**asked(MODEL, f"refused {stream}", temperature=0), "stream": stream}, 20)
    assert Counter(each.status for each in got) == {400: 20}
    assert len(pair.fake.billed) <= 2, "one for each server: a failure is not kept"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_it_lets_one_follower_take_over_when_the_leader_s_worker_is_killed(pair: Pair, stream: bool) -> None:
    """The followers of another server notice within about a second that nobody renews the lease."""
    pair.fake.set(latency_ms=2000)
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
