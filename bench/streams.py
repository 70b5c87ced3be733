"""Measure streams: `python bench/streams.py` prints two tables, `--streams N` the second one alone.

How much later the first token comes than from the provider itself, at 1, 32 and 200 streams at once; and what many
open streams cost one worker: memory each, CPU a chunk, beside a relay that does nothing else. 200 streams of 14 s, or N
of N/50 s more than 10; 100 begin each second. One gevent worker, PostgreSQL, Redis and the ingester beside it, a fake
provider in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

AT_ONCE = (1, 32, 200)
PATH = "/v1/chat/completions"
#: Chunks a second over all streams that are held open.
RATES = (1000, 5000)
PACKAGES = ("Django", "gunicorn", "gevent", "openai")
LAST_CHUNK = b"\r\n0\r\n\r\n"
#: A bucket of the chunks' histogram, in seconds; narrow beside the time over which the CPU is measured.
BUCKET = 0.1


@dataclass(frozen=True)
class Plan:
    """Streams that begin evenly over `ramp` seconds, each followed by another until `seconds` are over.

    One stream lasts so many seconds: `lasts`.
    """

    port: int
    key: str
    streams: int
    ramp: float
    seconds: float = 0.0
    lasts: float = 0.0


@dataclass
class Seen:
    """What the generator saw: seconds to each stream's first token, whole streams, chunks by bucket of time."""

    first_tokens: list[float] = field(default_factory=list)
    complete: int = 0
    failed: int = 0
    chunks: Counter[int] = field(default_factory=Counter)

    def first_token_ms(self, share: float) -> float:
        """Return a quantile of the time to the first token."""
        ordered = sorted(self.first_tokens)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000

    def chunks_between(self, began: float, ended: float) -> int:
        """Count the chunks of a time (monotonic seconds)."""
        return sum(number for bucket, number in self.chunks.items() if began <= bucket * BUCKET < ended)


class Listener(asyncio.Protocol):
    """One connection, on which one stream follows the other until the plan's time is over."""

    def __init__(self, request: bytes, seen: Seen, ends_at: float) -> None:
        self.request, self.seen, self.ends_at = request, seen, ends_at
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first stream."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Ask for a stream."""
        self.asked_at, self.has_token, self.tail = time.monotonic(), False, b""
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Count chunks; at the end of a stream ask for another, or go."""
        now = time.monotonic()
        number = data.count(b"data: {")
        self.seen.chunks[int(now / BUCKET)] += number
        if number and not self.has_token:
            self.has_token = True
            self.seen.first_tokens.append(now - self.asked_at)
        self.tail = (self.tail + data)[-64:]
        if not self.tail.endswith(LAST_CHUNK):
            return
        is_whole = b"data: [DONE]\n\n" in self.tail
        self.seen.complete += is_whole
        self.seen.failed += not is_whole
        if now < self.ends_at:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that breaks in a stream is a failure."""
        self.seen.failed += not self.tail.endswith(LAST_CHUNK)
        self.over.set_result(None)


async def listen(plan: Plan) -> Seen:
    """Carry out a plan."""
    body = json.dumps({"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "hello"}], "stream": True})
    head = [f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", f"X-API-Key: {plan.key}", "Content-Type: application/json"]
    request = "\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode()
    seen, loop = Seen(), asyncio.get_running_loop()
    ends_at = time.monotonic() + plan.seconds
    waiting = []
    for _ in range(plan.streams):
        _, listener = await loop.create_connection(lambda: Listener(request, seen, ends_at), "127.0.0.1", plan.port)
        waiting.append(listener.over)
        await asyncio.sleep(plan.ramp / plan.streams)
    await asyncio.gather(*waiting)
    return seen


def generate(plan: Plan) -> Seen:
    """Carry out a plan in a process of its own."""
    command = [sys.executable, __file__, "--generate"]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout)
    told["chunks"] = Counter({int(bucket): number for bucket, number in told["chunks"].items()})
    seen = Seen(**told)
    assert seen.failed == 0, f"{seen.failed} streams failed"
    return seen


@contextmanager
def served(*, tokens: int, interval_ms: float) -> Iterator[tuple[int, Any, str]]:
    """Run the provider and the platform; yield the provider's port, the service, and a key without limits."""
    from bed import MAKE_KEY, fake_provider, ingester

    from tests.servers import aiapi_server
    from tests.stores import postgres_server, redis_server

    with ExitStack() as stack:
        options = ("--tokens", str(tokens), "--chunk-interval", str(interval_ms))
        port, _ = stack.enter_context(fake_provider(*options))
        postgres, redis = stack.enter_context(postgres_server()), stack.enter_context(redis_server())
        stores = {"DATABASE_URL": postgres.create_database(), "REDIS_URL": redis.url}
        provider = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "sk-of-the-benchmark"}
        service = stack.enter_context(aiapi_server({**stores, **provider}))
        stack.enter_context(ingester(service))
        key = service.manage("shell", "-c", MAKE_KEY).split()[-1]
        generate(Plan(service.port, key, 8, ramp=0.1))
        time.sleep(2)  # until what has just started is at rest
        yield port, service, key


def first_tokens() -> Iterator[str]:
    """Compare the time to the first token, the platform's and the provider's own, line by line."""
    yield "| streams at once | direct p50 ms | p99 ms | platform p50 ms | p99 ms | added p50 ms | p99 ms |"
    yield "|---|---|---|---|---|---|---|"
    with served(tokens=50, interval_ms=100) as (port, service, key):
        for number in AT_ONCE:
            direct = generate(Plan(port, key, number, ramp=4.0, seconds=14.0))
            ours = generate(Plan(service.port, key, number, ramp=4.0, seconds=14.0))
            pairs = [(each.first_token_ms(0.5), each.first_token_ms(0.99)) for each in (direct, ours)]
            (d50, d99), (p50, p99) = pairs
            row = [number, *(f"{ms:.1f}" for ms in (d50, d99, p50, p99, p50 - d50, p99 - d99))]
            yield f"| {' | '.join(map(str, row))} |"


@dataclass(frozen=True)
class Held:
    """What many open streams cost while none began or ended: CPU in microseconds a chunk, memory in KiB a stream."""

    seen: Seen
    chunks_per_second: float
    cpu_us: float
    kib: float


def hold(plan: Plan, root: int, worker: int) -> Held:
    """Hold the streams of a plan open; the CPU is that of `root` and its children, the memory the worker's."""
    from harness import cpu_seconds

    before = resident_bytes(worker)
    marks: list[tuple[float, float, int]] = []

    def watch() -> None:
        for wait in (plan.ramp + 1, plan.lasts - plan.ramp - 2):
            time.sleep(wait)
            marks.append((time.monotonic(), cpu_seconds(root), resident_bytes(worker)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    seen = generate(plan)
    watcher.join()
    (began, cpu_began, _), (ended, cpu_ended, most) = marks
    chunks = seen.chunks_between(began, ended)
    kib = (most - before) / 1024 / plan.streams
    return Held(seen, chunks / (ended - began), (cpu_ended - cpu_began) * 1e6 / chunks, kib)


@contextmanager
def bare_relay(to: int) -> Iterator[tuple[int, int]]:
    """Run the relay that does nothing else; yield its port and process."""
    from bed import process

    from launch.environment import free_port

    port = free_port()
    with process([sys.executable, ROOT / "bench" / "relay.py", str(port), str(to)], port) as pid:
        yield port, pid


def open_streams(streams: int, seconds: float) -> Iterator[str]:
    """Hold many streams open, at two rates, through the bare relay and through the platform, line by line."""
    yield "| streams | of seconds | chunks/s | bare relay: CPU µs a chunk | platform | ratio | KiB a stream | failed |"
    yield "|---|---|---|---|---|---|---|---|"
    for rate in RATES:
        interval_ms = streams * 1000 / rate
        with served(tokens=round(seconds * 1000 / interval_ms), interval_ms=interval_ms) as (port, service, key):
            plan = Plan(service.port, key, streams, ramp=streams / 100, lasts=seconds)
            with bare_relay(port) as (relay, pid):
                bare = hold(replace(plan, port=relay), pid, pid)
            (worker,) = service.worker_pids()
            ours = hold(plan, service.process.pid, worker)
        yield (
            f"| {streams:,} | {seconds:.0f} | {bare.chunks_per_second:,.0f} / {ours.chunks_per_second:,.0f} "
            f"| {bare.cpu_us:.1f} | {ours.cpu_us:.1f} | {ours.cpu_us / bare.cpu_us:.2f} | {ours.kib:.0f} "
            f"| {ours.seen.failed} of {ours.seen.complete:,} |"
        )


def resident_bytes(pid: int) -> int:
    """Return the memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Measure and print."""
    if "--generate" in sys.argv:
        print(json.dumps(vars(asyncio.run(listen(Plan(**json.load(sys.stdin)))))))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {versions}\n")
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--streams", type=int)
    streams: int | None = arguments.parse_args().streams
    if streams is None:
        print("\n".join(first_tokens()), end="\n\n")
    streams = streams or 200
    for line in open_streams(streams, 10 + streams / 50):
        print(line, flush=True)  # a line takes more than a minute


if __name__ == "__main__":
    main()
