"""Clients of plain calls that leave: the provider goes on as a rule, and is stopped where it is set up to be.

A call that others wait for, or that has an Idempotency-Key, runs to its end either way.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

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
from tests.stores import Redis

CHAT = "/v1/chat/completions"
STOPS = {"stops_when_client_leaves": True}
#: Seconds after which a client leaves, and a provider's answer that takes longer than any of these tests waits.
LEAVES = 1.0
NEVER = Reply(delay=60)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider whose GPUs are the operator's own."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def spare() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedProvider]:
    """Run a provider that is set up as any is by default."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def platform(
    prepared: Callable[[], dict[str, str]],
    own_redis: Redis,
    provider: ScriptedProvider,
    spare: ScriptedProvider,
    plain: ScriptedProvider,
) -> Iterator[Platform]:
    """Run a platform whose providers are stopped, apart from one."""
    served = [
        Served("own", [provider.base_url], provider=STOPS),
        Served("own-vectors", [provider.base_url], kind="embedding", provider=STOPS),
        Served("with-spare", [provider.base_url, spare.base_url], provider=STOPS),
        Served("others", [plain.base_url]),
    ]
    with running_platform({**prepared(), "REDIS_URL": own_redis.url}, served) as running:
        yield running


@pytest.fixture(scope="module")
def second(platform: Platform) -> Iterator[Platform]:
    with platform.twin() as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as running:
        yield running


def question(model: str = "own") -> dict[str, Any]:
    """Ask a model what nobody asked before, so that the answer may be shared."""
    return chat(model, f"What is {uuid.uuid4().hex}?", temperature=0)


def assert_stopped(platform: Platform, provider: ScriptedProvider, model: str, answer: Answer) -> None:
    """Fail unless a call was stopped soon after its client had left, which is now, and charged its bound."""
    began = time.monotonic()
    call = provider.calls_of(model)[-1]
    wait_until(lambda: call.was_left, "the provider to be left alone", 10)
    assert time.monotonic() - began < 3.0
    record = platform.record(answer)
    assert (record.status, record.error_code, record.attempts, record.is_partial) == (499, "client_left", 1, False)
    assert record.usage_source == "bound"
    assert record.failures.endswith(f"/{model}: stopped, since its client had left")
    assert record.input_tokens > 0
    assert record.cost > 0


BODIES = {
    CHAT: question(),
    "/v1/completions": {"model": "own", "prompt": "Hello"},
    "/v1/responses": {"model": "own", "input": "Hello"},
    "/v1/embeddings": {"model": "own-vectors", "input": "Hello"},
    "/chat": {"model": "own", "message": "Hello"},
    "/summarize": {"model": "own", "text": "A long text. " * 20, "length": "short"},
}


@pytest.mark.parametrize("path", BODIES)
def test_it_stops_the_provider_s_work(platform: Platform, provider: ScriptedProvider, path: str) -> None:
    body = BODIES[path]
    provider.script(body["model"], NEVER)
    assert_stopped(platform, provider, body["model"], platform.ask(path, body, leave_after=LEAVES))


def test_it_stops_an_answer_that_has_begun(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script("own", Reply(headers=JSON, body=[b'{"id": "c", ', 60.0]))
    assert_stopped(platform, provider, "own", platform.ask(CHAT, question(), leave_after=LEAVES))


def test_it_asks_no_other_deployment(platform: Platform, provider: ScriptedProvider, spare: ScriptedProvider) -> None:
    provider.script("with-spare", NEVER)
    spare.script("with-spare", completion("Hello"))
    answer = platform.ask(CHAT, question("with-spare"), leave_after=LEAVES)
    assert_stopped(platform, provider, "with-spare", answer)
    assert spare.calls == []


def test_it_gives_the_slot_back(platform: Platform, provider: ScriptedProvider) -> None:
    key = platform.add([], account="one-at-once", concurrent_requests=1)
    provider.script("own", NEVER, completion("Hello"))
    assert platform.ask(CHAT, question(), key=key, leave_after=LEAVES).status == 0
    wait_until(lambda: platform.ask(CHAT, question(), key=key).status == 200, "the slot", 10)


def test_it_goes_on_by_default_and_keeps_the_answer(platform: Platform, plain: ScriptedProvider) -> None:
    plain.script("others", Reply(delay=2 * LEAVES, body=completion("Hello").body))
    body = question("others")
    record = platform.record(platform.ask(CHAT, body, leave_after=LEAVES))
    assert (record.status, record.usage_source) == (200, "provider")
    assert not plain.calls_of("others")[-1].was_left
    assert platform.ask(CHAT, body).headers["x-cache"] == "HIT"


def test_it_goes_on_under_an_idempotency_key(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script("own", Reply(delay=3 * LEAVES, body=completion("Hello").body))
    body, headers = {**question(), "temperature": 1}, {"Idempotency-Key": uuid.uuid4().hex}
    left = platform.ask(CHAT, body, headers=headers, leave_after=LEAVES)
    record = platform.record(left)
    assert (left.status, record.status, record.usage_source) == (0, 200, "provider")
    again = platform.ask(CHAT, body, headers=headers)
    assert (again.status, again.headers["idempotency-replayed"]) == (200, "true")


@pytest.mark.parametrize("where", ["platform", "second"])
def test_it_goes_on_while_others_wait(
    request: pytest.FixtureRequest, platform: Platform, provider: ScriptedProvider, pool: ThreadPoolExecutor, where: str
) -> None:
    elsewhere: Platform = request.getfixturevalue(where)
    provider.script("own", Reply(delay=5 * LEAVES, body=completion("Hello").body))
    body, number = question(), len(provider.calls)
    leading = pool.submit(platform.ask, CHAT, body, leave_after=2 * LEAVES)
    wait_until(lambda: len(provider.calls) > number, "the provider to be asked")
    followed = elsewhere.ask(CHAT, body)
    assert (leading.result().status, followed.status) == (0, 200)
    assert followed.headers["x-cache"] in ("COALESCED", "HIT")
    record = platform.record(leading.result())
    assert (record.status, record.usage_source) == (200, "provider")
    assert len(provider.calls) == number + 1


@pytest.mark.parametrize("where", ["platform", "second"])
def test_it_stops_when_the_last_of_them_leaves(
    request: pytest.FixtureRequest, platform: Platform, provider: ScriptedProvider, pool: ThreadPoolExecutor, where: str
) -> None:
    elsewhere: Platform = request.getfixturevalue(where)
    provider.script("own", NEVER)
    body, number = question(), len(provider.calls)
    leading: Future[Answer] = pool.submit(platform.ask, CHAT, body, leave_after=2 * LEAVES)
    wait_until(lambda: len(provider.calls) > number, "the provider to be asked")
    following = elsewhere.ask(CHAT, body, leave_after=4 * LEAVES)
    assert not provider.calls[-1].was_left, "one has waited until now"
    assert_stopped(platform, provider, "own", leading.result())
    record = platform.record(following)
    assert (record.status, record.error_code, record.cost) == (499, "client_left", 0)
    assert len(provider.calls) == number + 1


def test_it_is_set_in_the_admin(platform: Platform, plain: ScriptedProvider) -> None:
    plain.script("others", NEVER)
    (row,) = platform.rows(f"SELECT id FROM inference_provider WHERE base_url = '{plain.base_url}'")  # noqa: S608
    page = f"/admin/inference/provider/{row['id']}/change/"
    platform.admin.submit(page, stops_when_client_leaves="on")
    assert platform.admin.page(page).fields["stops_when_client_leaves"] == "on"
    time.sleep(1.1)  # a change holds everywhere after a second
    assert_stopped(platform, plain, "others", platform.ask(CHAT, question("others"), leave_after=LEAVES))
    platform.admin.submit(page, stops_when_client_leaves=None)
    assert "stops_when_client_leaves" not in platform.admin.page(page).fields
