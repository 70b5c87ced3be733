"""A small load generator in a process of its own, and what a run of it cost: CPU and memory from /proc, rate, latency.

As a command it is the generator: `python bench/harness.py < PLAN.json` sends the plan's requests and prints the result.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
#: Stands in a plan's body for a number that is another one in every request; of fixed width, as its length counts.
NUMBER = "#NUMBER#"
#: Stands in a plan's headers for that number modulo the plan's `turns`.
TURN = "#TURN#"
WIDTH = len(NUMBER)


@dataclass(frozen=True)
class Plan:
    """POST requests over kept-alive connections.

    Without a `rate` a connection sends its next request when the one before it was answered. With one (requests a
    second of all connections together) each sends at even times of its own, which begin by `chance`, and its latency
    counts from the time that a request was due, whether or not the connection was free. `statuses`: those that are no
    failure.
    """

    port: int
    path: str
    headers: dict[str, str]
    body: str
    seconds: float
    connections: int = 32
    rate: float = 0.0
    statuses: tuple[int, ...] = (200,)
    chance: int = 0
    turns: int = 1


@dataclass(frozen=True)
class Result:
    """What came out: answers a second, milliseconds, and CPU milliseconds a request of each group of processes."""

    requests: int
    failures: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def run(
    plan: Plan, groups: dict[str, int], *, warm_up: float = 1.0, settle: Callable[[], object] = lambda: None
) -> Result:
    """Run a plan, after a short one that warms up; `groups` names process trees by the pid of their root.

    `settle` waits until what the requests left to do is done: it counts as theirs.

    Raises AssertionError if a request failed: a benchmark of errors says nothing.
    """
    _generate(replace(plan, seconds=warm_up))
    settle()
    before = {name: cpu_seconds(pid) for name, pid in groups.items()}
    told = _generate(plan)
    settle()
    requests, own_cpu = told["requests"], told.pop("own_cpu")
    cpu = {name: (cpu_seconds(pid) - before[name]) * 1000 / requests for name, pid in groups.items()}
    assert told["failures"] == 0, told
    return Result(**told, cpu_ms={**cpu, "load generator": own_cpu * 1000 / requests})


def _generate(plan: Plan) -> dict[str, float]:
    command, written = [sys.executable, __file__], json.dumps(asdict(plan))
    done = subprocess.run(command, input=written, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def cpu_seconds(root: int) -> float:
    """Return the CPU time that a process and its living descendants have used, in seconds."""
    return sum(_cpu_seconds(pid) for pid in tree(root))


def tree(root: int) -> Iterable[int]:
    """Yield a process and its descendants."""
    yield root
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        for pid in children.read_text().split():
            yield from tree(int(pid))


def memory_mib(root: int) -> float:
    """Return the memory of a process and its descendants, in MiB: what they share counts once (PSS)."""
    return sum(map(pss_mib, tree(root)))


def pss_mib(pid: int) -> float:
    """Return a process's proportional set size in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# The generator: one asyncio loop, no HTTP library


class Connection(asyncio.Protocol):
    """One connection, which sends one request after the other until the time is over."""

    def __init__(self, generator: Generator, due: float) -> None:
        self.generator, self.due = generator, due
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.go_on()

    def go_on(self) -> None:
        """Send the next request when it is due, or close when the time is over."""
        loop, interval = self.generator.loop, self.generator.interval
        self.due = self.due + interval if interval else loop.time()
        if self.due >= self.generator.ends_at:
            self.transport.close()
        elif self.due <= loop.time():
            self.send()
        else:
            loop.call_at(self.due, self.send)

    def send(self) -> None:
        """Send a request."""
        self.transport.write(self.generator.next_request())

    def data_received(self, data: bytes) -> None:
        """Take an answer when its head and body are there."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if separator and len(body) >= _content_length(head):
            self.buffer = b""
            self.generator.take(self.generator.loop.time() - self.due, int(head[9:12]))
            self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count as a failure what closed before its time."""
        self.generator.closed(early=self.due < self.generator.ends_at)


class Generator:
    """All connections of a plan and what they saw."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.interval = plan.connections / plan.rate if plan.rate else 0.0
        self.latencies: list[float] = []
        self.failures = 0
        self.ends_at = 0.0
        self._open = plan.connections
        self._number = time.time_ns() // 1000 % 10 ** (WIDTH - 1)
        self._done = asyncio.Event()
        head = [f"POST {plan.path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        head += [f"Content-Length: {len(plan.body)}", *(f"{name}: {text}" for name, text in plan.headers.items())]
        whole = "\r\n".join(head) + "\r\n\r\n" + plan.body
        self._request = whole.encode()

    def next_request(self) -> bytes:
        """Make the bytes of the next request."""
        self._number += 1
        turn = b"%08d" % (self._number % self.plan.turns)
        return self._request.replace(NUMBER.encode(), b"%0*d" % (WIDTH, self._number)).replace(TURN.encode(), turn)

    def take(self, latency: float, status: int) -> None:
        """Note an answer."""
        self.latencies.append(latency)
        self.failures += status not in self.plan.statuses

    def closed(self, *, early: bool) -> None:
        """Note that a connection is closed."""
        self.failures += early
        self._open -= 1
        if self._open == 0:
            self._done.set()

    async def run(self) -> dict[str, float]:
        """Open the connections, wait for their end, and sum up."""
        begins = random.Random(self.plan.chance)
        started = self.loop.time()
        self.ends_at = started + self.plan.seconds
        for _ in range(self.plan.connections):
            due = started - self.interval * begins.random()
            await self.loop.create_connection(lambda at=due: Connection(self, at), "127.0.0.1", self.plan.port)  # type: ignore[misc]
        await self._done.wait()
        ordered = sorted(self.latencies)
        return {
            "requests": len(ordered),
            "failures": self.failures,
            "seconds": self.loop.time() - started,
            "p50_ms": ordered[len(ordered) // 2] * 1000,
            "p99_ms": ordered[len(ordered) * 99 // 100] * 1000,
            "own_cpu": time.process_time(),
        }


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, text = line.partition(b":")
        if name.lower() == b"content-length":
            return int(text)
    raise ValueError(f"an answer without a length: {head!r}")


async def _run(plan: Plan) -> dict[str, float]:
    return await Generator(plan).run()


def main() -> None:
    """Carry out the plan of the standard input."""
    plan = Plan(**json.load(sys.stdin))
    # select() keeps time to the microsecond, where epoll does to the millisecond; it takes fewer connections.
    selector = selectors.SelectSelector() if plan.connections < 1000 else selectors.DefaultSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        print(json.dumps(runner.run(_run(plan))))


if __name__ == "__main__":
    main()
