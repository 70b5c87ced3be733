"""The checks of OpenAI's parameters, and OpenAI's own way to say what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import InvalidRequest
from inference.fake_provider import FakeUpstream
from inference.protocols.base import WireProtocol
from inference.protocols.chat import chat_protocol
from inference.protocols.completions import completion_protocol, embedding_protocol
from inference.protocols.responses import response_protocol
from inference.tests.fixtures import MODEL, Api
from inference.tests.samples import serve

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": MODEL, "prompt": "hello"}
EMBEDDING = {"model": "embedder", "input": "hello"}
RESPONSE = {"model": MODEL, "input": "hello"}
ENDPOINTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("/v1/chat/completions", CHAT, ("model", "messages")),
    ("/v1/completions", COMPLETION, ("model", "prompt")),
    ("/v1/embeddings", EMBEDDING, ("model", "input")),
    ("/v1/responses", RESPONSE, ("model", "input")),
]
CHAT_ENDPOINTS = [endpoint for endpoint in ENDPOINTS if endpoint[0] != "/v1/embeddings"]


@pytest.mark.parametrize(("path", "body", "required"), ENDPOINTS)
def test_it_says_what_is_missing(roomy: Api, path: str, body: dict[str, Any], required: tuple[str, ...]) -> None:
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
@pytest.mark.parametrize(("path", "body", "required"), CHAT_ENDPOINTS)
def test_it_names_the_wrong_parameter_as_openai_does(
    roomy: Api,
    path: str,
    body: dict[str, Any],
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
    ("protocol", "body", "name", "value", "code"),
    [
        (chat_protocol, CHAT, "messages", "hello", "invalid_type"),
        (chat_protocol, CHAT, "messages", ["hello"], "invalid_type"),
        (chat_protocol, CHAT, "messages", [], "empty_array"),
        (chat_protocol, CHAT, "max_tokens", 0, "integer_below_min_value"),
        (chat_protocol, CHAT, "max_tokens", 1.5, "invalid_type"),
        (chat_protocol, CHAT, "max_tokens", True, "invalid_type"),
        (chat_protocol, CHAT, "max_completion_tokens", 10**9, "integer_above_max_value"),
        (chat_protocol, CHAT, "n", 129, "integer_above_max_value"),
        (chat_protocol, CHAT, "n", 0, "integer_below_min_value"),
        (chat_protocol, CHAT, "tools", {}, "invalid_type"),
        (chat_protocol, CHAT, "tools", [1], "invalid_type"),
        (chat_protocol, CHAT, "stream_options", True, "invalid_type"),
        (chat_protocol, CHAT, "modalities", ["text", "audio"], "unsupported_parameter"),
        (chat_protocol, CHAT, "audio", {"voice": "ash"}, "unsupported_parameter"),
        (chat_protocol, CHAT, "prediction", {"type": "content"}, "unsupported_parameter"),
        (chat_protocol, CHAT, "web_search_options", {"a": 1}, "unsupported_parameter"),
        (completion_protocol, COMPLETION, "prompt", [], "invalid_type"),
        (completion_protocol, COMPLETION, "prompt", ["a", 1], "invalid_type"),
        (completion_protocol, COMPLETION, "prompt", [True], "invalid_type"),
        (completion_protocol, COMPLETION, "prompt", [{"a": 1}], "invalid_type"),
        (completion_protocol, COMPLETION, "prompt", [[1], []], "invalid_type"),
        (completion_protocol, COMPLETION, "prompt", [[1], ["a"]], "invalid_type"),
        (completion_protocol, COMPLETION, "best_of", -1, "integer_below_min_value"),
        (completion_protocol, COMPLETION, "max_tokens", -1, "integer_below_min_value"),
        (embedding_protocol, EMBEDDING, "input", {"text": "a"}, "invalid_type"),
        (embedding_protocol, EMBEDDING, "encoding_format", "hex", "invalid_value"),
        (embedding_protocol, EMBEDDING, "dimensions", 0, "integer_below_min_value"),
        (embedding_protocol, EMBEDDING, "stream", True, "unsupported_parameter"),
        (response_protocol, RESPONSE, "input", [1, 2], "invalid_type"),
        (response_protocol, RESPONSE, "input", [], "empty_array"),
        (response_protocol, RESPONSE, "max_output_tokens", "9", "invalid_type"),
        (response_protocol, RESPONSE, "instructions", ["a"], "invalid_type"),
    ],
)
def test_it_refuses(protocol: WireProtocol, body: dict[str, Any], name: str, value: Any, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        protocol.check({**body, name: value})
    assert (refused.value.param, refused.value.error_code) == (name, code)


@pytest.mark.parametrize(
    ("protocol", "payload"),
    [
        (
            chat_protocol,
            {**CHAT, "temperature": 1, "top_p": None, "n": None, "tools": [], "audio": None, "stream": False},
        ),
        (chat_protocol, {**CHAT, "modalities": ["text"], "service_tier": "auto", "brand_new": {"any": ["thing"]}}),
        (completion_protocol, {**COMPLETION, "prompt": ["a", "b"]}),
        (completion_protocol, {**COMPLETION, "prompt": [1, 2]}),
        (embedding_protocol, {**EMBEDDING, "input": [[1, 2], [3]], "stream": False}),
        (response_protocol, {**RESPONSE, "input": [{"role": "user", "content": "hello"}]}),
    ],
)
def test_it_accepts(protocol: WireProtocol, payload: dict[str, Any]) -> None:
    protocol.check(payload)


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
    for path, body, _ in ENDPOINTS:
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
