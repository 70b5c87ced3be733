"""A provider whose credit is used up: the next deployment answers, operators are told, and it is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.running import (
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    chat,
    completion,
    running_platform,
    scripted_provider,
)

CHAT = "/v1/chat/completions"
LEFT_ALONE = 240
_numbers = count()


def error(status: int, **fields: str) -> Reply:
    """Make a provider's error as OpenAI writes it."""
    told = {"message": "You exceeded your current quota.", "type": None, "param": None, "code": None, **fields}
    return Reply(status, body=json.dumps({"error": told}).encode())


EMPTY = {
    "402": Reply(402, body=b"Payment required"),
    "quota": error(429, type="insufficient_quota", code="insufficient_quota"),
    "type": error(429, type="insufficient_quota"),
    "billing": error(429, code="billing_not_active"),
    "limit": error(400, code="billing_hard_limit_reached"),
}


@pytest.fixture(scope="module")
def empty() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def spare() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def platform(
    prepared: Callable[[], dict[str, str]], empty: ScriptedProvider, spare: ScriptedProvider
) -> Iterator[Platform]:
    env = {**prepared(), "UPSTREAM_CREDIT_PAUSE": str(LEFT_ALONE)}
    served = [Served(f"spared{number}", [empty.base_url, spare.base_url]) for number in range(20)]
    served += [Served(f"alone{number}", [empty.base_url]) for number in range(20)]
    with running_platform(env, served) as running:
        yield running


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("kind", EMPTY)
def test_it_asks_the_next_deployment_and_leaves_the_empty_one_alone(
    platform: Platform, empty: ScriptedProvider, spare: ScriptedProvider, kind: str, is_stream: bool
) -> None:
    model = f"spared{next(_numbers)}"
    empty.script(model, EMPTY[kind])
    hello = completion("Hello")
    spare.script(model, hello)
    if is_stream:
        event = {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}],
        }
        spare.script(model, Reply(body=[f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()]))
    answers = [platform.ask(CHAT, chat(model, stream=is_stream)) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert (len(empty.calls_of(model)), len(spare.calls_of(model))) == (1, 3)
    assert [platform.record(answer).attempts for answer in answers] == [2, 1, 1]


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("kind", EMPTY)
def test_it_tells_callers_at_once_where_there_is_no_other(
    platform: Platform, empty: ScriptedProvider, kind: str, is_stream: bool
) -> None:
    """It is no business of theirs whose credit is used up; a pause as for a busy provider would not help."""
    model = f"alone{next(_numbers) % 20}"
    empty.script(model, EMPTY[kind])
    before = len(empty.calls_of(model))
    failed, refused = (platform.ask(CHAT, chat(model, stream=is_stream)) for _ in range(2))
    assert (failed.status, failed.error["code"]) == (502, "upstream_failed")
    assert (refused.status, refused.error["code"]) == (503, "upstream_busy")
    assert LEFT_ALONE - 60 < int(refused.headers["retry-after"]) <= LEFT_ALONE
    assert len(empty.calls_of(model)) == before + 1
    record = platform.record(failed)
    assert (record.status, record.cost, record.input_tokens) == (502, 0, 0)
    assert "quota" not in (failed.body + refused.body).decode()


def test_it_alerts_that_the_credit_is_used_up(platform: Platform, empty: ScriptedProvider) -> None:
    model = f"alone{next(_numbers) % 20}"
    empty.script(model, EMPTY["quota"])
    assert platform.ask(CHAT, chat(model)).status == 502
    platform.manage("worker", "--once", "watch")
    alerts = platform.rows("SELECT title, text FROM monitoring_alert WHERE ended_at IS NULL")
    (alert,) = (each for each in alerts if model in each["text"] and "provider" in each["title"].lower())
    assert "credit is used up" in alert["title"]
