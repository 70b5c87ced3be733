"""Measure that a request costs the same where there is more of everything: `python bench/scaling.py` prints one table.

In turns, on a platform with one worker, one key and an empty log; with two workers; with 100,000 keys, of which one
calls, or 500 in turn, each less than once a second, or each once and for the first time; and with a log of 5,000,000
records (or `--records N`). What a limit costs by its size is in limits.py.
"""

from __future__ import annotations

import argparse
import os
import platform as machine
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from statistics import median

import peers
import psycopg
from bed import fake_provider
from harness import NUMBER, TURN, Result
from log_fill import Caller, fill
from side_by_side import Row, chat, measure, say

KEYS, IN_TURN = 100_000, 500
MAKE_KEYS = f"""
from accounts.keys import accepted_peppers, digest_key
from accounts.models import ApiKey
pepper = accepted_peppers()[0]
shared = dict(account=Account.objects.get(name="bench"), tier=Tier.objects.get(name="bench"))
made = [
    ApiKey(**shared, name=str(number), pepper_id=pepper.id, digest=digest_key(f"bench-{{number:08d}}", pepper))
    for number in range({KEYS})
]
ApiKey.objects.bulk_create(made, batch_size=5_000)
"""


def fill_log(records: int, url: str) -> None:
    """Fill the log with records of the key."""
    with psycopg.connect(url) as connection:
        query = "SELECT account_id, 'bench', id, name FROM accounts_apikey WHERE name = 'bench'"
        callers = [Caller(*found) for found in connection.execute(query)]
    fill(url, callers, records)


def rows(stack: ExitStack, provider: str, records: int) -> Iterator[tuple[str, Row]]:
    """Start the platforms, and list what they are asked."""
    run = partial(peers.platform, provider)
    one = stack.enter_context(run(name="1 worker, 1 key, an empty log"))
    two = stack.enter_context(run(name="2 workers", workers=2))
    many = stack.enter_context(run(name=f"{KEYS:,} keys, one calls", script=MAKE_KEYS))
    full = stack.enter_context(run(name=f"{records:,} records", fill=partial(fill_log, records)))
    in_turn = replace(many, name=f"{KEYS:,} keys, {IN_TURN} call in turn", key=f"bench-{TURN}")
    all_call = replace(in_turn, name=f"{KEYS:,} keys, each calls once")
    for peer in (one, two, many, in_turn, all_call, full):
        for kind, message in (("miss", f"Number {NUMBER}"), ("hit", "What is the capital of France?")):
            row = chat(peer, kind, message)
            yield peer.name, replace(row, plan=replace(row.plan, turns=IN_TURN if peer is in_turn else KEYS))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--records", type=int, default=5_000_000)
    options = parser.parse_args()
    with ExitStack() as stack:
        port, _ = stack.enter_context(fake_provider())
        listed = [*rows(stack, f"http://127.0.0.1:{port}/v1", options.records)]
        found: dict[tuple[str, str], list[Result]] = {(name, row.kind): [] for name, row in listed}
        for _, row in listed:
            measure(row, seconds=1.0)
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for name, row in listed:
                found[name, row.kind].append(measure(row, seconds=options.seconds))
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {machine.python_version()}, {os.cpu_count()} cores\n")
    print("| | miss: CPU ms | of the first | with stores | of the first | requests/s | hit: CPU ms | of the first |")
    print("|---|---|---|---|---|---|---|---|")
    first: list[float] = []
    for name in dict.fromkeys(name for name, _ in found):
        misses, hits = found[name, "miss"], found[name, "hit"]
        own, hit = (median(each.cpu_ms["own"] for each in results) for results in (misses, hits))
        whole = median(sum(each.cpu_ms[group] for group in ("own", "stores")) for each in misses)
        first = first or [own, whole, hit]
        cells = [f"{own:.2f} | {own / first[0]:.2f} x", f"{whole:.2f} | {whole / first[1]:.2f} x"]
        cells += [f"{median(each.rate for each in misses):,.0f}", f"{hit:.2f} | {hit / first[2]:.2f} x"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
