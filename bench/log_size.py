"""Measure that a large log costs no more than a small one: `python bench/log_size.py [--records N] [--parts ...]`.

Fills a log of 50,000 records and one of N (5,000,000), with their rollups, and asks one worker over HTTP, of both: the
statistics, the usage, the dashboard, and pages of the log. Then, of the large one: what an export takes of memory,
what pruning does to the requests beside it, and how many records a second an ingester moves. With `--beside FOLDER`,
another tree of the project that can read this one's tables, such as a worktree of an earlier revision, is asked for the
pages of the large log as well.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]

import psycopg  # noqa: E402
from bed import chat, fake_provider, ingester  # noqa: E402
from harness import Result, run  # noqa: E402
from ingest_rate import ingest_rate  # noqa: E402
from log_fill import DAYS, Caller, fill  # noqa: E402

from tests.servers import Service, aiapi_server, prepare_database  # noqa: E402
from tests.stores import Postgres, Redis, postgres_server, redis_server  # noqa: E402

SMALL = 50_000
PART = 1_000_000  # records that are exported, and pruned; of a smaller log, a fifth
SAMPLES = 100
PAGE = 50
PRUNE_SECONDS = 15.0
PARTS = ("pages", "export", "prune", "ingest")
LOG = "/admin/monitoring/requestrecord/"
RANGES = ("1 h", "24 h", "7 d", "30 d")  # of the dashboard

CAST = """
import json
from django.contrib.auth.models import User
from django.test import Client
from accounts.models import Tier
from accounts.tests.factories import make_account, make_key
tier = Tier.objects.create(name="unlimited")
accounts = [make_account() for _ in range(50)]
number = {keys}
owners = [accounts[0]] * (number // 10 - 2) + accounts * (1 + number // 50)
keys = [make_key(account=account, tier=tier) for account in owners[:number]]
browser = Client()
browser.force_login(User.objects.create_superuser("operator"))
callers = [[each.key.account_id, each.key.account.name, each.key.pk, each.key.name] for each in keys]
session = next(iter(browser.cookies.values()))
print(json.dumps(dict(callers=callers, key=keys[0].plain, cookie=session.key + "=" + session.value)))
"""


@dataclass(frozen=True)
class Site:
    """A platform on a log of some size; `key` is its busiest, `cookie` that of an operator's session."""

    service: Service
    records: int
    key: str
    cookie: str

    def sql(self, query: Any, *arguments: Any) -> Any:
        """Return the first column of the first row."""
        with psycopg.connect(self.service.env["DATABASE_URL"]) as connection:
            found = connection.execute(query, arguments).fetchone()
        return found[0] if found else None

    def record_at(self, number: int, *, newest_first: bool = False) -> tuple[datetime, Any]:
        """Return time of admission and id of a record of the log, counted from 0."""
        order = psycopg.sql.SQL("DESC" if newest_first else "ASC")
        query = psycopg.sql.SQL(
            "SELECT (admitted_at, id) FROM monitoring_requestrecord ORDER BY admitted_at {0}, id {0} OFFSET %s LIMIT 1"
        )
        admitted_at, identifier = self.sql(query.format(order), number)
        return datetime.fromisoformat(admitted_at).astimezone(UTC), identifier

    @property
    def part(self) -> int:
        """How many records are exported, and pruned."""
        return min(PART, self.records // 5)

    @property
    def operator(self) -> dict[str, str]:
        """The header of the operator's session."""
        return {"Cookie": self.cookie}


@dataclass(frozen=True)
class Stage:
    """The servers that all parts share, and the template of their databases with its cast."""

    postgres: Postgres
    redis: Redis
    provider: dict[str, str]
    template: str
    cast: dict[str, Any]

    @contextmanager
    def site(self, records: int) -> Iterator[Site]:
        """Fill a log, make its rollups, and run the platform on it with one worker."""
        url = self.postgres.create_database(self.template)
        began = time.monotonic()
        fill(url, [Caller(*each) for each in self.cast["callers"]], records)
        filled = time.monotonic()
        env = {**self.provider, "DATABASE_URL": url, "REDIS_URL": self.redis.url}
        with aiapi_server(env, prepare=False) as service:
            command = [sys.executable, "manage.py", "rebuild_rollups"]
            subprocess.run(command, env=service.env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            site = Site(service, records, self.cast["key"], self.cast["cookie"])
            rebuilt = time.monotonic()
            rows = site.sql("SELECT count(*) FROM monitoring_rollup")
            size = site.sql("SELECT pg_size_pretty(pg_database_size(current_database()))")
            took = f"filled in {filled - began:.0f} s, rollups made in {rebuilt - filled:.0f} s"
            say(f"{records:,} records: {took}, {rows:,} rows of rollups; {size} in all.")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            yield site


@contextmanager
def stage(keys: int) -> Iterator[Stage]:
    """Start the stores and a provider, and make 50 accounts and so many keys, a tenth of them of one account."""
    with ExitStack() as stack:
        port, _ = stack.enter_context(fake_provider())
        provider = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "sk-of-the-benchmark"}
        postgres, redis = stack.enter_context(postgres_server()), stack.enter_context(redis_server())
        url = postgres.create_database()
        env = {**provider, "DATABASE_URL": url, "REDIS_URL": redis.url}
        prepare_database(env)
        with aiapi_server(env, prepare=False) as service:
            cast = json.loads(service.manage("shell", "-c", CAST.replace("{keys}", str(keys))).strip().splitlines()[-1])
        yield Stage(postgres, redis, provider, url.rpartition("/")[2], cast)


# Pages


def probes(site: Site) -> dict[str, tuple[str, dict[str, str]]]:
    """Name what is asked: path and headers."""
    key, operator = {"X-API-Key": site.key}, site.operator
    today = datetime.now(UTC).date()
    month = f"/usage?from={today - timedelta(days=30)}&to={today + timedelta(days=1)}"
    before_last = _place(*site.record_at(PAGE))
    before_1000th = _place(*site.record_at(min(999 * PAGE, site.records - 1) - 1, newest_first=True))
    label = site.sql("SELECT label FROM monitoring_requestrecord WHERE id = %s", site.record_at(0)[1])
    account = quote(site.sql("SELECT name FROM accounts_account LIMIT 1"))
    return {
        "/stats, a key": ("/stats", key),
        "/stats, staff": ("/stats", operator),
        "/usage, this month by day": ("/usage", key),
        "/usage, 30 days by day and model": (f"{month}&group_by=day,model", key),
        "/usage, 30 days by key": (f"{month}&group_by=key", key),
        "an admin page without figures": ("/admin/password_change/", operator),
        **{f"dashboard, {name}": (f"/admin/?range={name.replace(' ', '')}", operator) for name in RANGES},
        "log, first page": (LOG, operator),
        "log, 1,000th page": (f"{LOG}?older={before_1000th}", operator),
        "log, last page": (f"{LOG}?older={before_last}", operator),
        "log, of an account": (f"{LOG}?account={account}", operator),
        "log, failed": (f"{LOG}?status=failed", operator),
        "log, a model nobody uses": (f"{LOG}?model=nobody-uses-it", operator),
        "log, an error nobody had": (f"{LOG}?status=418", operator),
        "log, a cache outcome nobody had": (f"{LOG}?cache=replay", operator),
        "log, the same of an account": (f"{LOG}?account={account}&cache=replay", operator),
        "log, one label": (f"{LOG}?q={label}", operator),
    }


def _place(admitted_at: datetime, identifier: Any) -> str:
    """Write a place of the list as its addresses have it."""
    return quote(f"{admitted_at.isoformat()}~{identifier}")


def ask(name: str, sites: Sequence[Site]) -> list[list[float]]:
    """Ask the sites again and again, in turns: what else goes on hits all. Return the milliseconds, sorted."""
    connections = [http.client.HTTPConnection("127.0.0.1", site.service.port, timeout=120) for site in sites]
    asked = [probes(site)[name] for site in sites]
    taken: list[list[float]] = [[] for _ in sites]
    for _ in range(SAMPLES + 3):
        for connection, (path, headers), times in zip(connections, asked, taken, strict=True):
            began = time.perf_counter()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            times.append((time.perf_counter() - began) * 1000)
            assert answer.status == 200, (path, answer.status, body[:500])
    for connection in connections:
        connection.close()
    return [sorted(times[3:]) for times in taken]


def pages(small: Site, large: Site, *others: Site) -> Iterator[str]:
    """Compare, line by line; `others` are other trees on the large log."""
    beside = "".join(f" beside: p50 | p95 | p50 of {other.service.folder.name}'s |" for other in others)
    ratio = f"p50 of that of {small.records:,}"
    yield f"| ms | {small.records:,}: p50 | p95 | {large.records:,}: p50 | p95 | {ratio} |{beside}"
    yield "|---|---|---|---|---|---|" + "---|---|---|" * len(others)
    p50, p95 = SAMPLES // 2, SAMPLES * 95 // 100
    for name in probes(small):
        few, many, *theirs = ask(name, (small, large, *others))
        line = f"| {name} | {few[p50]:.1f} | {few[p95]:.1f} | {many[p50]:.1f} | {many[p95]:.1f} "
        line += f"| {many[p50] / few[p50]:.2f} x |"
        yield line + "".join(
            f" {their[p50]:.1f} | {their[p95]:.1f} | {many[p50] / their[p50]:.2f} x |" for their in theirs
        )


@contextmanager
def another(site: Site, tree: Path) -> Iterator[Site]:
    """Run another tree of the project on a site's database."""
    env = {name: value for name, value in site.service.env.items() if name != "PORT"}
    with aiapi_server(env, prepare=False, root=tree.resolve()) as service:
        yield replace(site, service=service)


# Export


def export(site: Site) -> Iterator[str]:
    """Export a million records through a worker and by the command, and tell how much memory each took."""
    begin, _ = site.record_at(site.records - site.part)
    since = begin.isoformat().replace("+00:00", "Z")
    (worker,) = site.service.worker_pids()
    rested = _memory(worker, "VmRSS")
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # forgets the peak
    began = time.monotonic()
    lines = _download(site, f"{LOG}export/?format=csv&from={quote(since)}")
    took, most = time.monotonic() - began, _memory(worker, "VmHWM")
    yield "| export, CSV | rows | seconds | memory at rest MiB | at most | added |"
    yield "|---|---|---|---|---|---|"
    yield f"| by a worker, from the admin | {lines - 1:,} | {took:.0f} | {_added(rested, most)} |"
    (nothing, _), (most, took) = (_command(site, moment) for moment in ("2100-01-01", since))
    yield f"| `export_log` | {lines - 1:,} | {took:.0f} | {_added(nothing, most)} |"


def _added(rested: float, most: float) -> str:
    return f"{rested:.0f} | {most:.0f} | {most - rested:.0f}"


def _download(site: Site, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", site.service.port, timeout=600)
    connection.request("GET", path, headers=site.operator)
    answer, lines = connection.getresponse(), 0
    assert answer.status == 200, (path, answer.status)
    while chunk := answer.read(1 << 16):
        lines += chunk.count(b"\n")
    connection.close()
    return lines


def _command(site: Site, since: str) -> tuple[float, float]:
    """Run the command; return its largest memory (MiB), and the seconds it took."""
    command = [sys.executable, "manage.py", "export_log", "--from", since]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=site.service.env, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024, time.monotonic() - began


def _memory(pid: int, name: str) -> float:
    """Read a figure of a process's memory, in MiB."""
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


# Pruning


def prune(site: Site) -> Iterator[str]:
    """Compare requests before, beside and after the pruning of a million records."""
    days = DAYS - max(1, round(DAYS * site.part / site.records))
    yield "| requests, 4 connections, cache misses | requests/s | p50 ms | p99 ms |"
    yield "|---|---|---|---|"
    with ingester(site.service):
        yield _line("before", _load(site))
        command = [sys.executable, "manage.py", "prune_logs", "--days", str(days)]
        with subprocess.Popen(command, cwd=ROOT, env=site.service.env, stdout=subprocess.PIPE, text=True) as pruning:
            time.sleep(2)  # until it has begun
            began = time.monotonic()
            beside = [_load(site)]
            while pruning.poll() is None and len(beside) < 8:
                beside.append(_load(site))
            told, _ = pruning.communicate()
        whole = beside[:-1] or beside  # in the last one, it ended
        for number, result in enumerate(whole, start=1):
            yield _line(f"while records are pruned, {number}", result)
        yield _line("after", _load(site))
    yield f"\n{told.strip()} It took about {time.monotonic() - began:.0f} s."


def _load(site: Site) -> Result:
    plan = chat(site.service.port, site.key, "Number #NUMBER#", PRUNE_SECONDS)
    return run(type(plan)(**{**vars(plan), "connections": 4}), {})


def _line(name: str, result: Result) -> str:
    return f"| {name} | {result.rate:,.0f} | {result.p50_ms:.1f} | {result.p99_ms:.1f} |"


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--keys", type=int, default=100, help="a tenth of them belongs to one account")
    parser.add_argument("--beside", type=Path, help="another tree of the project, to compare its pages with")
    parser.add_argument("--parts", default=",".join(PARTS), help="a comma list, of: %(default)s")
    options = parser.parse_args()
    parts = options.parts.split(",")
    load = os.getloadavg()[0]
    say(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, load {load:.1f}\n")
    with stage(options.keys) as built, ExitStack() as sites:
        if "pages" in parts:
            small = sites.enter_context(built.site(SMALL))
        large = sites.enter_context(built.site(options.records))
        others = [sites.enter_context(another(large, options.beside))] if options.beside else []
        for part in parts:
            lines = {
                "pages": lambda: pages(small, large, *others),
                "export": lambda: export(large),
                "prune": lambda: prune(large),
                "ingest": lambda: ingest_rate(large.service, built.postgres, built.redis, built.cast["callers"]),
            }[part]()
            say("")
            for line in lines:
                say(line)


if __name__ == "__main__":
    main()
