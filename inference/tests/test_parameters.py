"""The parameters of /v1: what is checked, in OpenAI's words, and what is refused under whatever name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from core.errors import InvalidRequest
from inference.api.openai import checked_names
from inference.fake_provider import FakeUpstream
from inference.protocols.base import WireProtocol
from inference.protocols.chat import chat_protocol, completion_protocol
from inference.protocols.embeddings import embedding_protocol
from inference.protocols.messages import messages_protocol
from inference.protocols.parameters import folded, names_by_fold, refuse_misspelt
from inference.protocols.responses import response_protocol
from inference.tests.fixtures import MODEL, Api
from inference.tests.samples import serve

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": MODEL, "prompt": "hello"}
EMBEDDING = {"model": "embedder", "input": "hello"}
RESPONSE = {"model": MODEL, "input": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
    "/v1/responses": RESPONSE,
}
PROTOCOLS: dict[str, WireProtocol] = {
    "/v1/chat/completions": chat_protocol,
    "/v1/completions": completion_protocol,
    "/v1/embeddings": embedding_protocol,
    "/v1/responses": response_protocol,
}
#: What each endpoint itself calls the longest answer, and the number of answers.
OWN = {
    "/v1/chat/completions": {"max_tokens", "max_completion_tokens", "n"},
    "/v1/completions": {"max_tokens", "n", "best_of"},
    "/v1/responses": {"max_output_tokens"},
}


@pytest.mark.parametrize(("path", "body"), BODIES.items())
def test_it_says_what_is_missing(roomy: Api, path: str, body: dict[str, Any]) -> None:
    for name in body:
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
    ("service_tier", "scale", "invalid_value"),
]


@pytest.mark.parametrize(
    ("protocol", "body", "name", "value", "code"),
    [
        *((PROTOCOLS[path], BODIES[path], *wrong) for path in OWN for wrong in WRONG_FOR_ALL),
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
    assert f"'{name}'" in refused.value.detail


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


def test_it_answers_404_for_a_model_of_another_kind(roomy: Api, upstream: FakeUpstream) -> None:
    serve("embedder", kind="embedding")
    for path, body in (
        ("chat/completions", {**CHAT, "model": "embedder"}),
        ("embeddings", {**EMBEDDING, "model": MODEL}),
    ):
        error = roomy.post(f"/v1/{path}", body).json()["error"]
        assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")


#: As the servers that know them spell them.
FOREIGN = [
    ("max_tokens", 900),
    ("max_completion_tokens", 900),
    ("max_output_tokens", 900),
    ("n_predict", 900),
    ("n_predict", -1),
    ("n_predict", 0),
    ("n_predict", False),
    ("num_predict", 900),
    ("max_new_tokens", 900),
    ("max_length", 900),
    ("n", 4),
    ("best_of", 4),
    ("n_cmpl", 4),
    ("n_choices", 4),
    ("min_tokens", 900),
    ("options", {"num_predict": 900}),
    ("parameters", {"max_new_tokens": 900}),
    ("sampling_params", {"max_new_tokens": 900}),
    ("extra_body", {}),
]
#: What switches on what costs beside tokens, or another model; and the values that leave it off.
SWITCHES: list[tuple[str, list[Any], list[Any]]] = [
    ("web_search_options", [{}, {"search_context_size": "high"}, "", 0, []], [False]),
    ("search_parameters", [{}, {"mode": "auto"}], [False]),
    ("enable_search", [True, "true", 1], [False]),
    ("plugins", [[{"id": "web"}], {}, True], [[]]),
    ("mcp_servers", [[{"url": "https://example.com"}]], [[]]),
    ("data_sources", [[{"type": "azure_search"}]], [[]]),
    ("context_management", [[{"type": "compaction"}], {"edits": []}], [[]]),
    ("models", [["dearer"], "dearer"], [[]]),
    ("fallbacks", [[{"model": "dearer"}]], [[]]),
    ("provider", [{}, {"order": ["dearer"]}], []),
    ("audio", [{}, {"voice": "ash"}], [False]),
    ("prediction", [{}, {"type": "content"}], [False]),
    ("compound_custom", [{"tools": {}}], [False]),
    ("speed", ["fast"], [False]),
]


#: The endpoints by their names in docs/openai.md, and a row of its table: names, endpoints, why.
ENDPOINTS = dict(zip(("chat completions", "completions", "embeddings", "responses"), PROTOCOLS.values(), strict=True))
REFUSED_ROW = re.compile(
    rf"^\| ((?:`\w+`(?:, )?)+) \| (all|(?:(?:{'|'.join(ENDPOINTS)})(?:, )?)+) \| .+ \|$", re.MULTILINE
)


def test_it_documents_all_that_it_refuses_and_nothing_else() -> None:
    rows = REFUSED_ROW.findall((Path(settings.BASE_DIR) / "docs" / "openai.md").read_text())
    documented = [
        (endpoint, name)
        for names, ends in rows
        for endpoint in (ENDPOINTS if ends == "all" else ends.split(", "))
        for name in re.findall(r"\w+", names)
    ]
    assert sorted(documented) == sorted((end, name) for end, each in ENDPOINTS.items() for name in each.refused)


def test_it_documents_what_messages_refuse() -> None:
    told = (Path(settings.BASE_DIR) / "docs" / "anthropic.md").read_text()
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| .+ \|$",
        told.partition("| parameters | why |")[2].partition("\n\n")[0],
        re.MULTILINE,
    )
    documented = [name for names in rows for name in re.findall(r"\w+", names)]
    assert sorted(documented) == sorted(messages_protocol.refused)


def code_of(path: str, name: str, value: Any) -> str | None:
    """Return the code of the refusal that a parameter meets, None where it passes."""
    try:
        PROTOCOLS[path].check({**BODIES[path], name: value})
    except InvalidRequest as refused:
        return refused.error_code if refused.param == name else f"of {refused.param}"
    return None


@pytest.mark.parametrize("path", OWN)
def test_it_takes_one_name_of_the_longest_answer_and_of_their_number(path: str) -> None:
    for name, value in FOREIGN:
        if name not in OWN[path]:
            assert code_of(path, name, value) == "unsupported_parameter", name
            assert code_of(path, name, None) is None


@pytest.mark.parametrize(("name", "on", "off"), SWITCHES)
@pytest.mark.parametrize("path", PROTOCOLS)
def test_it_refuses_what_switches_on_more_than_tokens(path: str, name: str, on: list[Any], off: list[Any]) -> None:
    for value in on:
        assert code_of(path, name, value) == "unsupported_parameter"
    for value in [None, *off]:
        assert code_of(path, name, value) is None


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "background", "prompt"])
def test_it_refuses_what_lives_on_at_the_provider(name: str) -> None:
    for value in ({"id": "x_1"}, {}, True, "x_1"):
        assert code_of("/v1/responses", name, value) == "unsupported_parameter"
    assert code_of("/v1/responses", "background", False) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Max_Tokens", "max_tokens"),
        ("MAX_TOKENS", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("max-tokens", "max_tokens"),
        ("max_to\u212aens", "max_tokens"),  # the sign of the Kelvin, which Go folds to k
        ("Model", "model"),
        ("N", "n"),
        ("webSearchOptions", "web_search_options"),
        ("Store", "store"),
    ],
)
def test_it_refuses_names_that_some_servers_take_for_others(name: str, meant: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        refuse_misspelt(["messages", name], checked_names())
    assert (refused.value.param, refused.value.error_code) == (name, "unknown_parameter")
    assert f"'{meant}'" in refused.value.detail


def test_it_lets_every_other_name_through() -> None:
    refuse_misspelt(["top_k", "topK", "ignore_eos", "seed", "response_format", "next_year"], checked_names())
    assert len(names_by_fold(checked_names(), folded)) == len(checked_names()), "two names that some servers confuse"


@pytest.mark.parametrize("path", PROTOCOLS)
def test_it_passes_on_what_bounds_nothing_and_nothing_that_was_refused(
    roomy: Api, upstream: FakeUpstream, path: str
) -> None:
    serve("embedder", kind="embedding")
    for name, value in (("web_search_options", {}), ("maxTokens", 900), ("min_tokens", 4)):
        assert roomy.post(path, {**BODIES[path], name: value}).status_code == 400
    assert not upstream.requests
    passed = {
        "ignore_eos": True,
        "top_k": 5,
        "logit_bias": {"50256": -100},
        "next_year": {"nested": [1, {"deep": None}]},
    }
    assert roomy.post(path, {**BODIES[path], **passed}).status_code == 200
    (request,) = upstream.requests
    assert request.path == path
    sent = {name: value for name, value in request.body.items() if "max" not in name and name != "store"}
    assert sent == {**BODIES[path], **passed}
