"""Limits and budgets hold exactly: several server processes, hundreds of clients at once, an emptied Redis.

Each refused client was refused because the limit was full, each admitted one found room: so the number of admitted ones
is the limit itself, however the requests race. Under `bin/test --full` each kind has ten rounds.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from inference.catalog import OPENAI_DEFAULT_MODEL as MODEL
from tests.catalogue import Owned
from tests.ledgers import Ledger
from tests.load import Ask, Reply, finished, volley
from tests.processes import wait_until
from tests.sites import WORKERS, Site

CLIENTS = 200
ALLOWED = 50
KEYS_OF_AN_ACCOUNT = 4
KINDS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "monthly_tokens", "monthly_cost")
OWNERS = ("key", "account")
#: Budgets for the model that is called, of which each is proved of one owner.
MODEL_BUDGETS = (("monthly_tokens", "key model"), ("monthly_cost", "account model"))
#: Milliseconds for which admitted calls hold what they took, so that none of it comes back within a round.
HELD = 4_000
EXHAUSTED = {
    "requests_per_minute": "rate_limited",
    "tokens_per_minute": "tokens_limited",
    "concurrent_requests": "concurrency_limited",
    "monthly_tokens": "budget_exhausted",
    "monthly_cost": "budget_exhausted",
}

_numbers = itertools.count(10_000_000)


def questions(site: Site, owned: Owned, number: int) -> list[Ask]:
    """Make questions of the same size, none of them like another, from all keys of an account."""
    secrets = itertools.islice(owned.secrets, number)
    return [Ask(site.service.port, plain, {"message": str(next(_numbers))}) for plain in secrets]


@pytest.fixture(scope="module")
def bound(shared_site: Site) -> Ledger:
    """Learn what one call holds while it is open: tokens and nano-dollars."""
    site = shared_site
    (owned,) = site.make(({}, {}, 1))
    ledger = site.ledger(owned)
    site.fake.set(latency_ms=2_000)

    async def hold() -> Ledger:
        (task,) = await volley(questions(site, owned, 1))
        await asyncio.sleep(1)
        held = ledger.frozen()
        await task
        return held

    held = asyncio.run(hold())
    assert held.reserved.tokens > 100
    assert held.reserved.cost > 0
    return held


def limited(kind: str, owner: str, bound: Ledger) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Give the fields of an account and its keys that allow exactly ALLOWED calls."""
    amount = {"tokens_per_minute": bound.reserved.tokens, "monthly_tokens": bound.reserved.tokens}.get(kind, 1)
    value: Any = ALLOWED * amount
    if kind == "monthly_cost":
        nano = ALLOWED * bound.reserved.cost
        value = f"{nano // 10**9}.{nano % 10**9:09d}"
    if owner.endswith(" model"):
        budget = {"model_budgets": {MODEL: [None, value] if kind == "monthly_cost" else [value, None]}}
        return (budget, {}, KEYS_OF_AN_ACCOUNT) if owner == "account model" else ({}, budget, 1)
    field = {"monthly_tokens": "monthly_token_budget", "monthly_cost": "monthly_cost_budget"}.get(kind, kind)
    if owner == "account":
        return {field: value}, {}, KEYS_OF_AN_ACCOUNT
    return {}, {field if field.startswith("monthly") else f"{field}_override": value}, 1


async def run_rounds(site: Site, rounds: Sequence[Owned]) -> list[list[Reply]]:
    """Let all clients ask at once in each round; the next one begins when the refusals of the last are there."""
    asked = []
    for owned in rounds:
        tasks = await volley(questions(site, owned, CLIENTS))
        await finished(tasks, CLIENTS - ALLOWED)
        asked.append(tasks)
    return [[await task for task in tasks] for tasks in asked]


def test_it_admits_exactly_what_is_allowed_over_four_processes(
    site: Site, bound: Ledger, scale: Callable[[int, int], int]
) -> None:
    assert len(site.service.worker_pids()) == WORKERS
    kinds = [*itertools.product(KINDS, OWNERS), *MODEL_BUDGETS]
    cases = [case for _ in range(scale(1, 10)) for case in kinds]
    site.fake.set(latency_ms=HELD)
    rounds = site.make(*(limited(kind, owner, bound) for kind, owner in cases))
    outcomes = asyncio.run(run_rounds(site, rounds))
    for (kind, owner), replies in zip(cases, outcomes, strict=True):
        statuses = Counter(reply.status for reply in replies)
        codes = Counter(reply.code for reply in replies)
        assert statuses == {200: ALLOWED, 429: CLIENTS - ALLOWED}, (kind, owner, statuses, codes)
        refusals = [reply.json() for reply in replies if reply.status == 429]
        assert {refusal["code"] for refusal in refusals} == {EXHAUSTED[kind]}
        assert {(refusal["limit"]["name"], refusal["limit"]["owner"]) for refusal in refusals} == {(kind, owner)}


def test_it_refuses_nobody_under_the_limit(site: Site) -> None:
    site.fake.set(latency_ms=0)
    (owned,) = site.make(({"requests_per_minute": CLIENTS, "concurrent_requests": CLIENTS}, {}, KEYS_OF_AN_ACCOUNT))
    (replies,) = asyncio.run(run_rounds(site, [owned]))
    assert Counter(reply.status for reply in replies) == {200: CLIENTS}


def test_it_reads_a_spent_budget_back_when_redis_is_emptied(site: Site, bound: Ledger) -> None:
    budget = 10 * bound.reserved.tokens
    (owned,) = site.make(({}, {"monthly_token_budget": budget}, 1))
    ledger = site.ledger(owned)
    site.fake.set(latency_ms=0)

    async def spend() -> list[Reply]:
        return [await task for question in questions(site, owned, 20) for task in await volley([question])]

    assert {reply.status for reply in asyncio.run(spend())} == {200}
    spent = ledger.settled
    assert spent.tokens > bound.reserved.tokens
    wait_until(lambda: ledger.is_ingested(site.service), "the records to be in the database")
    site.store.flushall()
    assert not ledger.exists
    site.fake.set(latency_ms=2_000)

    async def rush() -> tuple[list[Reply], Ledger]:
        tasks = await volley(questions(site, owned, 50))
        await finished(tasks, 50 - (budget - spent.tokens) // bound.reserved.tokens - 1)
        held = ledger.frozen()
        return [await task for task in tasks], held

    replies, held = asyncio.run(rush())
    assert held.settled == spent, "the budget's past is back before the next call is admitted"
    assert held.total.tokens <= budget
    assert budget - held.total.tokens < bound.reserved.tokens, "nobody is refused whose bound fits"
    assert Counter(reply.status for reply in replies).keys() == {200, 429}
    assert ledger.settled.tokens <= budget
