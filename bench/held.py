"""Measure how long one body holds a worker: `python bench/held.py [FOLDER ...]` prints a table.

One gevent worker on SQLite, a fake provider in a process of its own that answers at once; meanwhile /health/live is
asked every 2 ms, and the longest wait for it counts. A FOLDER is another tree of the project, such as a worktree of an
earlier revision, that is measured in turns with this one.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin"), str(ROOT / "bench")]

ROUNDS = 5
MODEL = "held"
MESSAGE = {"role": "user", "content": "hello there 12"}
BODIES: dict[str, dict[str, Any]] = {
    "one message": {"messages": [MESSAGE]},
    "3 MiB of text in one": {"messages": [{"role": "user", "content": "hello there \n" * 240_000}]},
    "30 MB of text in one": {"messages": [{"role": "user", "content": "hello there \n" * 2_300_000}]},
    "15,990 messages": {"messages": [MESSAGE] * 15_990},
    "66,000 messages": {"messages": [MESSAGE] * 66_000},
    "59,000 names": {"messages": [MESSAGE], "more": {f"name {number}": 1 for number in range(59_000)}},
    "990,000 names": {"messages": [MESSAGE], "more": {f"name {number}": 1 for number in range(990_000)}},
}


def longest_wait(port: int, key: str, body: bytes) -> tuple[int, float]:
    """Send a body; return its answer's status and how long, in seconds, another request waited for its own at most."""
    waits: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while not is_over.wait(0.002):
            began = time.monotonic()
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            waits.append(time.monotonic() - began)
        connection.close()

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.1)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    is_over.set()
    asking.join()
    return answer.status, max(waits)


def main(folders: list[Path]) -> None:
    """Measure each body in each tree, and print the least of the longest waits."""
    from bed import fake_provider

    from tests.catalogue import Served, set_up
    from tests.servers import aiapi_server

    with ExitStack() as stack:
        port, _ = stack.enter_context(fake_provider())
        services = [stack.enter_context(aiapi_server(root=folder)) for folder in folders]
        models = [Served(MODEL, [f"http://127.0.0.1:{port}/v1"])]
        # With a limit on tokens, however high, bodies may be as large as MAX_V1_BODY_BYTES.
        served = [(each.port, set_up(each, models, tokens_per_minute=10**9)) for each in services]
        print(f"load {os.getloadavg()[0]:.1f}\n\n| body | bytes |{' ms | status |' * len(served)}")
        print(f"|---|---|{'---|---|' * len(served)}")
        for name, more in BODIES.items():
            body = json.dumps({"model": MODEL, **more}).encode()
            seen = [[longest_wait(port, key, body) for port, key in served] for _ in range(ROUNDS)]
            cells = [f"{min(wait for _, wait in each) * 1000:.0f} | {each[0][0]}" for each in zip(*seen, strict=True)]
            print(f"| {name} | {len(body):,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main([*(Path(folder) for folder in sys.argv[1:]), ROOT])
