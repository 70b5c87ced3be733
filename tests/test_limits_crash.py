"""One budget, two servers, 500 clients, and `kill -9` of one of them, twice: every token is accounted for."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from inference.upstream.fake import FakeUpstream
from tests.ledgers import Ledger, ingester, rows, waiting_records
from tests.load import Ask, Reply, ask
from tests.processes import wait_until
from tests.servers import Service, aiapi_servers, redis_server

BUDGET = 10_000
CLIENTS = 500
TRIES = 3
PAUSE = (0.3, 1.5)  # seconds between a client's tries
LEASE_SECONDS = 5
KILL_AFTER = (1_000, 800)  # tokens that are settled between one kill and the next

SETUP = """
import json
from accounts.tests.factories import make_account, make_key, make_tier
tier = make_tier("short", requests_per_minute=None, max_output_tokens=60, cache_enabled=False)
account = make_account("spender", monthly_token_budget=BUDGET)
keys = [make_key(account=account, tier=tier) for _ in range(2)]
print(json.dumps([account.pk, [[issued.key.pk, issued.plain] for issued in keys]]))
"""


@dataclass
class Trial:
    """The servers over one budget, what came back by the label of each try, and what the ledger was seen to hold."""

    servers: list[Service]
    fake: FakeUpstream
    ledger: Ledger
    keys: list[str]
    replies: dict[str, Reply] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)
    is_over: bool = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sample what counts against the budget, as fast as that goes."""

        def watch() -> None:
            while not self.is_over:
                self.seen.append(self.ledger.total.tokens)
                time.sleep(0.002)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            self.is_over = True
            thread.join()

    async def client(self, number: int) -> None:
        """Ask with a question of random length until it is answered, or has been refused often enough."""
        words = " ".join("word" for _ in range(random.randint(1, 60)))
        for _ in range(TRIES):
            label, port = uuid.uuid4().hex[:12], random.choice(self.servers).port
            reply = await ask(Ask(port, self.keys[number % len(self.keys)], f"{label} {words}", label))
            self.replies[label] = reply
            if reply.status == 200:
                return
            await asyncio.sleep(random.uniform(*PAUSE))

    def kill_after(self, tokens: int, victim: Service) -> None:
        """Kill a server and its workers, as the kernel does, when so many more tokens are settled."""
        wanted = self.ledger.settled.tokens + tokens
        wait_until(lambda: self.ledger.settled.tokens >= wanted, f"{wanted} tokens to be settled", timeout=20)
        for pid in (victim.process.pid, *victim.worker_pids()):
            os.kill(pid, signal.SIGKILL)
        victim.process.wait()
        self.servers.remove(victim)

    def billed(self) -> dict[str, int]:
        """Return the tokens that the provider bills, by the label in the question."""
        billed: dict[str, int] = defaultdict(int)
        questions = [each for each in self.fake.requests if each.path.endswith("/chat/completions")]
        for question, call in zip(questions, self.fake.billed, strict=True):
            label = question.body["messages"][-1]["content"].split()[0]
            billed[label] += call.prompt_tokens + call.completion_tokens
        return billed


@pytest.fixture
def env(prepared: Callable[[], dict[str, str]], fake: FakeUpstream) -> Iterator[dict[str, str]]:
    """Give the settings of servers that share a database and a Redis."""
    fake.reset()
    with redis_server() as server:
        yield {**prepared(), "REDIS_URL": server.url, "LIMITS_LEASE_SECONDS": str(LEASE_SECONDS)}
    fake.reset()


def test_it_accounts_for_every_token_when_servers_are_killed(
    env: dict[str, str], fake: FakeUpstream, tmp_path: Path
) -> None:
    with aiapi_servers(env, 3) as (first, second, spare):
        account, keys = json.loads(
            first.manage("shell", "-c", SETUP.replace("BUDGET", str(BUDGET))).strip().splitlines()[-1]
        )
        store = redis.Redis.from_url(env["REDIS_URL"])
        ledger = Ledger(store, account, f"account:{account}")
        trial = Trial([first, second], fake, ledger, [plain for _, plain in keys])
        fake.set(latency_ms=700)
        with trial.watched(), ingester(first, tmp_path / "ingester.log"):
            drive(trial, spare)
            wait_until(lambda: not ledger.reserved.tokens, "the reservations to expire", timeout=LEASE_SECONDS + 25)
            wait_until(lambda: not waiting_records(store), "the records")
        check(trial, spare)


def drive(trial: Trial, spare: Service) -> None:
    """Let all clients ask of two servers; kill one, put another in its place, and kill the second."""
    first, second = trial.servers

    async def run() -> None:
        await asyncio.gather(*(trial.client(number) for number in range(CLIENTS)))

    clients = threading.Thread(target=lambda: asyncio.run(run()))
    clients.start()
    trial.kill_after(KILL_AFTER[0], first)
    trial.servers.append(spare)
    trial.kill_after(KILL_AFTER[1], second)
    clients.join()


def check(trial: Trial, service: Service) -> None:
    """Compare the ledger, the log, and the provider's bill."""
    billed = trial.billed()
    query = (
        "SELECT label, usage_source, status, input_tokens + output_tokens, count(*) OVER (PARTITION BY label) "
        "FROM monitoring_requestrecord WHERE input_tokens + output_tokens > 0"
    )
    records = {label: (source, status, tokens) for label, source, status, tokens, count in rows(service, query)}
    died = {label for label, (source, _, _) in records.items() if source == "bound"}
    assert max(trial.seen) <= BUDGET
    assert {reply.status for reply in trial.replies.values()} <= {0, 200, 429}
    assert {trial.replies[label].status for label in died} == {0}
    assert billed.keys() <= records.keys(), "a call was billed and not recorded"
    charged = sum(records[label][2] - billed.get(label, 0) for label in died)
    assert all(records[label][2] >= billed.get(label, 0) for label in died)
    assert all(tokens == billed[label] for label, (_, _, tokens) in records.items() if label not in died)
    assert trial.ledger.settled.tokens == sum(tokens for _, _, tokens in records.values())
    assert trial.ledger.settled.tokens == sum(billed.values()) + charged
    assert len(died) > 1, "nobody died in the middle of a call"
