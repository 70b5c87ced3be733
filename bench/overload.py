"""Measure a worker under overload: `python bench/overload.py [SECONDS] [SHED_DELAY]` prints two tables.

One gevent worker on PostgreSQL and Redis with the ingester beside it. First cache misses and hits arrive at one, two
and five times the rate that the worker sustains, whether or not the earlier ones were answered. Then IN_FLIGHT calls
are open at once, since the provider takes as long as keeps their arrival at half of that rate. Run it on a quiet
machine: the load generator, the provider and the stores share it with the worker.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin"), str(ROOT / "bench")]

from harness import NUMBER, WIDTH, Plan, cpu_seconds, pss_mib, run  # noqa: E402

from launch.environment import free_port  # noqa: E402

DEFAULT_SECONDS = 8.0
LOADS = (1, 2, 5)
#: Share of a load's time that is left out of the rate of its answers.
WARM_UP = 0.25
IN_FLIGHT = 2000
#: Seconds after the last arrival in which answers are waited for.
PATIENCE = 20.0
#: Connections of the load generator: more arrivals than that wait for one.
MOST_CONNECTIONS = 2200
#: Seconds that a message asks the provider to take, as "hold 1.5".
HOLD = re.compile(rb"hold (\d+\.\d+)")
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-3.5-turbo",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 13, "completion_tokens": 3, "total_tokens": 16},
    }
).encode()


@dataclass(frozen=True)
class Arrivals:
    """POST requests that arrive at a rate over kept-alive connections, whether or not the earlier ones are answered."""

    port: int
    path: str
    headers: dict[str, str]
    body: str
    rate: float
    seconds: float


@dataclass
class Outcome:
    """What came of them: seconds from arrival to answer, by status; `in_time`: 200s after the warm-up."""

    sent: int = 0
    in_time: int = 0
    lost: int = 0
    most_open: int = 0
    latencies: dict[str, list[float]] = field(default_factory=dict)

    def percentile(self, status: str, share: float) -> float:
        """Return a percentile of the seconds until a status; NaN without any."""
        ordered = sorted(self.latencies.get(status, []))
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")

    def number(self, status: str) -> int:
        """Return how often a status was answered."""
        return len(self.latencies.get(status, []))


def arrive(arrivals: Arrivals) -> Outcome:
    """Send the requests from a process of its own."""
    command = [sys.executable, __file__, "arrivals"]
    done = subprocess.run(command, input=json.dumps(asdict(arrivals)), stdout=subprocess.PIPE, text=True, check=True)
    return Outcome(**json.loads(done.stdout))


class Client(asyncio.Protocol):
    """A kept-alive connection of the load generator with at most one request in flight."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.arrived_at: float | None = None
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, arrived_at: float, request: bytes) -> None:
        """Send a request, which arrived at a time."""
        self.arrived_at = arrived_at
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note an answer once it is complete."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        assert self.arrived_at is not None, self.buffer
        arrived_at, self.arrived_at, self.buffer = self.arrived_at, None, b""
        self.generator.answered(self, head[9:12].decode(), arrived_at)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the request in flight as lost."""
        self.generator.closed(self)


class Generator:
    """The connections of the load generator, and what they saw."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.outcome = Outcome()
        self._idle: list[Client] = []
        self._waiting: list[tuple[float, bytes]] = []
        self._connections = self._open = 0
        self._number = time.time_ns() // 1000 % 10 ** (WIDTH - 1)
        head = [f"POST {arrivals.path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        head += [
            f"Content-Length: {len(arrivals.body)}",
            *(f"{name}: {text}" for name, text in arrivals.headers.items()),
        ]
        self._request = ("\r\n".join(head) + "\r\n\r\n" + arrivals.body).encode()

    async def run(self) -> Outcome:
        """Let the requests arrive, and wait for their answers."""
        self._began = time.perf_counter()
        total = int(self.arrivals.rate * self.arrivals.seconds)
        while self.outcome.sent < total:
            due = min(total, int((time.perf_counter() - self._began) * self.arrivals.rate) + 1)
            while self.outcome.sent < due:
                self._number += 1
                request = self._request.replace(NUMBER.encode(), b"%0*d" % (WIDTH, self._number))
                self._dispatch(self._began + self.outcome.sent / self.arrivals.rate, request)
                self.outcome.sent += 1
            await asyncio.sleep(0.001)
        ends_at = time.perf_counter() + PATIENCE
        while (self._open or self._waiting) and time.perf_counter() < ends_at:  # noqa: ASYNC110  (nothing to set an event)
            await asyncio.sleep(0.01)
        self.outcome.lost += self._open + len(self._waiting)
        return self.outcome

    def _dispatch(self, arrived_at: float, request: bytes) -> None:
        if self._idle:
            self._open += 1
            self._idle.pop().send(arrived_at, request)
        else:
            self._waiting.append((arrived_at, request))
            if self._connections < MOST_CONNECTIONS:
                self._connections += 1
                asyncio.get_running_loop().create_task(self._connect())
        self.outcome.most_open = max(self.outcome.most_open, self._open)

    async def _connect(self) -> None:
        try:
            _, client = await asyncio.get_running_loop().create_connection(
                lambda: Client(self), "127.0.0.1", self.arrivals.port
            )
        except OSError:
            self._connections -= 1
            return
        self._free(client)

    def _free(self, client: Client) -> None:
        if self._waiting:
            self._open += 1
            client.send(*self._waiting.pop(0))
        else:
            self._idle.append(client)

    def answered(self, client: Client, status: str, arrived_at: float) -> None:
        """Note an answer, and use its connection again."""
        now = time.perf_counter()
        self._open -= 1
        self.outcome.latencies.setdefault(status, []).append(now - arrived_at)
        share = (now - self._began) / self.arrivals.seconds
        self.outcome.in_time += status == "200" and WARM_UP <= share <= 1
        self._free(client)

    def closed(self, client: Client) -> None:
        """Note the end of a connection, and of the request that was in flight there."""
        self._connections -= 1
        if client.arrived_at is not None:
            self._open -= 1
            self.outcome.lost += 1
        elif client in self._idle:
            self._idle.remove(client)


class Provider(asyncio.Protocol):
    """A provider that answers at once, or after the seconds that the message names."""

    buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer once the whole request is there."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if not separator or (length and len(body) < int(length[1])):
            return
        hold, self.buffer = HOLD.search(body), b""
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            len(ANSWER),
            ANSWER,
        )
        asyncio.get_running_loop().call_later(float(hold[1]) if hold else 0, self.transport.write, answer)


async def provide(port: int) -> None:
    """Run the provider."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


@contextmanager
def provider() -> Iterator[str]:
    """Run the provider in a process of its own and yield its base URL."""
    from bed import process

    port = free_port()
    with process([sys.executable, __file__, "provider", str(port)], port):
        yield f"http://127.0.0.1:{port}/v1"


def measure(seconds: float, shed_delay: str) -> None:
    """Start all, and print what comes of each load."""
    from bed import MAKE_KEY, ingester

    from tests.servers import aiapi_server
    from tests.stores import postgres_server, redis_server

    with ExitStack() as stack:
        stores = {
            "DATABASE_URL": stack.enter_context(postgres_server()).create_database(),
            "REDIS_URL": stack.enter_context(redis_server()).url,
        }
        upstream = {"OPENAI_BASE_URL": stack.enter_context(provider()), "OPENAI_API_KEY": "sk-of-the-benchmark"}
        service = stack.enter_context(aiapi_server({**stores, **upstream, "SHED_DELAY": shed_delay}))
        key = service.manage("shell", "-c", MAKE_KEY).split()[-1]
        stack.enter_context(ingester(service))
        time.sleep(2)
        (worker,) = service.worker_pids()

        rate = measure_overload(service.port, key, worker, seconds)
        measure_in_flight(service.port, key, worker, rate / 2)


def measure_overload(port: int, key: str, worker: int, seconds: float) -> float:
    """Print what comes of each load, and return the sustained rate of misses."""
    print("| | offered/s | answered/s | of the sustained rate | p50 s | p99 s | shed | p99 s | lost | worker CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rates = []
    for name, message in (("miss", f"Number {NUMBER}"), ("hit", "What is the capital of France?")):
        plan = Plan(port, "/chat", {"X-API-Key": key}, json.dumps({"message": message}), seconds)
        rates.append(run(plan, {"worker": worker}).rate)
        for times in LOADS:
            before = cpu_seconds(worker)
            found = arrive(Arrivals(port, plan.path, plan.headers, plan.body, rates[-1] * times, seconds))
            used, shed = cpu_seconds(worker) - before, found.number("503")
            goodput = found.in_time / seconds / (1 - WARM_UP)
            print(
                f"| {name} x {times} | {rates[-1] * times:.0f} | {goodput:.0f} | {goodput / rates[-1]:.0%} "
                f"| {found.percentile('200', 0.5):.2f} | {found.percentile('200', 0.99):.2f} | {shed / found.sent:.0%} "
                f"| {found.percentile('503', 0.99):.2f} | {found.lost} | {used / seconds:.0%} |",
                flush=True,
            )
    return rates[0]


def measure_in_flight(port: int, key: str, worker: int, rate: float) -> None:
    """Let calls arrive at a rate whose provider takes so long that IN_FLIGHT are open at once, and print the result."""
    hold = IN_FLIGHT / rate
    body = json.dumps({"message": f"Number {NUMBER} hold {hold:.2f}"})
    found = arrive(Arrivals(port, "/chat", {"X-API-Key": key}, body, rate, hold * 1.2))
    slowest = found.percentile("200", 1)
    memory = pss_mib(worker)
    print("\n| calls | most open at once | provider's time s | answered | slowest s | of its time | shed | PSS MiB |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {found.sent} | {found.most_open} | {hold:.1f} | {found.number('200') / found.sent:.1%} | {slowest:.1f} "
        f"| {slowest / hold:.2f} x | {found.number('503')} | {memory:.0f} |"
    )


def main() -> None:
    """Run as the benchmark, or as one of its processes."""
    match sys.argv[1:]:
        case ["arrivals"]:
            outcome = asyncio.run(Generator(Arrivals(**json.load(sys.stdin))).run())
            print(json.dumps(asdict(outcome)))
        case ["provider", port]:
            asyncio.run(provide(int(port)))
        case [seconds, shed_delay]:
            measure(float(seconds), shed_delay)
        case given:
            measure(float(given[0]) if given else DEFAULT_SECONDS, "1")


if __name__ == "__main__":
    main()
