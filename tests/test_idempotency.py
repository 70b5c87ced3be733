"""Idempotency-Keys on PostgreSQL and Redis: one table for every server, a lease for what runs, and what may fail."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis as redis_client

from tests.running import (
    Answer,
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    chat,
    completion,
    running_platform,
    scripted_provider,
    wait_until,
)
from tests.stores import Postgres, Redis

CHAT, KEYS = "/v1/chat/completions", "/keys"
MODEL = "asked-once"
#: Seconds after which the lease of a process that died is over, with some to spare.
LEASE_OVER = 25


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider."""
    with scripted_provider() as server:
        server.script(MODEL, completion("Hello"))
        yield server


@pytest.fixture(scope="module")
def platform(
    provider: ScriptedProvider, prepared: Callable[[], dict[str, str]], own_redis: Redis
) -> Iterator[Platform]:
    """Run the platform; its key may manage keys."""
    env = {**prepared(), "REDIS_URL": own_redis.url, "LIMITS_LEASE_SECONDS": "5", "AUTH_STALE_SECONDS": "600"}
    scopes = ["chat", "keys:manage"]
    with running_platform(env, [Served(MODEL, [provider.base_url])], scopes=scopes) as running:
        yield running


@pytest.fixture(scope="module")
def second(platform: Platform) -> Iterator[Platform]:
    """Run another server on the same stores."""
    with platform.twin() as running:
        yield running


def once() -> dict[str, str]:
    """Return the headers of a new Idempotency-Key."""
    return {"Idempotency-Key": uuid.uuid4().hex}


def question(text: str = "") -> dict[str, object]:
    """Ask what nobody asked before; no answer to it is shared."""
    return chat(MODEL, text or uuid.uuid4().hex, temperature=1)


def is_replay(answer: Answer) -> bool:
    """Return whether an answer was kept from an earlier request."""
    return answer.headers.get("idempotency-replayed") == "true"


def test_it_replays_an_answer_on_every_server_though_the_store_was_emptied(
    platform: Platform, second: Platform, provider: ScriptedProvider, own_redis: Redis
) -> None:
    body, headers = question(), once()
    first = platform.ask(CHAT, body, headers=headers)
    platform.record(first)
    with redis_client.Redis.from_url(own_redis.url) as store:
        store.flushall()
    calls = len(provider.calls)
    answers = [each.ask(CHAT, body, headers=headers) for each in (platform, second)]
    assert [(answer.body, is_replay(answer)) for answer in answers] == 2 * [(first.body, True)]
    assert len(provider.calls) == calls


def test_it_asks_the_provider_once_for_retries_on_several_servers(
    platform: Platform, second: Platform, provider: ScriptedProvider
) -> None:
    body, headers, calls = question(), once(), len(provider.calls)
    provider.script(MODEL, Reply(delay=1.0, body=completion("Hello").body), completion("Hello"))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(each.ask, CHAT, body, headers=headers) for each in 4 * (platform, second)]
        answers = [each.result() for each in asked]
    assert sorted(answer.status for answer in answers) == [200] + 7 * [409]
    assert {answer.headers["retry-after"] for answer in answers if answer.status == 409} == {"1"}
    assert len(provider.calls) == calls + 1
    assert is_replay(platform.ask(CHAT, body, headers=headers))


def test_it_runs_anew_once_the_lease_of_a_process_that_died_is_over(
    platform: Platform, provider: ScriptedProvider
) -> None:
    body, headers, calls = question(), once(), len(provider.calls)
    provider.script(MODEL, Reply(delay=60.0, body=completion("Hello").body), completion("Hello again"))
    with platform.twin() as doomed, ThreadPoolExecutor(1) as pool:
        lost = pool.submit(doomed.ask, CHAT, body, headers=headers)
        wait_until(lambda: len(provider.calls) > calls, "the provider to be asked")
        for pid in (doomed.service.process.pid, *doomed.service.worker_pids()):
            os.kill(pid, signal.SIGKILL)
        assert lost.exception() is not None
    running = platform.ask(CHAT, body, headers=headers)
    assert (running.status, running.error["code"]) == (409, "idempotency_in_progress")
    answers: list[Answer] = []

    def is_answered() -> bool:
        answers.append(platform.ask(CHAT, body, headers=headers))
        return answers[-1].status != 409

    wait_until(is_answered, "the lease to end", LEASE_OVER)
    assert (answers[-1].status, is_replay(answers[-1])) == (200, False), (answers[-1].body, platform.log[-2000:])
    assert len(provider.calls) == calls + 2
    assert is_replay(platform.ask(CHAT, body, headers=headers))
    assert platform.record(answers[-1]).usage_source == "provider"
    assert "bound" in [
        row["usage_source"] for row in platform.rows("SELECT usage_source FROM monitoring_requestrecord")
    ]


def test_it_keeps_neither_what_was_asked_nor_the_callers_key_nor_secrets(platform: Platform) -> None:
    platform.ask(CHAT, question("hush hush"), headers={"Idempotency-Key": "order-of-mr-smith"})
    made = platform.ask(KEYS, {"name": "unseen"}, headers={"Idempotency-Key": "key-of-mr-smith"}).json()
    kept = str([{name: _text(value) for name, value in row.items()} for row in platform.rows(ALL)])
    assert "unseen" in kept
    assert not [text for text in ("smith", "hush", made["key"], made["key"][12:]) if text in kept]
    assert not [text for text in ("Hello", "hush", made["key"]) if text in platform.log]


ALL = "SELECT * FROM accounts_idempotentanswer"


def _text(value: object) -> str:
    return bytes(value).decode() if isinstance(value, bytes | memoryview) else str(value)


def test_it_makes_one_key_of_retries_that_come_at_once(platform: Platform, second: Platform) -> None:
    headers, body = once(), {"name": "made-once"}
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(each.ask, KEYS, body, headers=headers) for each in 4 * (platform, second)]
        answers = [each.result() for each in asked]
    assert {answer.status for answer in answers} == {201}
    assert sorted(map(is_replay, answers)) == [False] + 7 * [True]
    assert ["key" in answer.json() for answer in answers] == [not is_replay(answer) for answer in answers]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(platform.rows("SELECT id FROM accounts_apikey WHERE name = 'made-once'")) == 1


def test_it_keeps_a_refused_change_and_does_nothing_of_it(platform: Platform) -> None:
    headers, body = once(), {"name": "too much", "requests_per_minute": -1}
    first, again = (platform.ask(KEYS, body, headers=headers) for _ in range(2))
    assert (first.status, again.status, again.body) == (400, 400, first.body)
    assert (is_replay(first), is_replay(again)) == (False, True)
    reused = platform.ask(KEYS, {"name": "another"}, headers=headers)
    assert (reused.status, reused.json()["code"]) == (422, "idempotency_key_reused")


def test_it_refuses_one_key_for_a_model_and_a_change(platform: Platform, provider: ScriptedProvider) -> None:
    headers, calls = once(), len(provider.calls)
    provider.script(MODEL, Reply(delay=1.0, body=completion("Hello").body), completion("Hello"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(platform.ask, CHAT, question(), headers=headers)
        wait_until(lambda: len(provider.calls) > calls, "the provider to be asked")
        assert platform.ask(KEYS, {"name": "mixed up"}, headers=headers).status == 422
        assert running.result().status == 200


def test_it_answers_503_while_the_store_is_away_and_makes_keys_all_the_same(
    platform: Platform, provider: ScriptedProvider, own_redis: Redis
) -> None:
    own_redis.kill()
    try:
        calls = len(provider.calls)
        refused = platform.ask(CHAT, question(), headers=once())
        assert (refused.status, refused.error["code"]) == (503, "dependency_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert len(provider.calls) == calls
        headers = once()
        made, again = (platform.ask(KEYS, {"name": "without a store"}, headers=headers) for _ in range(2))
        assert (made.status, again.status, is_replay(again)) == (201, 201, True)
        assert platform.ask(CHAT, question()).status == 200, "without an Idempotency-Key"
    finally:
        own_redis.restart()
    wait_until(lambda: platform.ask(CHAT, question(), headers=once()).status == 200, "the store to be used", 10)


def test_it_answers_503_while_the_database_is_away(
    platform: Platform, provider: ScriptedProvider, postgres: Postgres
) -> None:
    assert platform.ask(CHAT, question()).status == 200, "the key is known"
    calls, headers, body = len(provider.calls), once(), question()
    postgres.stop()
    try:
        refused = platform.ask(CHAT, body, headers=headers)
        assert (refused.status, refused.error["code"]) == (503, "dependency_unavailable")
        assert len(provider.calls) == calls
    finally:
        postgres.restart()
    wait_until(lambda: platform.ask(CHAT, body, headers=headers).status == 200, "the database to be used", 20)
    assert len(provider.calls) == calls + 1
