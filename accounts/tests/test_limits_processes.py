"""Exactness over processes: 8 of them with 8 threads each race for one limit in Redis, by Redis's own clock."""

import multiprocessing
import threading
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import pytest

from accounts.limits.backend import LimitBackend
from accounts.limits.types import Amount, Bound, Limits, LimitSet, Refusal, Subject
from accounts.tests.limits_fixtures import DRAFT, Clock, a_scope, an_operation, limits_on, shared_redis_url

PROCESSES, THREADS, TRIES = 8, 8, 3  # 192 tries in each round
LIMIT = 100
TOKENS_EACH = 7
ROUNDS = {
    "requests": (20, Limits(requests_per_minute=LIMIT)),
    "concurrency": (5, Limits(concurrent_requests=LIMIT)),
    "tokens": (5, Limits(tokens_per_minute=LIMIT * TOKENS_EACH + TOKENS_EACH - 1)),
    "budget": (5, Limits(monthly_tokens=LIMIT * TOKENS_EACH + TOKENS_EACH - 1)),
    "model budget": (5, Limits(monthly_tokens=LIMIT * TOKENS_EACH + TOKENS_EACH - 1)),
}


class Outcome(NamedTuple):
    """What one process saw in one round: how many it got, and when (µs) those it did not get could try again."""

    number: int
    admitted: int
    resets: tuple[int, ...]


def try_once(backend: LimitBackend, scope: LimitSet, kind: str, admitted_at: int) -> int | None:
    """Try to pass the limit; answer None if it did, and when to try again if it did not."""
    if kind == "requests":
        refusal = backend.admit(scope, an_operation()).refusal
        return None if refusal is None else refusal.reset_at
    bound = Bound(Amount(TOKENS_EACH, 1))
    answer = backend.reserve(scope, an_operation(), admitted_at=admitted_at, bound=bound, draft=DRAFT)
    return answer.reset_at if isinstance(answer, Refusal) else None


def race(backend: LimitBackend, scope: LimitSet, kind: str, admitted_at: int) -> list[int | None]:
    """Try from all threads at once."""
    results: list[int | None] = []
    start = threading.Barrier(THREADS)

    def run() -> None:
        start.wait()
        results.extend(try_once(backend, scope, kind, admitted_at) for _ in range(TRIES))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def worker(url: str, rounds: list[tuple[str, LimitSet]], together: Barrier, outcomes: Any) -> None:
    """Run all rounds in one process, each of them begun together with the other processes."""
    backend = limits_on(url, read_timeout=10)
    admitted_at = backend.now()
    for number, (kind, scope) in enumerate(rounds):
        together.wait()
        results = race(backend, scope, kind, admitted_at)
        resets = tuple(reset for reset in results if reset is not None)
        outcomes.put(Outcome(number, len(results) - len(resets), resets))


def a_limited_scope(limits: Limits, kind: str) -> LimitSet:
    scope = a_scope()
    if kind == "model budget":
        return LimitSet(
            scope.account_id, (*scope.subjects, Subject("account_model", f"{scope.account_id}:1:m", limits))
        )
    return LimitSet(scope.account_id, (Subject("key", scope.subjects[0].id, limits), scope.subjects[1]))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[tuple[LimitSet, list[Outcome]]]]:
    """Run all rounds once; give the outcomes of each round by kind."""
    rounds = [(kind, a_limited_scope(limits, kind)) for kind, (count, limits) in ROUNDS.items() for _ in range(count)]
    context = multiprocessing.get_context("spawn")
    together, queue = context.Barrier(PROCESSES), context.Queue()
    arguments = (shared_redis_url(), rounds, together, queue)
    processes = [context.Process(target=worker, args=arguments, daemon=True) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    seen = [queue.get(timeout=90) for _ in range(PROCESSES * len(rounds))]
    for process in processes:
        process.join()
    found: dict[str, list[tuple[LimitSet, list[Outcome]]]] = {kind: [] for kind in ROUNDS}
    for number, (kind, scope) in enumerate(rounds):
        found[kind].append((scope, [outcome for outcome in seen if outcome.number == number]))
    return found


@pytest.mark.parametrize("kind", list(ROUNDS))
def test_it_admits_exactly_the_limit_in_every_round(
    kind: str, outcomes: dict[str, list[tuple[LimitSet, list[Outcome]]]]
) -> None:
    admitted = [sum(outcome.admitted for outcome in seen) for _, seen in outcomes[kind]]
    assert admitted == [LIMIT] * ROUNDS[kind][0]


def test_it_admits_the_first_request_sent_at_the_announced_time(
    outcomes: dict[str, list[tuple[LimitSet, list[Outcome]]]],
) -> None:
    clock = Clock()
    backend = limits_on(clock=clock)
    for scope, seen in outcomes["requests"]:
        announced = {reset for outcome in seen for reset in outcome.resets}
        assert len(announced) == 1  # the oldest of the 100 was the same for all who were refused
        [clock.now] = announced
        clock.now -= 1
        assert not backend.admit(scope, an_operation()).admitted
        clock.now += 1
        assert backend.admit(scope, an_operation()).admitted
