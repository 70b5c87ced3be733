"""Errors under /v1 as OpenAI's clients expect them: its published schema of an error, its types and codes, and the
exception that its own client raises for each, on every endpoint, plain and streamed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from openai.types import ErrorObject

from tests.running import (
    CHAT,
    EMBEDDER,
    EMBEDDINGS,
    MODEL,
    STREAMING,
    Model,
    Platform,
    Reply,
    ScriptedProvider,
    asking,
    chat,
    completion,
    event,
    wait_until,
)

#: A valid body of each of OpenAI's endpoints.
BODIES = {path: asking(path, EMBEDDER if path == EMBEDDINGS else MODEL) for path in (*STREAMING[:3], EMBEDDINGS)}
EVERYWHERE = [(path, False) for path in BODIES] + [(path, True) for path in STREAMING[:3]]
INVALID = "invalid_request_error"
REQUESTS, TOKENS = ("rate_limit_exceeded", "requests"), ("rate_limit_exceeded", "tokens")
QUOTA = ("insufficient_quota", "insufficient_quota")
MESSAGES = {"": "API key required. Include X-API-Key header.", "sk-wrong": "Invalid API key"}


@pytest.fixture(scope="module")
def keys(platform: Platform) -> dict[str, str]:
    """Make a key whose limit of each kind is spent soon, or too small."""
    limits: dict[str, dict[str, Any]] = {
        "requests": {"requests_per_minute": 1},
        "tokens": {"tokens_per_minute": 1_000, "max_output_tokens": 600},
        "slots": {"concurrent_requests": 1},
        "budget": {"monthly_token_budget": 1_000, "max_output_tokens": 600},
        "narrow": {"scopes": ["usage"]},
    }
    return {name: platform.add([], account=f"{name}-errors", **tier) for name, tier in limits.items()}


def body_of(path: str, *, streams: bool = False, **changes: Any) -> dict[str, Any]:
    return {**BODIES[path], **({"stream": True} if streams else {}), **changes}


def expect(
    platform: Platform, path: str, body: Any, error: type[openai.APIStatusError], key: str = ""
) -> openai.APIStatusError:
    """Ask by OpenAI's client, which retries nothing, and check class and shape of what it raises."""
    base_url = f"{platform.service.base_url}/v1"
    ask: Any = openai.OpenAI.get if body is None else partial(openai.OpenAI.post, body=body)
    with (
        openai.OpenAI(base_url=base_url, api_key=key or platform.key, max_retries=0) as client,
        pytest.raises(error) as raised,
    ):
        ask(client, path.removeprefix("/v1"), cast_to=object)
    assert raised.value.request_id
    told = raised.value.response.json()
    assert set(told) == {"error"}
    assert {"message", "type", "param", "code"} <= set(told["error"])
    ErrorObject.model_validate(told["error"], strict=True)
    assert told["error"]["message"]
    return raised.value


def named(error: openai.APIError) -> tuple[str | None, str | None]:
    return error.code, error.type


@pytest.mark.parametrize(("path", "streams"), [*EVERYWHERE, ("/v1/models/gpt-none", None)])
def test_it_names_the_model_that_is_not_there(platform: Platform, path: str, streams: bool | None) -> None:
    body = None if streams is None else body_of(path, streams=streams, model="gpt-none")
    error = expect(platform, path, body, openai.NotFoundError)
    assert (*named(error), error.param) == ("model_not_found", INVALID, "model")
    assert "`gpt-none`" in error.message


@pytest.mark.parametrize(("path", "body"), [("/chat", {"message": "hello"}), ("/summarize", {"text": "hello " * 9})])
def test_it_names_the_model_on_the_platform_s_own_endpoints(
    platform: Platform, path: str, body: dict[str, Any]
) -> None:
    answer = platform.ask(path, {**body, "model": "gpt-none"})
    assert (answer.status, answer.json()["code"]) == (404, "model_not_found")
    assert "`gpt-none`" in answer.json()["detail"]


def test_it_repeats_no_key_and_no_page_of_text_as_a_model_s_name(platform: Platform) -> None:
    for name in (platform.key, "x" * 5_000, "two\nlines"):
        answer = platform.ask(CHAT, chat(name))
        message = answer.error["message"]
        assert answer.status in (400, 404)
        assert platform.key not in message
        assert "\n" not in message
        assert len(message) < 300


@pytest.mark.parametrize("path", [*BODIES, "/v1/models"])
def test_it_answers_a_bad_key_as_openai_does(platform: Platform, path: str) -> None:
    for key, message in MESSAGES.items():
        answer = platform.ask(path, BODIES.get(path), key="", headers={"Authorization": f"Bearer {key}"} if key else {})
        assert answer.status == 401
        assert answer.error == {"message": message, "type": INVALID, "param": None, "code": "invalid_api_key"}
    expect(platform, path, BODIES.get(path), openai.AuthenticationError, "sk-wrong")


@pytest.mark.parametrize("path", BODIES)
def test_it_tells_requests_a_minute(
    platform: Platform, provider: ScriptedProvider, keys: dict[str, str], path: str
) -> None:
    provider.script(MODEL, completion("Hello"))
    platform.ask(CHAT, chat(MODEL), key=keys["requests"])
    error = expect(platform, path, BODIES[path], openai.RateLimitError, keys["requests"])
    assert (*named(error), error.response.headers["x-ratelimit-remaining-requests"]) == (*REQUESTS, "0")
    assert "Try again in" in error.message


@pytest.mark.parametrize(("path", "streams"), [each for each in EVERYWHERE if each[0] in STREAMING])
@pytest.mark.parametrize(("limit", "names"), [("tokens", TOKENS), ("budget", QUOTA)])
def test_it_tells_tokens_a_minute_from_a_spent_budget(
    platform: Platform,
    provider: ScriptedProvider,
    keys: dict[str, str],
    path: str,
    streams: bool,
    limit: str,
    names: tuple[str, str],
) -> None:
    provider.script(MODEL, completion("Hello", usage={"prompt_tokens": 500, "completion_tokens": 499}))
    platform.ask(CHAT, chat(MODEL), key=keys[limit])  # spends it, or is refused already
    error = expect(platform, path, body_of(path, streams=streams), openai.RateLimitError, keys[limit])
    assert named(error) == names


def test_it_tells_too_many_calls_at_once(platform: Platform, keys: dict[str, str], model: Model) -> None:
    model.script(Reply(body=[b": wait\n\n", 30.0]))
    more = {"key": keys["slots"], "leave_after": 1}
    first = threading.Thread(target=platform.ask, args=(CHAT, chat(model.name, stream=True)), kwargs=more)
    first.start()
    wait_until(lambda: bool(model.calls()), "the first call to arrive")
    error = expect(platform, CHAT, chat(model.name), openai.RateLimitError, keys["slots"])
    first.join()
    assert named(error) == REQUESTS


@pytest.mark.parametrize(
    ("path", "body", "error", "code", "param"),
    [
        (CHAT, {}, openai.BadRequestError, "missing_required_parameter", "model"),
        (CHAT, chat(EMBEDDER), openai.NotFoundError, "model_not_found", "model"),
        (CHAT, body_of(CHAT, messages=[]), openai.BadRequestError, "empty_array", "messages"),
        (CHAT, chat(MODEL, temperature=3), openai.BadRequestError, "decimal_above_max_value", "temperature"),
        (CHAT, chat(MODEL, n=0), openai.BadRequestError, "integer_below_min_value", "n"),
        (CHAT, chat(MODEL, max_tokens="many"), openai.BadRequestError, "invalid_type", "max_tokens"),
        (CHAT, None, openai.APIStatusError, "method_not_allowed", None),
        ("/v1/files", None, openai.NotFoundError, "not_found", None),
        ("/v1/images/generations", {}, openai.NotFoundError, "not_found", None),
    ],
)
def test_it_calls_the_caller_s_faults_invalid_requests(
    platform: Platform, path: str, body: Any, error: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    raised = expect(platform, path, body, error)
    assert (*named(raised), raised.param) == (code, INVALID, param)


def test_it_calls_a_missing_scope_an_invalid_request(platform: Platform, keys: dict[str, str]) -> None:
    error = expect(platform, CHAT, chat(MODEL), openai.PermissionDeniedError, keys["narrow"])
    assert named(error) == ("scope_denied", INVALID)


@pytest.mark.parametrize(("path", "streams"), EVERYWHERE)
@pytest.mark.parametrize(
    ("status", "code"), [(503, "upstream_failed"), (429, "upstream_busy"), (504, "upstream_timeout")]
)
def test_it_calls_failures_server_errors(
    make_model: Callable[..., Model], path: str, streams: bool, status: int, code: str
) -> None:
    model = make_model(path)
    model.script(Reply(status, {"Retry-After": "0"}, b'{"error": {"message": "no"}}'))
    error = expect(model.platform, path, body_of(path, streams=streams, model=model.name), openai.InternalServerError)
    assert named(error) == (code, "server_error")


def test_it_calls_an_error_in_mid_stream_a_server_error(platform: Platform, model: Model) -> None:
    said = {"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}
    model.script(Reply(body=[event({"id": "c", "choices": [said]})], breaks_off=True))
    answer = model.ask(stream=True)
    error = answer.events()[-1]["error"]
    assert (error["code"], error["type"]) == ("upstream_failed", "server_error")
    ErrorObject.model_validate(error, strict=True)
    url = f"{platform.service.base_url}/v1"
    with openai.OpenAI(base_url=url, api_key=platform.key, max_retries=0) as client, pytest.raises(openai.APIError):
        list(client.chat.completions.create(stream=True, **model.body()))


def test_it_answers_a_retry_under_an_idempotency_key_with_the_same_error(platform: Platform) -> None:
    headers = {"Idempotency-Key": "of-an-unknown-model"}
    first, again = (platform.ask(CHAT, chat("gpt-none"), headers=headers) for _ in range(2))
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.status, again.error) == (first.status, first.error)
