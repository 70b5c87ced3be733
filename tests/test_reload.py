"""No request fails when a server is reloaded, or stopped behind a balancer and replaced by another one.

Two servers of two workers run on one database and one Redis behind a balancer, which passes connections on and tries
the other server only where one refuses. Callers ask it fifty times a second, plain and streamed, half of them on kept
connections; meanwhile a server is reloaded (SIGHUP), and each is stopped (SIGTERM) and replaced.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.balancer import Balancer, balancer
from tests.running import (
    Platform,
    Reply,
    Served,
    chat,
    completion,
    event,
    running_platform,
    scripted_provider,
    wait_until,
)
from tests.servers import Redis, Service
from tests.streams import Stream, data_of
from tests.traffic import Traffic

pytestmark = pytest.mark.timeout(300)  # servers start and load, and the machine may be busy

WORKERS = 2
IDLE = 20
#: Connections that are opened at once while a server stops.
BURST = 100
WORD = event({"id": "c", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})
LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def streamed(words: int, pause: float) -> Reply:
    """Make a stream of so many words with pauses between them."""
    pieces: list[bytes | float] = [piece for _ in range(words) for piece in (WORD, pause)]
    return Reply(body=[*pieces, event("[DONE]")])


@dataclass
class Pair:
    """Servers behind a balancer."""

    servers: list[Platform]
    front: Balancer
    stack: ExitStack

    def traffic(self) -> Traffic:
        """Make callers of the balancer."""
        return Traffic(self.front.port, self.servers[0].key, "plain", "streamed")

    def start(self) -> None:
        """Start one server more, and put it behind the balancer once it answers."""
        self.servers.append(self.stack.enter_context(self.servers[0].twin()))
        self.front.targets.append(self.servers[-1].service.port)

    def stop(self) -> Platform:
        """Tell the server that runs longest to end, as an orchestrator does: nobody tells the balancer before."""
        leaving = self.servers.pop(0)
        leaving.service.process.send_signal(signal.SIGTERM)
        return leaving

    def take_off(self, ended: Platform) -> None:
        """Wait until a server has ended, and take it off the balancer."""
        ended.service.process.wait(30)
        self.front.targets.remove(ended.service.port)


@pytest.fixture(scope="module")
def pair(prepared: Callable[[], dict[str, str]], own_redis: Redis) -> Iterator[Pair]:
    """Run two servers behind a balancer."""
    env = {**prepared(), "REDIS_URL": own_redis.url}
    with ExitStack() as stack:
        provider = stack.enter_context(scripted_provider())
        provider.script("plain", completion("Hello"))
        provider.script("streamed", streamed(5, 0.02))
        provider.script("long", streamed(60, 0.1))
        served = [Served(name, [provider.base_url]) for name in ("plain", "streamed", "long")]
        first = stack.enter_context(running_platform(env, served, workers=WORKERS))
        front = stack.enter_context(balancer(first.service.port))
        running = Pair([first], front, stack)
        running.start()
        yield running


def read_answer(connection: socket.socket) -> bytes:
    """Read until the end of /health/live's answer, or of the connection."""
    answer = b""
    while not answer.endswith(b"}") and (piece := connection.recv(65_536)):
        answer += piece
    return answer


@dataclass
class Idle:
    """Connections to a server that were answered once, or never used, and wait."""

    kept: list[socket.socket] = field(default_factory=list)
    fresh: list[socket.socket] = field(default_factory=list)

    def open(self, port: int) -> None:
        """Open them."""
        for _ in range(IDLE):
            self.kept.append(socket.create_connection(("127.0.0.1", port), timeout=20))
            self.kept[-1].sendall(LIVE)
            assert b"200 OK" in read_answer(self.kept[-1])
            self.fresh.append(socket.create_connection(("127.0.0.1", port), timeout=20))

    def last_words(self) -> Counter[bytes]:
        """Read each to its end."""
        words = Counter(connection.recv(65_536) for connection in (*self.kept, *self.fresh))
        for connection in (*self.kept, *self.fresh):
            connection.close()
        return words


def is_rid_of(service: Service, workers: set[int]) -> bool:
    """Look whether none of these workers is left."""
    return not workers & set(service.worker_pids())


def ask_once(port: int) -> str:
    """Ask on a new connection; return `answered`, `refused`, or what else happened."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(LIVE)
            answer = read_answer(connection)
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return repr(error)
    return "answered" if b"200 OK" in answer and answer.endswith(b"}") else repr(answer)


def test_it_fails_no_request_when_it_is_reloaded(pair: Pair, scale: Callable[[int, int], int]) -> None:
    traffic = pair.traffic()
    with traffic.running():
        traffic.wait_for(25)
        for _ in range(scale(1, 4)):
            service = pair.servers[0].service
            idle, old = Idle(), set(service.worker_pids())
            idle.open(service.port)
            told_at = time.monotonic()
            service.process.send_signal(signal.SIGHUP)
            wait_until(partial(is_rid_of, service, old), "the old workers to end", 120)
            took = time.monotonic() - told_at
            meanwhile = [each.seconds for each in traffic.outcomes if each.began_at > told_at]
            assert max(meanwhile) < took / 2, "nobody waits for a new worker to load"
            assert len(service.worker_pids()) == WORKERS
            assert idle.last_words() == {b"": 2 * IDLE}, "idle connections are closed, and nothing is written"
        traffic.wait_for(50)
    assert traffic.failures() == []


def test_it_fails_no_request_while_servers_are_replaced_one_by_one(
    pair: Pair, scale: Callable[[int, int], int]
) -> None:
    traffic = pair.traffic()
    with traffic.running():
        traffic.wait_for(25)
        for _ in range(scale(2, 6)):
            idle = Idle()
            idle.open(pair.servers[0].service.port)
            told_at = time.monotonic()
            leaving = pair.stop()
            assert idle.last_words() == {b"": 2 * IDLE}, "idle connections are closed, and nothing is written"
            pair.take_off(leaving)
            assert time.monotonic() - told_at < 20, "nobody keeps the server from ending"
            assert any(each.is_kept and each.says_close for each in traffic.outcomes if each.began_at > told_at)
            pair.start()
        traffic.wait_for(50)
    assert traffic.failures() == []


def test_it_answers_or_refuses_whoever_connects_while_it_stops(pair: Pair) -> None:
    port, stop, heard = pair.servers[0].service.port, threading.Event(), Counter[str]()
    stream = Stream(pair.servers[0].service, {**chat("long"), "stream": True}, key=pair.servers[0].key)
    assert stream.answer().status == 200

    def knock() -> None:
        while not stop.is_set():
            heard.update([ask_once(port)])

    with ThreadPoolExecutor(BURST) as pool:
        for _ in range(8):
            pool.submit(knock)
        wait_until(lambda: heard["answered"] > 20, "the first answers")
        leaving = pair.stop()
        for _ in range(3):
            heard.update(pool.map(ask_once, [port] * (BURST - 8)))
        wait_until(lambda: heard["refused"] > 20, "the first to be refused")
        stop.set()
    assert set(heard) == {"answered", "refused"}
    assert data_of(stream.text())[-1] == "[DONE]", "a stream that was open goes on to its end"
    pair.take_off(leaving)


def test_it_bills_a_stream_once_that_is_open_while_the_only_worker_is_replaced(
    prepared: Callable[[], dict[str, str]],
) -> None:
    with scripted_provider() as provider:
        provider.script("long", streamed(60, 0.1))
        with running_platform(prepared(), [Served("long", [provider.base_url])]) as platform:
            stream = Stream(platform.service, {**chat("long"), "stream": True}, key=platform.key)
            assert stream.answer().status == 200
            old = set(platform.service.worker_pids())
            platform.service.process.send_signal(signal.SIGHUP)
            assert data_of(stream.text())[-1] == "[DONE]"
            wait_until(partial(is_rid_of, platform.service, old), "the old worker to end", 120)
            rows = platform.rows("SELECT label, status, error_code FROM monitoring_requestrecord")
            assert rows == [{"label": stream.label, "status": 200, "error_code": ""}]
