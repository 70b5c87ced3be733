"""The checks of OpenAI's parameters, and OpenAI's own way to say what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import InvalidRequest
from inference.api.validation import (
    CHAT_CHECKS,
    COMPLETION_CHECKS,
    EMBEDDING_CHECKS,
    RESPONSE_CHECKS,
    Check,
    check_payload,
)
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import MODEL, Api
from inference.tests.samples import serve

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": MODEL, "prompt": "hello"}
EMBEDDING = {"model": "embedder", "input": "hello"}
RESPONSE = {"model": MODEL, "input": "hello"}
ENDPOINTS: list[tuple[str, dict[str, Any], dict[str, Check], tuple[str, ...]]] = [
    ("/v1/chat/completions", CHAT, CHAT_CHECKS, ("model", "messages")),
    ("/v1/completions", COMPLETION, COMPLETION_CHECKS, ("model", "prompt")),
    ("/v1/embeddings", EMBEDDING, EMBEDDING_CHECKS, ("model", "input")),
    ("/v1/responses", RESPONSE, RESPONSE_CHECKS, ("model", "input")),
]
CHAT_ENDPOINTS = [endpoint for endpoint in ENDPOINTS if endpoint[0] != "/v1/embeddings"]


@pytest.mark.parametrize(("path", "body", "checks", "required"), ENDPOINTS)
def test_it_says_what_is_missing(
    roomy: Api, path: str, body: dict[str, Any], checks: dict[str, Check], required: tuple[str, ...]
) -> None:
    for name in required:
        for lacking in ({k: v for k, v in body.items() if k != name}, {**body, name: None}):
            answer = roomy.post(path, lacking)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert (error["param"], error["code"]) == (name, "missing_required_parameter")
            assert error["message"] == f"Missing required parameter: '{name}'."


WRONG_FOR_ALL: list[tuple[str, Any, str]] = [
    ("model", 5, "invalid_type"),
    ("model", "", "empty_string"),
    ("stream", "yes", "invalid_type"),
    ("stream", 1, "invalid_type"),
    ("temperature", "0", "invalid_type"),
    ("temperature", True, "invalid_type"),
    ("temperature", -0.1, "decimal_below_min_value"),
    ("temperature", 2.1, "decimal_above_max_value"),
    ("top_p", 1.1, "decimal_above_max_value"),
    ("top_p", [], "invalid_type"),
    ("service_tier", "priority", "invalid_value"),
]


@pytest.mark.parametrize(("name", "value", "code"), WRONG_FOR_ALL)
@pytest.mark.parametrize(("path", "body", "checks", "required"), CHAT_ENDPOINTS)
def test_it_names_the_wrong_parameter_as_openai_does(
    roomy: Api,
    path: str,
    body: dict[str, Any],
    checks: dict[str, Check],
    required: tuple[str, ...],
    name: str,
    value: Any,
    code: str,
) -> None:
    answer = roomy.post(path, {**body, name: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", name, code)
    assert f"'{name}'" in error["message"]


@pytest.mark.parametrize(
    ("checks", "body", "name", "value", "code"),
    [
        (CHAT_CHECKS, CHAT, "messages", "hello", "invalid_type"),
        (CHAT_CHECKS, CHAT, "messages", ["hello"], "invalid_type"),
        (CHAT_CHECKS, CHAT, "messages", [], "empty_array"),
        (CHAT_CHECKS, CHAT, "max_tokens", 0, "integer_below_min_value"),
        (CHAT_CHECKS, CHAT, "max_tokens", 1.5, "invalid_type"),
        (CHAT_CHECKS, CHAT, "max_tokens", True, "invalid_type"),
        (CHAT_CHECKS, CHAT, "max_completion_tokens", 10**9, "integer_above_max_value"),
        (CHAT_CHECKS, CHAT, "n", 129, "integer_above_max_value"),
        (CHAT_CHECKS, CHAT, "n", 0, "integer_below_min_value"),
        (CHAT_CHECKS, CHAT, "tools", {}, "invalid_type"),
        (CHAT_CHECKS, CHAT, "tools", [1], "invalid_type"),
        (CHAT_CHECKS, CHAT, "stream_options", True, "invalid_type"),
        (CHAT_CHECKS, CHAT, "modalities", ["text", "audio"], "unsupported_parameter"),
        (CHAT_CHECKS, CHAT, "audio", {"voice": "ash"}, "unsupported_parameter"),
        (CHAT_CHECKS, CHAT, "prediction", {"type": "content"}, "unsupported_parameter"),
        (CHAT_CHECKS, CHAT, "web_search_options", {"a": 1}, "unsupported_parameter"),
        (COMPLETION_CHECKS, COMPLETION, "prompt", [], "invalid_type"),
        (COMPLETION_CHECKS, COMPLETION, "prompt", ["a", 1], "invalid_type"),
        (COMPLETION_CHECKS, COMPLETION, "prompt", [True], "invalid_type"),
        (COMPLETION_CHECKS, COMPLETION, "prompt", [{"a": 1}], "invalid_type"),
        (COMPLETION_CHECKS, COMPLETION, "prompt", [[1], []], "invalid_type"),
        (COMPLETION_CHECKS, COMPLETION, "prompt", [[1], ["a"]], "invalid_type"),
        (COMPLETION_CHECKS, COMPLETION, "best_of", -1, "integer_below_min_value"),
        (COMPLETION_CHECKS, COMPLETION, "max_tokens", -1, "integer_below_min_value"),
        (EMBEDDING_CHECKS, EMBEDDING, "input", {"text": "a"}, "invalid_type"),
        (EMBEDDING_CHECKS, EMBEDDING, "encoding_format", "hex", "invalid_value"),
        (EMBEDDING_CHECKS, EMBEDDING, "dimensions", 0, "integer_below_min_value"),
        (EMBEDDING_CHECKS, EMBEDDING, "stream", True, "unsupported_parameter"),
        (RESPONSE_CHECKS, RESPONSE, "input", [1, 2], "invalid_type"),
        (RESPONSE_CHECKS, RESPONSE, "input", [], "empty_array"),
        (RESPONSE_CHECKS, RESPONSE, "max_output_tokens", "9", "invalid_type"),
        (RESPONSE_CHECKS, RESPONSE, "instructions", ["a"], "invalid_type"),
    ],
)
def test_it_refuses(checks: dict[str, Check], body: dict[str, Any], name: str, value: Any, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_payload({**body, name: value}, checks, required=())
    assert (refused.value.param, refused.value.error_code) == (name, code)


@pytest.mark.parametrize(
    ("checks", "payload"),
    [
        (
            CHAT_CHECKS,
            {**CHAT, "temperature": 1, "top_p": None, "n": None, "tools": [], "audio": None, "stream": False},
        ),
        (CHAT_CHECKS, {**CHAT, "modalities": ["text"], "service_tier": "auto", "brand_new": {"any": ["thing"]}}),
        (COMPLETION_CHECKS, {**COMPLETION, "prompt": ["a", "b"]}),
        (COMPLETION_CHECKS, {**COMPLETION, "prompt": [1, 2]}),
        (EMBEDDING_CHECKS, {**EMBEDDING, "input": [[1, 2], [3]], "stream": False}),
        (RESPONSE_CHECKS, {**RESPONSE, "input": [{"role": "user", "content": "hello"}]}),
    ],
)
def test_it_accepts(checks: dict[str, Check], payload: dict[str, Any]) -> None:
    check_payload(payload, checks, required=("model",))


PASSED_THROUGH: dict[str, Any] = {
    "tool_choice": "none",
    "response_format": {"type": "json_object"},
    "seed": 7,
    "stop": ["\n\n"],
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"50256": -100},
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "reasoning_effort": "low",
    "verbosity": "low",
    "parallel_tool_calls": False,
    "user": "somebody",
    "metadata": {"a": "b"},
    "prompt_cache_key": "key",
    "a_parameter_of_next_year": {"nested": [1, 2, {"deep": None}]},
}


def test_it_passes_every_other_parameter_through(roomy: Api, upstream: FakeUpstream) -> None:
    assert roomy.post("/v1/chat/completions", {**CHAT, **PASSED_THROUGH, "n": 2, "top_p": 0.5}).status_code == 200
    (received,) = upstream.requests
    sent = dict(received.body)
    assert sent.pop("max_tokens") > 0
    assert sent == {**CHAT, **PASSED_THROUGH, "n": 2, "top_p": 0.5}


def test_it_passes_a_call_of_each_endpoint_on(roomy: Api, upstream: FakeUpstream) -> None:
    serve("embedder", kind="embedding")
    for path, body, _, _ in ENDPOINTS:
        answer = roomy.post(path, body)
        assert answer.status_code == 200, answer.content
        assert upstream.requests[-1].path == path


def test_it_answers_404_for_a_model_of_another_kind(roomy: Api, upstream: FakeUpstream) -> None:
    serve("embedder", kind="embedding")
    for path, body in (
        ("/v1/chat/completions", {**CHAT, "model": "embedder"}),
        ("/v1/embeddings", {**EMBEDDING, "model": MODEL}),
    ):
        error = roomy.post(path, body).json()["error"]
        assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")


def test_it_hands_a_provider_s_code_and_parameter_on_and_not_its_text(roomy: Api, upstream: FakeUpstream) -> None:
    upstream.fail_next("http_400")
    answer = roomy.post("/v1/chat/completions", CHAT)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "provider-internal-detail" not in answer.content.decode()
