"""Measure what `bin/run` holds of memory: `python bench/memory.py [REQUESTS] [FOLDER]` prints a table while it runs.

One web worker on SQLite and Valkey, as `bin/run` starts them, or on the stores that DATABASE_URL and REDIS_URL name; a
fake provider in a process of its own that answers at once. Misses and hits of ten keys take turns; calls that a busy
machine sheds (503) count as well. The figure is the proportional set size (PSS): memory that processes share counts
once. Stores are left out. FOLDER is another tree of the project, such as a worktree of an earlier revision.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

from bed import chat, fake_provider  # noqa: E402
from harness import NUMBER, pss_mib, run, tree  # noqa: E402

from tests.servers import Service, launched  # noqa: E402

#: Requests between two lines of the table, and at all unless others are asked for.
STEP, REQUESTS = 5_000, 100_000
MAKE_KEYS = """
from accounts.models import Tier
from accounts.tests.factories import make_key
tier = Tier.objects.create(name="unlimited")
print(*[make_key(tier=tier, name=f"key {number}").plain for number in range(10)])
"""
STORES = ("DATABASE_URL", "REDIS_URL", "CACHE_URL")


def processes(launcher: int) -> dict[int, float]:
    """Return the PSS of each process of bin/run, but for the stores."""
    ours = [pid for pid in tree(launcher) if b"valkey" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return {pid: pss_mib(pid) for pid in ours}


def load(service: Service, port: int, requests: int) -> None:
    """Send so many requests, print a line after every STEP of them, and at last the slope over the last two thirds."""
    keys = service.manage("shell", "-c", MAKE_KEYS).split()[-10:]
    sent, shown, samples = 0, 0, []
    while True:
        if sent >= shown:
            time.sleep(2)  # until the worker has written what was recorded
            held = processes(service.process.pid)
            samples.append((sent, sum(held.values())))
            print(
                f"| {sent:,} | {samples[-1][1]:.1f} | {' + '.join(f'{each:.1f}' for each in held.values())} |",
                flush=True,
            )
            shown += STEP
        if sent >= requests:
            break
        for message in (f"Number {NUMBER}", "What is the capital of France?"):
            plan = replace(chat(service.port, keys[sent % len(keys)], message, 2.0), statuses=(200, 503))
            sent += run(plan, {}, warm_up=0.1).requests
    late = [sample for sample in samples if sample[0] >= sent / 3]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope if len(late) > 1 else 0.0
    print(f"\nover the last two thirds: {slope * 1024 * 1000:+.1f} KiB for 1,000 requests")


def main(requests: int, folder: Path) -> None:
    """Start everything, and print the table."""
    stores = {name: os.environ[name] for name in STORES if name in os.environ}
    with ExitStack() as stack:
        port, _ = stack.enter_context(fake_provider())
        provider = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "sk-of-the-benchmark"}
        service = stack.enter_context(launched({**stores, **provider}, root=folder))
        print(next(line for line in service.log.read_text().splitlines() if "is ready" in line))
        print("\n| requests | PSS in MiB | of each process |\n|---|---|---|")
        load(service, port, requests)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS, Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else ROOT
    )
