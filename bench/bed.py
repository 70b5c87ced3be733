"""What the benchmarks share: servers in processes of their own, a fake provider, a worker, and a key without limits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

from harness import Plan  # noqa: E402

from launch.environment import free_port  # noqa: E402
from tests.processes import spawn, wait_for_port  # noqa: E402
from tests.servers import Service, clean_environment  # noqa: E402

MAKE_KEY = """
from accounts.models import Tier
from accounts.tests.factories import make_key
print(make_key(tier=Tier.objects.create(name="unlimited")).plain)
"""


@contextmanager
def process(
    command: Sequence[str | Path], port: int, *, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> Iterator[int]:
    """Run a server of the benchmark, with these settings and no others, until it listens; yield its pid."""
    log = Path("/tmp", f"aiapi-bench-{port}.log")  # noqa: S108
    started = spawn([*map(str, command)], log, env={**clean_environment(), **(env or {})}, cwd=cwd)
    try:
        wait_for_port(port, started, log)
        yield started.pid
    finally:
        started.terminate()
        started.wait()
        log.unlink()


@contextmanager
def fake_provider(*options: str) -> Iterator[tuple[int, int]]:
    """Run the fake provider, which answers at once unless told otherwise; yield its port and pid."""
    port = free_port()
    command = [sys.executable, "manage.py", "fake_upstream", "--port", str(port), *(options or ("--tokens", "20"))]
    with process(command, port) as pid:
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
