"""Web searches that the provider runs: allowed where they have a price and a bound, counted, and billed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.running import MESSAGES, Answer, Platform, Reply, ScriptedProvider, Served, asking, event

RESPONSES = "/v1/responses"
#: A search costs a cent, a token of the prompt two micro-dollars, one of the answer ten; the context is 128,000.
CENT, IN, OUT, CONTEXT = 10**7, 2_000, 10_000, 128_000
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
FOUND = {"type": "web_search_result", "url": "https://example.com/", "title": "A page", "encrypted_content": "x" * 4000}
#: What the model does: it searches twice, once without success, which Anthropic does not bill.
BLOCKS: list[dict[str, Any]] = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "rain"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [FOUND]},
    {"type": "server_tool_use", "id": "srvtoolu_2", "name": "web_search", "input": {"query": "sun"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_2",
        "content": {"type": "web_search_tool_result_error", "error_code": "unavailable"},
    },
    {"type": "text", "text": "Rain.", "citations": [{"type": "web_search_result_location", "cited_text": "It rains."}]},
]
USED = {"input_tokens": 9000, "output_tokens": 30, "server_tool_use": {"web_search_requests": 1}}
#: OpenAI's usage has no searches; its output has them. To open a page is no search.
ITEMS: list[dict[str, Any]] = [
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "rain"}},
    {"type": "web_search_call", "id": "ws_2", "status": "completed", "action": {"type": "open_page", "url": "u"}},
    {"type": "web_search_call", "id": "ws_3", "status": "completed", "action": {"type": "search", "query": "sun"}},
    {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
]


def message(blocks: list[dict[str, Any]], *, is_stream: bool, is_whole: bool = True) -> Reply:
    """Make a message of Anthropic's that searches; of a stream, the first event knows only the first prompt."""
    begun: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
    }
    if not is_stream:
        return Reply(body=json.dumps({**begun, "content": blocks, "stop_reason": "end_turn", "usage": USED}).encode())
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**begun, "usage": {"input_tokens": 1000, "output_tokens": 1}}}
    ]
    for at, block in enumerate(blocks):
        events.append({"type": "content_block_start", "index": at, "content_block": block})
        events.append({"type": "content_block_stop", "index": at})
    ends: list[dict[str, Any]] = [
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": USED},
        {"type": "message_stop"},
    ]
    written = [event(each, each["type"]) for each in (*events, *(ends if is_whole else []))]
    return Reply(body=written, breaks_off=not is_whole)


def response(*, is_stream: bool) -> Reply:
    """Make a response that searches."""
    used = {"input_tokens": 9000, "output_tokens": 30, "total_tokens": 9030}
    whole = {"id": "r", "object": "response", "created_at": 1, "status": "completed", "output": ITEMS, "usage": used}
    if not is_stream:
        return Reply(body=json.dumps(whole).encode())
    kinds = [("response.created", {"id": "r", "status": "in_progress"}), ("response.completed", whole)]
    return Reply(body=[event({"type": kind, "response": each}, kind) for kind, each in kinds])


@pytest.fixture(scope="module")
def key(platform: Platform, providers: dict[str, ScriptedProvider]) -> str:
    """Serve models with and without a price of searches at providers of both styles, and return a key."""
    served = [
        Served(f"{name}-{style}", [each.base_url], provider={"style": style}, prices=prices)
        for style, each in providers.items()
        for name, prices in (("searching", {"per_search": "0.01"}), ("still", {}))
    ]
    return platform.add(served, account="searching")


def ask(platform: Platform, key: str, path: str, model: str, **more: Any) -> Answer:
    """Ask for an answer by web search."""
    tools = [SEARCH] if path == MESSAGES else [{"type": "web_search"}]
    body = asking(path, f"{model}-{'anthropic' if path == MESSAGES else 'openai'}", tools=tools, **more)
    return platform.ask(path, body, key=key)


def searches(platform: Platform, answer: Answer) -> int:
    """Return the searches in the record of a request."""
    platform.record(answer)
    (row,) = platform.rows(f"SELECT web_searches FROM monitoring_requestrecord WHERE label = '{answer.label}'")  # noqa: S608
    return int(row["web_searches"])


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
def test_a_message_s_searches_are_billed(
    platform: Platform, providers: dict[str, ScriptedProvider], key: str, is_stream: bool
) -> None:
    providers["anthropic"].script("searching-anthropic", message(BLOCKS, is_stream=is_stream))
    answer = ask(platform, key, MESSAGES, "searching", stream=is_stream)
    assert answer.status == 200
    assert providers["anthropic"].calls[-1].payload["tools"] == [SEARCH]
    record = platform.record(answer)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (9000, 30, "provider")
    assert record.cost == 9000 * IN + 30 * OUT + CENT
    assert searches(platform, answer) == 1
    told = platform.ask(f"/requests/{answer.label}", key=key).json()
    assert (told["web_searches"], told["cost"]) == (1, "0.028300000")


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
def test_a_response_s_searches_are_billed(
    platform: Platform, providers: dict[str, ScriptedProvider], key: str, is_stream: bool
) -> None:
    providers["openai"].script("searching-openai", response(is_stream=is_stream))
    answer = ask(platform, key, RESPONSES, "searching", max_tool_calls=3, stream=is_stream)
    assert answer.status == 200
    assert providers["openai"].calls[-1].payload["max_tool_calls"] == 3
    record = platform.record(answer)
    assert record.cost == 9000 * IN + 30 * OUT + 2 * CENT
    assert (record.usage_source, searches(platform, answer)) == ("provider", 2)


def test_the_searches_of_a_failed_response_are_billed(
    platform: Platform, providers: dict[str, ScriptedProvider], key: str
) -> None:
    failed: dict[str, Any] = {
        "id": "r",
        "object": "response",
        "status": "failed",
        "error": {"code": "server_error", "message": "no"},
    }
    failed |= {"output": ITEMS[:3], "usage": {"input_tokens": 9000, "output_tokens": 30}}
    kinds = [("response.created", {"id": "r", "status": "in_progress"}), ("response.failed", failed)]
    events = [event({"type": kind, "response": each}, kind) for kind, each in kinds]
    providers["openai"].script("searching-openai", Reply(body=events))
    answer = ask(platform, key, RESPONSES, "searching", max_tool_calls=3, stream=True)
    record = platform.record(answer)
    assert record.cost == 9000 * IN + 30 * OUT + 2 * CENT
    assert (record.usage_source, searches(platform, answer)) == ("provider", 2)


def test_a_search_that_breaks_off_is_estimated_with_what_it_read(
    platform: Platform, providers: dict[str, ScriptedProvider], key: str
) -> None:
    providers["anthropic"].script("searching-anthropic", message(BLOCKS[:1], is_stream=True, is_whole=False))
    answer = ask(platform, key, MESSAGES, "searching", stream=True)
    record = platform.record(answer)
    assert (record.usage_source, searches(platform, answer)) == ("estimated", 1)
    assert record.input_tokens > 8000  # the results of a search, and the prompt twice
    assert record.cost == record.input_tokens * IN + record.output_tokens * OUT + CENT


def test_what_was_found_is_sent_back(platform: Platform, providers: dict[str, ScriptedProvider], key: str) -> None:
    providers["anthropic"].script("searching-anthropic", message(BLOCKS, is_stream=False))
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": BLOCKS},
        {"role": "user", "content": "more"},
    ]
    assert ask(platform, key, MESSAGES, "searching", messages=turns).status == 200
    assert providers["anthropic"].calls[-1].payload["messages"] == turns
    providers["openai"].script("searching-openai", response(is_stream=False))
    items = [*ITEMS, {"role": "user", "content": "more"}]
    assert ask(platform, key, RESPONSES, "searching", max_tool_calls=3, input=items).status == 200
    assert providers["openai"].calls[-1].payload["input"] == items


@pytest.mark.parametrize(
    ("path", "model", "more", "param", "told"),
    [
        (MESSAGES, "still", {}, "tools", "no price for the provider's web search"),
        (RESPONSES, "still", {"max_tool_calls": 1}, "tools", "no price for the provider's web search"),
        (RESPONSES, "searching", {}, "max_tool_calls", "bounds what the tool 'web_search' costs"),
        (RESPONSES, "searching", {"max_tool_calls": 0}, "max_tool_calls", "1 or more"),
        (RESPONSES, "searching", {"max_tool_calls": 101}, "max_tool_calls", "100 or less"),
    ],
)
def test_without_a_price_or_a_bound_it_is_refused(
    platform: Platform,
    providers: dict[str, ScriptedProvider],
    key: str,
    path: str,
    model: str,
    more: Any,
    param: str,
    told: str,
) -> None:
    calls = [len(each.calls) for each in providers.values()]
    answer = ask(platform, key, path, model, **more)
    assert answer.status == 400
    assert told in answer.error["message"]
    assert answer.error["param"] == param
    assert [len(each.calls) for each in providers.values()] == calls


@pytest.mark.parametrize("uses", [None, 0, 101, "2", True])
def test_a_message_s_search_needs_its_most_uses(platform: Platform, key: str, uses: Any) -> None:
    tools = [{**SEARCH, "max_uses": uses}]
    answer = platform.ask(MESSAGES, asking(MESSAGES, "searching-anthropic", tools=tools), key=key)
    assert answer.status == 400
    assert "tools[0].max_uses" in answer.error["message"]


@pytest.mark.parametrize(
    ("path", "tool", "more", "named"),
    [
        (MESSAGES, {**SEARCH, "Max_Uses": 99}, {}, "tools[0].Max_Uses"),
        (MESSAGES, {**SEARCH, "Type": "custom"}, {}, "tools[0].Type"),
        (RESPONSES, {"type": "web_search"}, {"max_tool_calls": 1, "Max_Tool_Calls": 99}, "Max_Tool_Calls"),
        (RESPONSES, {"type": "web_search"}, {"max_tool_calls": 1, "maxToolCalls": 99}, "maxToolCalls"),
    ],
)
def test_a_bound_has_one_spelling(
    platform: Platform, key: str, path: str, tool: dict[str, Any], more: dict[str, Any], named: str
) -> None:
    model = f"searching-{'anthropic' if path == MESSAGES else 'openai'}"
    answer = platform.ask(path, asking(path, model, tools=[tool], **more), key=key)
    assert answer.status == 400
    assert answer.error["param"] == named


def test_a_budget_covers_all_searches_or_refuses_them(
    platform: Platform, providers: dict[str, ScriptedProvider], key: str
) -> None:
    most = 3 * CONTEXT * IN + 100 * OUT + 2 * CENT  # the context anew after each of two searches
    providers["anthropic"].script("searching-anthropic", message(BLOCKS, is_stream=False))
    poor = platform.add([], account="poor", monthly_cost_budget=f"{most / 10**9:.9f}")
    assert ask(platform, poor, MESSAGES, "searching").status == 200
    refused = ask(platform, poor, MESSAGES, "searching")
    assert refused.status == 429
    assert (refused.error["limit"]["used"], refused.error["limit"]["needed"]) == ("0.028300000", "0.789000000")


def test_a_provider_of_another_format_is_not_asked_to_search(platform: Platform, key: str) -> None:
    answer = platform.ask(MESSAGES, asking(MESSAGES, "searching-openai", tools=[SEARCH]), key=key)
    assert answer.status == 400
    assert "tools[0].type" in answer.error["message"]
