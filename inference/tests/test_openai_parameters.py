"""Parameters that would take a call beyond its bound: no name of them, of any server, gets through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from core.errors import InvalidRequest
from inference.api.openai import checked_names
from inference.fake_provider import FakeUpstream
from inference.protocols.chat import chat_protocol
from inference.protocols.completions import completion_protocol, embedding_protocol
from inference.protocols.parameters import _by_folded, check_payload, refuse_misspelt
from inference.protocols.responses import response_protocol
from inference.tests.fixtures import MODEL, Api
from inference.tests.samples import serve

CHECKS = {
    "/v1/chat/completions": chat_protocol.checks,
    "/v1/completions": completion_protocol.checks,
    "/v1/embeddings": embedding_protocol.checks,
    "/v1/responses": response_protocol.checks,
}
#: What each endpoint refuses, by its name in docs/openai.md.
REFUSED = {
    "chat completions": chat_protocol.refused,
    "completions": completion_protocol.refused,
    "embeddings": embedding_protocol.refused,
    "responses": response_protocol.refused,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"model": MODEL, "prompt": "hello"},
    "/v1/embeddings": {"model": "embedder", "input": "hello"},
    "/v1/responses": {"model": MODEL, "input": "hello"},
}
#: What each endpoint itself calls the longest answer, and the number of answers.
OWN = {
    "/v1/chat/completions": {"max_tokens", "max_completion_tokens", "n"},
    "/v1/completions": {"max_tokens", "n", "best_of"},
    "/v1/responses": {"max_output_tokens"},
}
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


#: A row of the documentation's table: names, endpoints, why.
ENDPOINTS = "(?:(?:chat completions|completions|embeddings|responses)(?:, )?)+"
REFUSED_ROW = re.compile(rf"^\| ((?:`\w+`(?:, )?)+) \| (all|{ENDPOINTS}) \| .+ \|$", re.MULTILINE)


def documented() -> list[tuple[str, str]]:
    """List what docs/openai.md says is refused: endpoints and names."""
    rows = REFUSED_ROW.findall((Path(settings.BASE_DIR) / "docs" / "openai.md").read_text())
    return [
        (endpoint, name)
        for names, ends in rows
        for endpoint in (REFUSED if ends == "all" else ends.split(", "))
        for name in re.findall(r"\w+", names)
    ]


def test_it_documents_all_that_it_refuses_and_nothing_else() -> None:
    assert sorted(documented()) == sorted((end, name) for end, names in REFUSED.items() for name in names)


def code_of(path: str, name: str, value: Any) -> str | None:
    """Return the code of the refusal that a parameter meets, None where it passes."""
    try:
        check_payload({**BODIES[path], name: value}, CHECKS[path], required=())
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
@pytest.mark.parametrize("path", CHECKS)
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


def is_refused(name: str) -> bool:
    """Say whether a name is taken for a misspelt one."""
    try:
        refuse_misspelt([name], checked_names())
    except InvalidRequest:
        return True
    return False


def test_it_lets_every_other_name_through() -> None:
    names = ["top_k", "topK", "ignore_eos", "seed", "response_format", "a_parameter_of_next_year", "Store"]
    assert [name for name in names if is_refused(name)] == ["Store"], "which is looked at as `store`"


def test_no_two_names_are_told_apart_by_their_spelling_alone() -> None:
    assert len(_by_folded(checked_names())) == len(checked_names())


@pytest.mark.parametrize("path", OWN)
def test_nothing_goes_upstream_that_was_refused(roomy: Api, upstream: FakeUpstream, path: str) -> None:
    for name, value in (("n_predict", 900), ("n_cmpl", 4), ("web_search_options", {}), ("maxTokens", 900)):
        assert roomy.post(path, {**BODIES[path], name: value}).status_code == 400
    assert not upstream.requests


@pytest.mark.parametrize("path", CHECKS)
def test_it_passes_on_what_bounds_nothing(roomy: Api, upstream: FakeUpstream, path: str) -> None:
    serve("embedder", kind="embedding")
    assert roomy.post(path, {**BODIES[path], "ignore_eos": True, "top_k": 5}).status_code == 200
    sent = upstream.requests[-1].body
    assert (sent["ignore_eos"], sent["top_k"]) == (True, 5)
