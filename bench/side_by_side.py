"""Measure the platform beside its peers: `python bench/side_by_side.py` prints one table, and the goals.

A small FastAPI service (reference.py), a bare view of the framework (bare.py), Portkey and LiteLLM are installed in the
user's cache folder at the first run; what can't be installed is left out. All run at once, with one worker each, and
are loaded in turns: first by 32 connections as fast as they answer, then at one rate for all of a kind, half of what
the slowest of them reached. The fake provider answers at once. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as machine
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import CalledProcessError

import peers
from bed import fake_provider
from harness import NUMBER, Plan, Result, memory_mib, run
from peers import Peer

TARGETS = {
    "reference": peers.reference,
    "bare": peers.bare,
    "platform": peers.platform,
    "portkey": peers.portkey,
    "litellm": peers.litellm,
}
CHAT, COMPLETIONS = "/chat", "/v1/chat/completions"
CONNECTIONS = (1, 16)
MODEL = "gpt-3.5-turbo"
COLUMNS = (
    "", "CPU ms", "with stores", "requests/s", "equal rate", "1 connection: p50 ms", "p99", "16: p50", "p99", "MiB",
    "starts in s", "packages", "on",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One kind of request to one service; those of a `group` are sent at an equal rate."""

    peer: Peer
    kind: str
    plan: Plan
    group: str = ""

    @property
    def name(self) -> str:
        """Name it."""
        return f"{self.peer.name}: {self.kind}"


@dataclass(frozen=True)
class Goal:
    """A figure of the first row is at most so many times that of the second."""

    what: str
    measured: float
    at_most: float


def chat(peer: Peer, kind: str, message: str, *, key: str = "", status: int = 200, group: str = "") -> Row:
    """Describe requests of /chat."""
    body = json.dumps({"message": message, "temperature": 0.7})
    headers = {"X-API-Key": key or peer.key}
    return Row(peer, kind, Plan(peer.port, CHAT, headers, body, 0, statuses=(status, 200)), group)


def completions(peer: Peer, kind: str = "/v1 miss", temperature: float = 0.7) -> Row:
    """Describe requests of /v1/chat/completions, each with a message of its own."""
    messages = [{"role": "user", "content": f"Number {NUMBER}"}]
    body = json.dumps({"model": MODEL, "temperature": temperature, "messages": messages})
    headers = {"Authorization": f"Bearer {peer.key}", **peer.headers}
    return Row(peer, kind, Plan(peer.port, COMPLETIONS, headers, body, 0), "/v1 miss")


def rows(peer: Peer, target: str) -> Iterator[Row]:
    """List the kinds of requests that a service gets."""
    if target in ("reference", "platform"):
        yield chat(peer, "miss", f"Number {NUMBER}", group="miss")
    if target in ("reference", "platform", "bare"):
        yield chat(peer, "hit", "What is the capital of France?", group="hit")
    if target == "platform":
        yield chat(peer, "429", f"Number {NUMBER}", key=peer.refused_key, status=429)
        yield chat(peer, "401", f"Number {NUMBER}", key=f"{peer.key[:-4]}0000", status=401)
    if target in ("portkey", "litellm", "platform"):
        yield completions(peer)
    if target == "platform":
        yield completions(peer, "/v1 miss, cache asked", 0)


def measure(row: Row, **plan: float) -> Result:
    """Load a service; its CPU is that of `own`, its stores' that of `stores`."""
    of = {"own": row.peer.roots, "stores": row.peer.stores}
    groups = {f"{name} {number}": pid for name, pids in of.items() for number, pid in enumerate(pids)}
    result = run(replace(row.plan, **plan), groups, settle=row.peer.settle)  # type: ignore[arg-type]
    cpu = {name: sum(ms for group, ms in result.cpu_ms.items() if group.startswith(name)) for name in of}
    return replace(result, cpu_ms=cpu)


class Table:
    """What was measured of each row: under full load, and at an equal rate by the number of connections."""

    def __init__(self, listed: Sequence[Row], provider: Sequence[Row]) -> None:
        self.rows, self.provider = listed, {row.group: row for row in provider}
        self.full: dict[str, list[Result]] = defaultdict(list)
        self.even: dict[tuple[str, str, int], list[Result]] = defaultdict(list)

    def load(self, rounds: int, seconds: float) -> None:
        """Load all in turns as fast as they answer."""
        for row in self.rows:
            measure(row, seconds=1.0)
        for number in range(rounds):
            say(f"full load, round {number + 1} of {rounds}")
            for row in self.rows:
                self.full[row.name].append(measure(row, seconds=seconds))

    def pace(self, rounds: int, seconds: float) -> None:
        """Load all of a group in turns, and the provider itself, at half of the rate that the slowest reached."""
        for number in range(rounds):
            say(f"equal rate, round {number + 1} of {rounds}")
            for group, asked in self.provider.items():
                listed = [row for row in self.rows if row.group == group]
                for connections in CONNECTIONS:
                    for row in [asked, *listed] if listed else []:
                        plan = {"rate": self.rate(group), "connections": connections, "chance": number}
                        self.even[group, row.name, connections].append(measure(row, seconds=seconds, **plan))

    def rate(self, group: str) -> float:
        """Return the rate of a group."""
        return min(median(each.rate for each in self.full[row.name]) for row in self.rows if row.group == group) / 2

    def cpu(self, name: str, *groups: str) -> float:
        """Return the CPU of a request in ms."""
        return median(sum(each.cpu_ms[group] for group in groups or ("own",)) for each in self.full[name])

    def latency(self, group: str, name: str, connections: int) -> tuple[float, float] | None:
        """Return p50 and p99 in ms at an equal rate; None where that was not measured."""
        found = self.even[group, name, connections]
        return (median(each.p50_ms for each in found), median(each.p99_ms for each in found)) if found else None

    def lines(self) -> Iterator[str]:
        """Write the table as Markdown."""
        yield f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
        seen: set[str] = set()
        for row in self.rows:
            full = median(each.rate for each in self.full[row.name])
            cells = [f"{self.cpu(row.name):.2f}", f"{self.cpu(row.name, 'own', 'stores'):.2f}", f"{full:,.0f}"]
            cells += self._paced(row)
            peer = row.peer
            if peer.name not in seen:
                memory = sum(memory_mib(pid) for pid in peer.roots)
                cells += [f"{memory:.0f}", f"{peer.started:.1f}", str(peer.packages), peer.has]
            else:
                cells += [""] * 4
            seen.add(peer.name)
            yield f"| {row.name} | {' | '.join(cells)} |"
        for row in self.provider.values():
            if self.latency(row.group, row.name, CONNECTIONS[0]):
                yield f"| provider, asked at that rate | | | | {' | '.join(self._paced(row))} | | | | |"

    def _paced(self, row: Row) -> list[str]:
        paced = [self.latency(row.group, row.name, connections) for connections in CONNECTIONS]
        figures = [f"{figure:.1f}" for each in paced for figure in each or ()]
        return [f"{self.rate(row.group):.0f}", *figures] if figures else [""] * 5

    def goals(self, ours: str) -> Iterator[Goal]:
        """Compare the platform with what it should reach, as far as that was measured."""
        named = {row.name.partition(" ")[0] + row.name.rpartition(":")[2]: row.name for row in self.rows}
        for kind, beside, at_most in (
            ("miss", "reference miss", 0.6),
            ("hit", "reference hit", 1.1),
            ("/v1 miss", "Portkey /v1 miss", 1.2),
            ("/v1 miss", "LiteLLM /v1 miss", 1 / 7),
            ("429", f"{ours.partition(' ')[0]} hit", 0.8),
            ("401", f"{ours.partition(' ')[0]} hit", 0.8),
        ):
            one, other = f"{ours}: {kind}", named.get(beside, "")
            if self.full[one] and self.full[other]:
                yield Goal(f"CPU of a {kind} beside {other}", self.cpu(one) / self.cpu(other), at_most)
        for group in ("miss", "/v1 miss"):
            yield from self._latency_goals(f"{ours}: {group}", named.get(f"reference {group}", ""), group)

    def _latency_goals(self, one: str, other: str, group: str) -> Iterator[Goal]:
        provider = self.provider[group].name
        alone, beside, direct = (self.latency(group, name, 1) for name in (one, other, provider))
        if alone and beside and direct:
            ratio = (alone[0] - direct[0]) / (beside[0] - direct[0])
            yield Goal(f"added p50 at 1 connection of a {group} beside {other}", ratio, 1.5)
        if several := self.latency(group, one, 16):
            yield Goal(f"p99 beside p50 at 16 connections of a {group}", several[1] / several[0], 3.0)


def say(text: str) -> None:
    """Tell how far it is, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def started(stack: ExitStack, chosen: Sequence[str], tree: Path | None, provider: str) -> Iterator[tuple[Peer, str]]:
    """Start what was chosen, one after the other."""
    makers = {name: TARGETS[name] for name in chosen}
    if tree:
        makers[f"platform {tree}"] = partial(peers.platform, tree=tree.resolve(), name=f"tree {tree.resolve().name}")  # type: ignore[assignment]
    for name, maker in makers.items():
        try:
            yield stack.enter_context(maker(provider)), name.partition(" ")[0]
        except (CalledProcessError, OSError, AssertionError) as error:
            say(f"{name} is left out: {error} {getattr(error, 'stderr', '') or ''}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--targets", default=",".join(TARGETS), help="a comma list of: %(default)s")
    parser.add_argument(
        "--kinds", default="", help="a comma list of kinds of requests, such as: miss,hit,429,401,/v1 miss"
    )
    parser.add_argument("--tree", type=Path, help="another tree of the project, measured in turns with this one")
    parser.add_argument("--without-latency", action="store_true")
    options = parser.parse_args()
    kinds = options.kinds.split(",") if options.kinds else []
    with ExitStack() as stack:
        port, pid = stack.enter_context(fake_provider())
        provider = f"http://127.0.0.1:{port}/v1"
        running = [*started(stack, options.targets.split(","), options.tree, provider)]
        listed = [row for peer, target in running for row in rows(peer, target) if not kinds or row.kind in kinds]
        itself = Peer("provider", port, [pid], 0, 0, "")
        asked = [replace(completions(itself, kind), group=kind) for kind in ("miss", "hit", "/v1 miss")]
        time.sleep(2)  # until what has just started is at rest
        load = os.getloadavg()[0]
        table = Table(listed, asked)
        table.load(options.rounds, options.seconds)
        if not options.without_latency:
            table.pace(options.rounds, options.seconds)
        where = f"Python {machine.python_version()}, {os.cpu_count()} cores, load {load:.1f} before"
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {where}, medians of {options.rounds} rounds\n")
        print("\n".join(table.lines()))
        print("\n| goal | at most | measured |\n|---|---|---|")
        for goal in table.goals("this project"):
            print(f"| {goal.what} | {goal.at_most:.2f} | {goal.measured:.2f} |")


if __name__ == "__main__":
    main()
