"""What docs/openai.md says of parameters holds: what it lists is refused, and what OpenAI takes is taken."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.running import CHAT, EMBEDDER, MODEL, Platform, Reply, ScriptedProvider, event
from tests.servers import ROOT

STORY = "The safety bicycle of 1885 set the pattern for all that followed. " * 5
ENDPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat completions": (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}),
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


def names_of(endpoint: str, *, with_off: bool = False) -> list[str]:
    """List the parameters that an endpoint refuses by the documentation, or those of them that can be left off."""
    return [
        name
        for names, ends, why in ROWS
        if ends == "all" or endpoint in ends.split(", ")
        if not with_off or "can be left off" in why
        for name in re.findall(r"\w+", names)
    ]


def scored(*texts: str, output: int) -> dict[str, Any]:
    """Make a completion of these texts, for whose prompts the usage tells 9 tokens."""
    usage = {"prompt_tokens": 9, "completion_tokens": output, "total_tokens": 9 + output}
    choices = [{"index": n, "text": text, "finish_reason": "length", "logprobs": None} for n, text in enumerate(texts)]
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


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


@pytest.mark.parametrize("prompts", [["hello there"], [STORY, STORY], [[1, 2, 3], [4, 5]]])
@pytest.mark.parametrize("is_stream", [False, True])
def test_it_scores_prompts_without_generating(
    platform: Platform, provider: ScriptedProvider, prompts: list[Any], is_stream: bool
) -> None:
    whole = scored(*[prompt if isinstance(prompt, str) else STORY for prompt in prompts], output=0)
    chunks = [{**whole, "usage": None}, {**whole, "choices": []}, "[DONE]"]
    provider.script(MODEL, Reply(body=[event(chunk) for chunk in chunks] if is_stream else json.dumps(whole).encode()))
    body = {"model": MODEL, "prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 1, "best_of": 0}
    answer = platform.ask("/v1/completions", {**body, "stream": is_stream})
    assert answer.status == 200, answer.body
    sent = provider.calls[-1].payload
    assert {name: sent[name] for name in body} == body
    record = platform.record(answer)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (9, 0, "provider")


def test_it_sets_a_token_aside_where_a_server_generates_one_all_the_same(
    platform: Platform, provider: ScriptedProvider
) -> None:
    provider.script(MODEL, Reply(body=json.dumps(scored("hello there", output=1)).encode()))
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
