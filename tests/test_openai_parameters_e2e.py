"""What docs/openai.md says of parameters holds: what it lists is refused, and what OpenAI takes is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.running import Platform, Reply, ScriptedProvider, Served, event, running_platform, scripted_provider
from tests.servers import ROOT

MODEL, EMBEDDER = "parameter-model", "parameter-embedder"
ENDPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat completions": ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}),
    "completions": ("/v1/completions", {"model": MODEL, "prompt": "a"}),
    "embeddings": ("/v1/embeddings", {"model": EMBEDDER, "input": "a"}),
    "responses": ("/v1/responses", {"model": MODEL, "input": "a"}),
}
NAMED = "(?:(?:chat completions|completions|embeddings|responses)(?:, )?)+"
#: A row of the table: names, endpoints, why.
ROW = re.compile(rf"^\| ((?:`\w+`(?:, )?)+) \| (all|{NAMED}) \| (.+) \|$", re.MULTILINE)
ROWS: list[tuple[str, str, str]] = ROW.findall((ROOT / "docs" / "openai.md").read_text())
#: Those that take a list; others that can be left off are so by false.
LISTS = {"models", "fallbacks", "model_list", "transforms", "plugins", "mcp_servers", "data_sources"} | {
    "context_management", "tools", "functions", "images",
}  # fmt: skip


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider of this module's own."""
    with scripted_provider() as server:
        yield server


@pytest.fixture(scope="module")
def platform(provider: ScriptedProvider, prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run a platform that serves the models."""
    served = [Served(MODEL, [provider.base_url]), Served(EMBEDDER, [provider.base_url], kind="embedding")]
    with running_platform(prepared(), served) as running:
        yield running


def names_of(endpoint: str, *, with_off: bool = False) -> list[str]:
    """List the parameters that an endpoint refuses by the documentation, or those of them that can be left off."""
    return [
        name
        for names, ends, why in ROWS
        if ends == "all" or endpoint in ends.split(", ")
        if not with_off or "can be left off" in why
        for name in re.findall(r"\w+", names)
    ]


def completed(text: str, prompt: int, output: int) -> dict[str, Any]:
    """Make the body of a completion and its usage."""
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_it_refuses_each_parameter_that_the_documentation_lists(
    platform: Platform, provider: ScriptedProvider, endpoint: str
) -> None:
    path, body = ENDPOINTS[endpoint]
    before, names = len(provider.calls), names_of(endpoint)
    assert {"context_management", "min_tokens", "audio"} <= set(names)
    for name in names:
        answer = platform.ask(path, {**body, name: {"a": 1}})
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, name, "unsupported_parameter")
        assert f"'{name}'" in answer.error["message"]
    assert len(provider.calls) == before


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_it_takes_what_switches_a_parameter_off(platform: Platform, provider: ScriptedProvider, endpoint: str) -> None:
    path, body = ENDPOINTS[endpoint]
    message = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "text": "Hi", "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    of_all = {"choices": [message], "output": [], "status": "completed", "data": [{"index": 0, "embedding": [0.5]}]}
    for model in (MODEL, EMBEDDER):
        provider.script(model, Reply(body=json.dumps({"id": "c", **of_all, "usage": usage}).encode()))
    off: dict[str, Any] = {name: [] if name in LISTS else False for name in names_of(endpoint, with_off=True)}
    for more in (dict.fromkeys(names_of(endpoint)), off):
        answer = platform.ask(path, {**body, **more})
        assert answer.status == 200, answer.body


def test_it_scores_a_prompt_without_generating(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, Reply(body=json.dumps(completed("hello there", 2, 0)).encode()))
    scored = {"model": MODEL, "prompt": "hello there", "max_tokens": 0, "echo": True, "logprobs": 1, "best_of": 0}
    answer = platform.ask("/v1/completions", scored)
    assert (answer.status, answer.json()["choices"][0]["text"]) == (200, "hello there")
    assert provider.calls[-1].payload == scored
    record = platform.record(answer)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (2, 0, "provider")


def test_it_streams_a_prompt_that_is_only_echoed(platform: Platform, provider: ScriptedProvider) -> None:
    whole = completed("hello there", 2, 0)
    chunks = [{**whole, "usage": None}, {**whole, "choices": []}, "[DONE]"]
    provider.script(MODEL, Reply(body=[event(chunk) for chunk in chunks]))
    body = {"model": MODEL, "prompt": "hello there", "max_tokens": 0, "echo": True, "stream": True}
    answer = platform.ask("/v1/completions", body)
    assert (answer.status, answer.events()[-1]) == (200, "[DONE]")
    assert provider.calls[-1].payload["max_tokens"] == 0
    record = platform.record(answer)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (2, 0, "provider")


def test_it_sets_a_token_aside_where_a_server_generates_one_all_the_same(
    platform: Platform, provider: ScriptedProvider
) -> None:
    provider.script(MODEL, Reply(body=json.dumps(completed("hello there", 2, 1)).encode()))
    answer = platform.ask("/v1/completions", {"model": MODEL, "prompt": "hello there", "max_tokens": 0, "echo": True})
    assert answer.status == 200
    record, rows = platform.record(answer), platform.rows("SELECT label, is_overrun FROM monitoring_requestrecord")
    assert record.output_tokens == 1
    assert [bool(row["is_overrun"]) for row in rows if row["label"] == record.label] == [False]


@pytest.mark.parametrize(("name", "value"), [("max_tokens", -1), ("best_of", -1), ("n", 0), ("max_tokens", 0.5)])
def test_it_names_a_value_of_completions_that_is_out_of_bounds(platform: Platform, name: str, value: float) -> None:
    answer = platform.ask("/v1/completions", {"model": MODEL, "prompt": "a", name: value})
    code = "integer_below_min_value" if isinstance(value, int) else "invalid_type"
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, name, code)
