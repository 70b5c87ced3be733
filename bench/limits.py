"""Measure what a limit call costs, and that it does not grow with the limit: `python bench/limits.py [REDIS_URL]`.

Starts a Valkey of its own unless it is given one, which it flushes. Prints two tables:
time of Redis (from INFO commandstats) and CPU of the client for each call, by limit, with the request log full to
that limit; and bytes of Redis memory for each active key, with 100 requests in its log, and for each request while
Redis remembers that it was recorded.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

import redis  # noqa: E402
from django.conf import settings  # noqa: E402

from accounts.limits.records import UsageRecord  # noqa: E402
from accounts.limits.scripts import prefix_of, records_stream  # noqa: E402
from accounts.limits.types import REFUSALS_A_MINUTE, SECOND, Amount, Bound, Limits, LimitSet, RefusalGroup, Subject  # noqa: E402
from accounts.tests.limits_fixtures import Clock, limits_on  # noqa: E402
from core.times import month_of  # noqa: E402
from tests.stores import redis_server  # noqa: E402

LIMITS = (5, 100, 1_000, 10_000, 100_000)
CALLS = 2_000
ROUNDS = 5
PLENTY = 10**12
DRAFT = UsageRecord(
    label="1",
    admitted_at=1,
    account_id=1,
    account_name="acme",
    key_id=1,
    key_name="ci",
    endpoint="chat",
    model="gpt-4o-mini",
    status=200,
    attempts=1,
)
REFUSAL_GROUP = RefusalGroup("key:1", "chat:429:rate_limited::")


class Ticking:
    """A clock that moves by a thousandth of a window a call, so that the log neither grows nor drains."""

    def __init__(self, limit: int) -> None:
        self.now, self.tick = 1_800_000_000 * SECOND, 60 * SECOND // limit + 1

    def __call__(self) -> int:
        self.now += self.tick
        return self.now


@contextmanager
def redis_url() -> Iterator[str]:
    """Return the URL from the command line, or that of a server started here."""
    if len(sys.argv) > 1:
        yield sys.argv[1]
    else:
        with redis_server() as server:
            yield server.url


def a_scope(limit: int) -> LimitSet:
    limits = Limits(limit, PLENTY, PLENTY, PLENTY, PLENTY)
    return LimitSet(1, (Subject("key", "1", limits), Subject("account", "1", limits)))


def fill(client: Any, scope: LimitSet, clock: Ticking, entries: int) -> None:
    """Fill the request logs as if so many requests had come in the last minute."""
    begin = clock.now - entries * clock.tick
    for subject in scope.subjects:
        name = f"{prefix_of(scope.shard)}{subject.name}:q"
        for start in range(0, entries, 10_000):
            stop = min(start + 10_000, entries)
            client.rpush(name, *(begin + number * clock.tick for number in range(start, stop)))


def script_time(client: Any) -> tuple[int, float]:
    """Return how many scripts Redis has run, and the µs they took."""
    stats = client.info("commandstats")
    runs = [stats[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats]
    return sum(run["calls"] for run in runs), sum(run["usec"] for run in runs)


def measure(client: Any, call: Callable[[int], object]) -> tuple[float, float]:
    """Return µs of Redis and µs of client CPU a call, each the median of some rounds."""
    call(-1)  # so that the script is loaded
    servers, clients, number = [], [], 0
    for _ in range(ROUNDS):
        (runs, spent), cpu = script_time(client), time.process_time()
        for _ in range(CALLS):
            call(number)
            number += 1
        cpu = time.process_time() - cpu
        (runs_after, spent_after) = script_time(client)
        assert runs_after - runs == CALLS
        servers.append((spent_after - spent) / CALLS)
        clients.append(cpu / CALLS * 1e6)
    return statistics.median(servers), statistics.median(clients)


def measure_limit(client: Any, url: str, limit: int) -> dict[str, tuple[float, float]]:
    """Measure every call under one limit, with a log that is nearly full to it."""
    client.flushall()
    scope, clock = a_scope(limit), Ticking(limit)
    backend = limits_on(url, clock=clock)
    fill(client, scope, clock, limit - 1)
    backend.admit(scope, "warm")
    backend.usage(scope)
    bound, used, at = Bound(Amount(50, 500), 200, 600_000_000, minimum_output=1), Amount(120, 50_000), clock.now

    def settle(number: int) -> None:
        backend.settle(scope, f"op-{number}", admitted_at=at, used=used, record=DRAFT)

    def reserve(number: int) -> None:
        backend.reserve(scope, f"op-{number}", admitted_at=at, bound=bound, draft=DRAFT)

    admit = measure(client, lambda number: backend.admit(scope, f"op-{number}"))
    clock.tick = 0  # or the first leases would run out while the last are taken
    full = limits_on(url, clock=Clock(clock.now - 1))
    fill(client, scope, clock, 5)
    return {
        "admit": admit,
        "refuse": measure(client, lambda number: full.admit(scope, f"no-{number}")),
        "peek": measure(client, lambda _: backend.peek(scope)),
        "reserve": measure(client, reserve),
        "renew": measure(client, lambda number: backend.renew(1, [f"op-{number}"])),
        "settle": measure(client, settle),
        "emit": measure(client, lambda number: backend.emit(1, f"hit-{number}", DRAFT)),
        "refusal": measure(client, lambda number: backend.emit(1, f"no-{number}", DRAFT, group=REFUSAL_GROUP)),
        "usage": measure(client, lambda _: backend.usage(scope, month_of(at))),
    }


def bytes_per_key(client: Any, url: str, keys: int = 1_000) -> dict[str, float]:
    """Return bytes of Redis memory for a key (and its account) by its use."""
    sizes = {}
    for name, requests, calls in (
        ("one request", 1, 0),
        ("100 requests", 100, 0),
        ("100 requests, 1 open call", 100, 1),
    ):
        client.flushall()
        backend = limits_on(url)
        before = client.info("memory")["used_memory"]
        for number in range(keys):
            limits = Limits(1000, PLENTY, PLENTY, PLENTY, PLENTY)
            scope = LimitSet(number, (Subject("key", str(number), limits), Subject("account", str(number), limits)))
            for request in range(requests):
                admission = backend.admit(scope, f"0190{number:08d}-{request:04d}-7000-8000-000000000000")
            for call in range(calls):
                operation = f"0190{number:08d}-{call:04d}-7000-8000-000000000000"
                bound = Bound(Amount(50, 500), 200, 600_000_000)
                backend.reserve(scope, operation, admitted_at=admission.at, bound=bound, draft=DRAFT)
        for marker in client.scan_iter("*a:*", count=1000):
            client.unlink(
                marker
            )  # the markers of admitted operations, gone after two minutes, are counted by themselves
        sizes[name] = (client.info("memory")["used_memory"] - before) / keys
    return sizes


def bytes_per_request(client: Any, url: str, requests: int = 10_000) -> dict[str, float]:
    """Return bytes of Redis memory for a request whose record was ingested, by its outcome."""
    sizes = {}
    for name, group in (("a hit, for a minute", None), ("a refusal beyond the rate, for ten seconds", REFUSAL_GROUP)):
        client.flushall()
        backend = limits_on(url)
        for number in range(REFUSALS_A_MINUTE):
            backend.emit(1, f"single-{number}", DRAFT, group=REFUSAL_GROUP)
        before = client.info("memory")["used_memory"]
        for number in range(requests):
            backend.emit(1, f"0190{number:028d}", DRAFT, group=group)
            if number % 100 == 0:
                client.xtrim(records_stream(1), 0)
        client.unlink(records_stream(1))
        sizes[name] = (client.info("memory")["used_memory"] - before) / requests
    return sizes


def main() -> None:
    """Measure, and print the tables."""
    settings.configure()  # ledgers are seeded without a database here
    with redis_url() as url:
        client: Any = redis.Redis.from_url(url)
        results = {limit: measure_limit(client, url, limit) for limit in LIMITS}
        print("µs of Redis / µs of client CPU a call (key and account, all five limits set)\n")
        print("| limit | " + " | ".join(results[LIMITS[0]]) + " |")
        print("|---" * (len(results[LIMITS[0]]) + 1) + "|")
        for limit, row in results.items():
            cells = (f"{server:.0f} / {cpu:.0f}" for server, cpu in row.values())
            print(f"| {limit:,} | " + " | ".join(cells) + " |")
        print("\nbytes of Redis memory for a key and its account, each with a log, a window and a ledger\n")
        for name, size in bytes_per_key(client, url).items():
            print(f"- {name}: {size:,.0f}")
        print("\nbytes of Redis memory for a request, apart from its record\n")
        for name, size in bytes_per_request(client, url).items():
            print(f"- {name}: {size:,.0f}")


if __name__ == "__main__":
    main()
