"""Clients of plain calls that leave: the provider goes on as a rule, and is stopped where it is set up to be.

A call that others wait for, or that has an Idempotency-Key, runs to its end either way.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.running import (
    CHAT,
    EMBEDDINGS,
    ENDPOINTS,
    MODEL,
    Answer,
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    asking,
    chat,
    completion,
    scripted_provider,
    wait_until,
)

STOPS = {"stops_when_client_leaves": True}
#: Seconds after which a client leaves, and a provider's answer that takes longer than any of these tests waits.
LEAVES = 1.0
NEVER = Reply(delay=60)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def own() -> Iterator[ScriptedProvider]:
    """Run a provider whose GPUs are the operator's own."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[ScriptedProvider]:
    """Run another such."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _served(platform: Platform, own: ScriptedProvider, other: ScriptedProvider) -> None:
    served = [
        Served("own", [own.base_url], provider=STOPS),
        Served("own-vectors", [own.base_url], kind="embedding", provider=STOPS),
        Served("with-spare", [own.base_url, other.base_url], provider=STOPS),
    ]
    platform.add(served, account="leaving")


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


@pytest.mark.parametrize("path", ENDPOINTS)
def test_it_stops_the_provider_s_work(platform: Platform, own: ScriptedProvider, path: str) -> None:
    body = asking(path, "own-vectors" if path == EMBEDDINGS else "own")
    own.script(body["model"], NEVER)
    assert_stopped(platform, own, body["model"], platform.ask(path, body, leave_after=LEAVES))


def test_it_stops_an_answer_that_has_begun(platform: Platform, own: ScriptedProvider) -> None:
    own.script("own", Reply(headers=JSON, body=[b'{"id": "c", ', 60.0]))
    assert_stopped(platform, own, "own", platform.ask(CHAT, question(), leave_after=LEAVES))


def test_it_asks_no_other_deployment(platform: Platform, own: ScriptedProvider, other: ScriptedProvider) -> None:
    own.script("with-spare", NEVER)
    other.script("with-spare", completion("Hello"))
    answer = platform.ask(CHAT, question("with-spare"), leave_after=LEAVES)
    assert_stopped(platform, own, "with-spare", answer)
    assert other.calls == []


def test_it_gives_the_slot_back(platform: Platform, own: ScriptedProvider) -> None:
    key = platform.add([], account="one-at-once", concurrent_requests=1)
    own.script("own", NEVER, completion("Hello"))
    assert platform.ask(CHAT, question(), key=key, leave_after=LEAVES).status == 0
    wait_until(lambda: platform.ask(CHAT, question(), key=key).status == 200, "the slot", 10)


def test_it_goes_on_by_default_and_keeps_the_answer(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, Reply(delay=2 * LEAVES, body=completion("Hello").body))
    body = question(MODEL)
    record = platform.record(platform.ask(CHAT, body, leave_after=LEAVES))
    assert (record.status, record.usage_source) == (200, "provider")
    assert not provider.calls_of(MODEL)[-1].was_left
    assert platform.ask(CHAT, body).headers["x-cache"] == "HIT"


def test_it_goes_on_under_an_idempotency_key(platform: Platform, own: ScriptedProvider) -> None:
    own.script("own", Reply(delay=3 * LEAVES, body=completion("Hello").body))
    body, headers = {**question(), "temperature": 1}, {"Idempotency-Key": uuid.uuid4().hex}
    left = platform.ask(CHAT, body, headers=headers, leave_after=LEAVES)
    record = platform.record(left)
    assert (left.status, record.status, record.usage_source) == (0, 200, "provider")
    again = platform.ask(CHAT, body, headers=headers)
    assert (again.status, again.headers["idempotency-replayed"]) == (200, "true")


@pytest.mark.parametrize("where", ["platform", "second"])
def test_it_goes_on_while_others_wait(
    request: pytest.FixtureRequest, platform: Platform, own: ScriptedProvider, pool: ThreadPoolExecutor, where: str
) -> None:
    elsewhere: Platform = request.getfixturevalue(where)
    own.script("own", Reply(delay=5 * LEAVES, body=completion("Hello").body))
    body, number = question(), len(own.calls)
    leading = pool.submit(platform.ask, CHAT, body, leave_after=2 * LEAVES)
    wait_until(lambda: len(own.calls) > number, "the provider to be asked")
    followed = elsewhere.ask(CHAT, body)
    assert (leading.result().status, followed.status) == (0, 200)
    assert followed.headers["x-cache"] in ("COALESCED", "HIT")
    record = platform.record(leading.result())
    assert (record.status, record.usage_source) == (200, "provider")
    assert len(own.calls) == number + 1


@pytest.mark.parametrize("where", ["platform", "second"])
def test_it_stops_when_the_last_of_them_leaves(
    request: pytest.FixtureRequest, platform: Platform, own: ScriptedProvider, pool: ThreadPoolExecutor, where: str
) -> None:
    elsewhere: Platform = request.getfixturevalue(where)
    own.script("own", NEVER)
    body, number = question(), len(own.calls)
    leading: Future[Answer] = pool.submit(platform.ask, CHAT, body, leave_after=2 * LEAVES)
    wait_until(lambda: len(own.calls) > number, "the provider to be asked")
    following = elsewhere.ask(CHAT, body, leave_after=4 * LEAVES)
    assert not own.calls[-1].was_left, "one has waited until now"
    assert_stopped(platform, own, "own", leading.result())
    record = platform.record(following)
    assert (record.status, record.error_code, record.cost) == (499, "client_left", 0)
    assert len(own.calls) == number + 1


def test_it_is_set_in_the_admin(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, NEVER)
    (row,) = platform.rows(f"SELECT provider_id AS id FROM inference_deployment WHERE upstream_name = '{MODEL}'")  # noqa: S608
    page = f"/admin/inference/provider/{row['id']}/change/"
    platform.admin.submit(page, stops_when_client_leaves="on")
    assert platform.admin.page(page).fields["stops_when_client_leaves"] == "on"
    time.sleep(1.1)  # a change holds everywhere after a second
    assert_stopped(platform, provider, MODEL, platform.ask(CHAT, question(MODEL), leave_after=LEAVES))
    platform.admin.submit(page, stops_when_client_leaves=None)
    assert "stops_when_client_leaves" not in platform.admin.page(page).fields
