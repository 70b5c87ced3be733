"""Errors under /v1 as OpenAI's clients expect them: its published schema of an error, its types and codes, and the
exception that its own client raises for each, on every endpoint, plain and streamed.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types import ErrorObject

from tests.running import (
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

CHAT, EMBEDDER = "chatty", "embedder"
#: A valid body of each endpoint.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat(CHAT),
    "/v1/completions": {"model": CHAT, "prompt": "hello there"},
    "/v1/responses": {"model": CHAT, "input": "hello there"},
    "/v1/embeddings": {"model": EMBEDDER, "input": "hello there"},
}
ENDPOINTS = list(BODIES)
STREAMING = ENDPOINTS[:3]
CHATTING = ENDPOINTS[0]
REQUESTS = ("rate_limit_exceeded", "requests")
TOKENS = ("rate_limit_exceeded", "tokens")
QUOTA = ("insufficient_quota", "insufficient_quota")
INVALID = "invalid_request_error"
KEY_REQUIRED, KEY_INVALID = "API key required. Include X-API-Key header.", "Invalid API key"


@dataclass
class Cast:
    """The platform, its provider, and a key whose limit of each kind is spent or too small."""

    platform: Platform
    provider: ScriptedProvider
    keys: dict[str, str]

    def client(self, key: str | None = None) -> openai.OpenAI:
        """Make OpenAI's client, which retries nothing by itself."""
        base_url = f"{self.platform.service.base_url}/v1"
        return openai.OpenAI(base_url=base_url, api_key=key or self.platform.key, max_retries=0)


@pytest.fixture(scope="module")
def cast(prepared: Callable[[], dict[str, str]]) -> Iterator[Cast]:
    """Run the platform with a provider that is asked anew after each failure, and make the keys."""
    limits: dict[str, dict[str, Any]] = {
        "requests": {"requests_per_minute": 1},
        "tokens": {"tokens_per_minute": 1_000, "max_output_tokens": 600},
        "slots": {"concurrent_requests": 1},
        "budget": {"monthly_token_budget": 1_000, "max_output_tokens": 600},
    }
    with scripted_provider() as provider:
        served = [Served(CHAT, [provider.base_url]), Served(EMBEDDER, [provider.base_url], kind="embedding")]
        with running_platform(prepared(), served) as platform:
            keys = {name: platform.add([], account=name, **tier) for name, tier in limits.items()}
            yield Cast(platform, provider, keys)


def expect(cast: Cast, path: str, body: Any, error: type[openai.APIStatusError], *, key: str = "") -> openai.APIError:
    """Ask by OpenAI's client, and check class and shape of what it raises."""
    with cast.client(key) as client, pytest.raises(error) as raised:
        client.post(path.removeprefix("/v1"), cast_to=object, body=body)
    assert type(raised.value) is error
    assert raised.value.request_id
    body = raised.value.response.json()
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code"} <= set(body["error"])
    ErrorObject.model_validate(body["error"], strict=True)
    assert body["error"]["message"]
    return raised.value


def told(error: openai.APIError) -> tuple[str | None, str | None]:
    """Return code and type."""
    return error.code, error.type


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("streams", [False, True])
def test_it_names_the_model_that_is_not_there(cast: Cast, path: str, streams: bool) -> None:
    body = {**BODIES[path], "model": "gpt-none", **({"stream": True} if streams and path in STREAMING else {})}
    error = expect(cast, path, body, openai.NotFoundError)
    assert (*told(error), error.param) == ("model_not_found", INVALID, "model")
    assert "`gpt-none`" in error.message


@pytest.mark.parametrize(("path", "body"), [("/chat", {"message": "hello"}), ("/summarize", {"text": "hello " * 9})])
def test_it_names_the_model_on_the_platform_s_own_endpoints(cast: Cast, path: str, body: dict[str, Any]) -> None:
    answer = cast.platform.ask(path, {**body, "model": "gpt-none"})
    assert (answer.status, answer.json()["code"]) == (404, "model_not_found")
    assert "`gpt-none`" in answer.json()["detail"]


def test_it_names_the_model_that_is_looked_up(cast: Cast) -> None:
    with cast.client() as client, pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-none")
    assert (*told(raised.value), raised.value.param) == ("model_not_found", INVALID, "model")
    assert "`gpt-none`" in raised.value.message


def test_it_repeats_no_key_and_no_page_of_text_as_a_model_s_name(cast: Cast) -> None:
    for name in (cast.platform.key, "x" * 5_000, "two\nlines"):
        answer = cast.platform.ask(CHATTING, chat(name))
        message = answer.error["message"]
        assert answer.status in (400, 404)
        assert cast.platform.key not in message
        assert "\n" not in message
        assert len(message) < 300


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/models"])
def test_it_answers_a_bad_key_as_openai_does(cast: Cast, path: str) -> None:
    body = BODIES.get(path)
    for key, message in ((None, KEY_REQUIRED), ("sk-wrong", KEY_INVALID)):
        status, error = ask_with(cast, path, body, {} if key is None else {"Authorization": f"Bearer {key}"})
        assert status == 401
        assert error == {"message": message, "type": INVALID, "param": None, "code": "invalid_api_key"}


def test_it_raises_the_client_s_error_for_a_bad_key(cast: Cast) -> None:
    error = expect(cast, CHATTING, BODIES[CHATTING], openai.AuthenticationError, key="sk-wrong")
    assert told(error) == ("invalid_api_key", INVALID)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_it_tells_requests_a_minute(cast: Cast, path: str) -> None:
    cast.provider.script(CHAT, completion("Hello"))
    cast.platform.ask(CHATTING, chat(CHAT), key=cast.keys["requests"])
    error = expect(cast, path, BODIES[path], openai.RateLimitError, key=cast.keys["requests"])
    assert told(error) == REQUESTS
    assert error.message.startswith("Error code: 429") or "Try again in" in error.message


@pytest.mark.parametrize("path", STREAMING)
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("limit", "names"), [("tokens", TOKENS), ("budget", QUOTA)])
def test_it_tells_tokens_a_minute_from_a_spent_budget(
    cast: Cast, path: str, streams: bool, limit: str, names: tuple[str, str]
) -> None:
    usage = {"prompt_tokens": 500, "completion_tokens": 499, "total_tokens": 999}
    cast.provider.script(CHAT, completion("Hello", usage=usage))
    cast.platform.ask(CHATTING, chat(CHAT), key=cast.keys[limit])  # spends it, or is refused already
    body = {**BODIES[path], **({"stream": True} if streams else {})}
    assert told(expect(cast, path, body, openai.RateLimitError, key=cast.keys[limit])) == names


def test_it_tells_too_many_calls_at_once(cast: Cast) -> None:
    cast.provider.calls.clear()
    cast.provider.script(CHAT, Reply(body=[b": wait\n\n", 30.0]))
    key = cast.keys["slots"]
    stream = {**chat(CHAT), "stream": True}
    first = threading.Thread(target=cast.platform.ask, args=(CHATTING, stream), kwargs={"key": key, "leave_after": 3})
    first.start()
    wait_until(lambda: bool(cast.provider.calls), "the first call to arrive")
    error = expect(cast, CHATTING, chat(CHAT), openai.RateLimitError, key=key)
    first.join()
    assert told(error) == REQUESTS


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("post", "/chat/completions", {}, openai.BadRequestError),
        ("post", "/chat/completions", {**chat(CHAT), "temperature": 9}, openai.BadRequestError),
        ("get", "/files", None, openai.NotFoundError),
        ("get", "/chat/completions", None, openai.APIStatusError),
    ],
)
def test_it_calls_the_caller_s_faults_invalid_requests(
    cast: Cast, method: str, path: str, body: Any, error: type[openai.APIStatusError]
) -> None:
    with cast.client() as client, pytest.raises(error) as raised:
        getattr(client, method)(path, cast_to=object, **({} if body is None else {"body": body}))
    assert raised.value.type == INVALID


def test_it_calls_a_missing_scope_an_invalid_request(cast: Cast) -> None:
    arguments = ("--account", "e2e", "--tier", "e2e", "--name", "narrow", "--scope", "usage", "--json")
    made = cast.platform.manage("key", "create", *arguments)
    key = json.loads(made.strip().splitlines()[-1])["key"]
    error = expect(cast, CHATTING, BODIES[CHATTING], openai.PermissionDeniedError, key=key)
    assert told(error) == ("scope_denied", INVALID)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("status", "code"), [(503, "upstream_failed"), (429, "upstream_busy"), (504, "upstream_timeout")]
)
def test_it_calls_failures_server_errors(cast: Cast, path: str, streams: bool, status: int, code: str) -> None:
    for model in (CHAT, EMBEDDER):
        cast.provider.script(model, Reply(status, {"Retry-After": "0"}, b'{"error": {"message": "no"}}'))
    body = {**BODIES[path], **({"stream": True} if streams and path in STREAMING else {})}
    error = expect(cast, path, body, openai.InternalServerError)
    assert error.type == "server_error"
    assert error.code in (code, "upstream_busy")  # while nobody asks a provider that failed again and again


def test_it_calls_an_error_in_mid_stream_a_server_error(cast: Cast) -> None:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    said = {"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}
    piece = b"data: " + json.dumps({**chunk, "choices": [said]}).encode() + b"\n\n"
    model = "breaking"
    cast.provider.script(model, Reply(body=[piece], breaks_off=True))
    key = cast.platform.add([Served(model, [cast.provider.base_url])], account="breaking")
    with cast.client(key) as client, pytest.raises(openai.APIError) as raised:
        list(client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], stream=True))
    assert told(raised.value) == ("upstream_failed", "server_error")
    ErrorObject.model_validate(raised.value.body, strict=True)


def test_it_answers_a_retry_under_an_idempotency_key_with_the_same_error(cast: Cast) -> None:
    headers = {"Idempotency-Key": "of-an-unknown-model"}
    first, again = (cast.platform.ask(CHATTING, chat("gpt-none"), headers=headers) for _ in range(2))
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.status, again.error) == (first.status, first.error)


def ask_with(cast: Cast, path: str, body: Any, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Ask with just these headers, and return status and error."""
    connection = http.client.HTTPConnection("127.0.0.1", cast.platform.service.port, timeout=30)
    content = None if body is None else json.dumps(body)
    connection.request(
        "GET" if body is None else "POST", path, content, {"Content-Type": "application/json", **headers}
    )
    answer = connection.getresponse()
    error: dict[str, Any] = json.loads(answer.read())["error"]
    connection.close()
    return answer.status, error
