"""Measure what a request costs, beside the bare framework: `python bench/hot_path.py [SECONDS]` prints one table.

One gevent worker, 32 connections, PostgreSQL, Redis and the ingester beside it, a fake provider that answers at once:
a cache miss, a cache hit, a bare Django REST framework view under the same gunicorn, and the fake provider by itself.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

from harness import NUMBER, Plan, Result, run  # noqa: E402

from launch.environment import free_port  # noqa: E402
from tests.processes import spawn, wait_for_port  # noqa: E402
from tests.servers import Service, aiapi_server, clean_environment  # noqa: E402
from tests.stores import postgres_server, redis_server  # noqa: E402

DEFAULT_SECONDS = 5.0
MAKE_KEY = """
from accounts.models import Tier
from accounts.tests.factories import make_key
print(make_key(tier=Tier.objects.create(name="unlimited")).plain)
"""
PACKAGES = ("Django", "djangorestframework", "gunicorn", "gevent", "redis", "openai", "psycopg")


@contextmanager
def process(command: list[str], port: int) -> Iterator[int]:
    """Run a server of the benchmark and yield its pid."""
    log = Path("/tmp", f"aiapi-bench-{port}.log")  # noqa: S108
    started = spawn(command, log, env=clean_environment(), cwd=ROOT)
    try:
        wait_for_port(port, started, log)
        yield started.pid
    finally:
        started.terminate()
        started.wait()
        log.unlink()


@contextmanager
def fake_provider() -> Iterator[tuple[int, int]]:
    """Run the fake provider in a process of its own; yield its port and pid."""
    port = free_port()
    with process([sys.executable, "manage.py", "fake_upstream", "--port", str(port), "--tokens", "20"], port) as pid:
        yield port, pid


@contextmanager
def bare_view() -> Iterator[tuple[int, int]]:
    """Run bare.py as the platform runs: one gevent worker, the same parser."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--chdir", "bench", "--bind", f"127.0.0.1:{port}"]
    with process(
        [*command, "--worker-class", "gevent", "--http-parser", "auto", "--no-control-socket", "bare:application"], port
    ) as pid:
        yield port, pid


@contextmanager
def ingester(service: Service) -> Iterator[int]:
    """Run a worker beside the service, which ingests; yield its pid."""
    started = subprocess.Popen([sys.executable, "manage.py", "worker"], env=service.env, cwd=ROOT)
    try:
        yield started.pid
    finally:
        started.terminate()
        started.wait()


def chat(port: int, key: str, message: str, seconds: float) -> Plan:
    """Plan calls of /chat."""
    return Plan(port, "/chat", {"X-API-Key": key}, json.dumps({"message": message}), seconds)


def measure(seconds: float) -> dict[str, Result]:
    """Run all four, one after the other."""
    with ExitStack() as stack:
        port, fake = stack.enter_context(fake_provider())
        bare_port, bare = stack.enter_context(bare_view())
        postgres, redis = stack.enter_context(postgres_server()), stack.enter_context(redis_server())
        stores = {"DATABASE_URL": postgres.create_database(), "REDIS_URL": redis.url}
        provider = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "sk-of-the-benchmark"}
        service = stack.enter_context(aiapi_server({**stores, **provider, "LOG_LEVEL": "INFO"}))
        key = service.manage("shell", "-c", MAKE_KEY).split()[-1]
        groups = {"server": service.process.pid, "redis": redis.process.pid, "fake": fake}
        groups["ingester"] = stack.enter_context(ingester(service))
        time.sleep(2)  # until what has just started is at rest
        direct = json.dumps({"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": f"Number {NUMBER}"}]})
        return {
            "fake provider, asked directly": run(
                Plan(port, "/v1/chat/completions", {}, direct, seconds), {"server": fake}
            ),
            "bare DRF view": run(chat(bare_port, "", f"Number {NUMBER}", seconds), {"server": bare}),
            "cache hit": run(chat(service.port, key, "What is the capital of France?", seconds), groups),
            "cache miss": run(chat(service.port, key, f"Number {NUMBER}", seconds), groups),
        }


def report(results: dict[str, Result]) -> str:
    """Write the table as Markdown."""
    bare = results["bare DRF view"].cpu_ms["server"]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {versions}",
        "",
        "| | requests/s | p50 ms | p99 ms | server CPU ms | of the bare view | Redis ms | ingester ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cpu = result.cpu_ms
        others = " | ".join(f"{cpu[each]:.2f}" if each in cpu else "" for each in ("redis", "ingester"))
        lines.append(
            f"| {name} | {result.rate:,.0f} | {result.p50_ms:.1f} | {result.p99_ms:.1f} | {cpu['server']:.2f} "
            f"| {cpu['server'] / bare:.1f} x | {others} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(measure(float(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_SECONDS)))
