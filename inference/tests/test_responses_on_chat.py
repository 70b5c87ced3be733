"""POST /v1/responses on providers with other formats: translated to a chat completion, and from it to a message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from openai.types.responses import Response as SDKResponse

from accounts.tests.factories import make_key, make_tier
from core.errors import InvalidRequest
from core.json import to_json
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Provider
from inference.protocols.chat import chat_protocol
from inference.protocols.events import BrokenStream, parse_events
from inference.protocols.responses import response_protocol
from inference.protocols.responses_on_chat import responses_on_chat
from inference.tests.fixtures import Api, Records
from inference.tests.samples import serve
from inference.usage import Usage, parse_usage, response_usage

USER = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Patch.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "x: y"},
}
GROUP = {"type": "namespace", "name": "team", "description": "", "tools": [{"type": "function", "name": "ask"}]}
THOUGHTS = [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}]
PATCHED = '{"input":"text"}'
PNG = "data:image/png;base64,aaaa"

PAYLOADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a text": (
        {"input": "hi", "instructions": "Be brief.", "temperature": 0.5, "top_p": 1, "store": False},
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
            "temperature": 0.5,
            "top_p": 1,
        },
    ),
    "settings": (
        {
            "input": "hi",
            "reasoning": {"effort": "high", "summary": "auto"},
            "text": {
                "verbosity": "low",
                "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
            },
            "user": "u",
            "metadata": {"a": "b"},
            "include": ["reasoning.encrypted_content"],
            "truncation": "disabled",
        },
        {
            "messages": [{"role": "user", "content": "hi"}],
            "reasoning_effort": "high",
            "verbosity": "low",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
            },
            "user": "u",
            "metadata": {"a": "b"},
        },
    ),
    "tools": (
        {
            "input": "hi",
            "tools": [WEATHER, PATCH, GROUP],
            "tool_choice": {"type": "custom", "name": "patch"},
            "parallel_tool_calls": False,
        },
        {
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True},
                },
                {
                    "type": "function",
                    "function": {
                        "name": "patch",
                        "description": "Patch.\n\nx: y",
                        "parameters": {
                            "type": "object",
                            "properties": {"input": {"type": "string"}},
                            "required": ["input"],
                        },
                    },
                },
                {"type": "function", "function": {"name": "team__ask"}},
            ],
            "tool_choice": {"type": "function", "function": {"name": "patch"}},
            "parallel_tool_calls": False,
        },
    ),
    "no tools": (
        {"input": "hi", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"messages": [{"role": "user", "content": "hi"}]},
    ),
    "a conversation": (
        {
            "input": [
                {"role": "developer", "content": "Be kind."},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "summary": [], "encrypted_content": to_json(THOUGHTS).decode()},
                {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA-of-another-provider"},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Let me"}, {"type": "output_text", "text": " see."}],
                },
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "ask", "namespace": "team", "arguments": '{"a":1}'},
                {"type": "custom_tool_call", "call_id": "c3", "name": "patch", "input": "text"},
                {"type": "function_call_output", "call_id": "c1", "output": "sun"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "yes"}, {"type": "input_image", "image_url": PNG}],
                },
                {"type": "custom_tool_call_output", "call_id": "c3", "output": "done"},
                {"role": "user", "content": [{"type": "input_image", "image_url": PNG, "detail": "low"}]},
            ]
        },
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
                USER,
                {
                    "role": "assistant",
                    "content": "Let me see.",
                    "thinking_blocks": THOUGHTS,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                        {"id": "c2", "type": "function", "function": {"name": "team__ask", "arguments": '{"a":1}'}},
                        {
                            "id": "c3",
                            "type": "function",
                            "function": {"name": "patch", "arguments": '{"input":"text"}'},
                        },
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sun"}]},
                {
                    "role": "tool",
                    "tool_call_id": "c2",
                    "content": [{"type": "text", "text": "yes"}, {"type": "image_url", "image_url": {"url": PNG}}],
                },
                {"role": "tool", "tool_call_id": "c3", "content": [{"type": "text", "text": "done"}]},
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}],
                },
            ]
        },
    ),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_provider_gets_a_chat_completion(name: str) -> None:
    payload, translated = PAYLOADS[name]
    response_protocol.check({"model": "m", **payload})
    assert responses_on_chat.payload(payload, model="m") == translated
    chat_protocol.check({"model": "m", **translated})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a shell": ({"tools": [{"type": "local_shell"}]}, "tools[0].type"),
    "a shell's call": ({"input": [{"type": "local_shell_call", "call_id": "c"}]}, "input[0].type"),
    "a truncated prompt": ({"truncation": "auto"}, "truncation"),
    "probabilities": ({"top_logprobs": 3}, "top_logprobs"),
    "a choice among tools": (
        {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "tools": []}},
        "tool_choice",
    ),
    "something new": ({"moderation": {"a": 1}}, "moderation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(name: str) -> None:
    fields, place = REFUSED[name]
    with pytest.raises(InvalidRequest) as refused:
        responses_on_chat.payload({"input": "hi", **fields}, model="m")
    assert (refused.value.param, refused.value.error_code) == (place, "unsupported_parameter")


ASKED = {"input": "hi", "tools": [WEATHER, PATCH, GROUP]}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def call(index: int, name: str, arguments: str) -> dict[str, Any]:
    """Return a call of a tool as chat completions have it."""
    return {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


#: The message of a completion, its finish reason, and the items that become of it, without their ids.
ANSWERS: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]]]] = {
    "a text": ({"content": "Hello there"}, "stop", [{"type": "message", "text": "Hello there", "status": "completed"}]),
    "a cut text": ({"content": "Hello"}, "length", [{"type": "message", "text": "Hello", "status": "incomplete"}]),
    "a refusal": ({"refusal": "No."}, "stop", [{"type": "message", "text": "No.", "status": "completed"}]),
    "nothing": ({"content": None}, "stop", []),
    "reasoning": (
        {"reasoning_content": "hm", "thinking_blocks": THOUGHTS, "content": "Yes"},
        "stop",
        [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "kept": THOUGHTS},
            {"type": "message", "text": "Yes", "status": "completed"},
        ],
    ),
    "hidden reasoning": (
        {"thinking_blocks": [{"type": "redacted_thinking", "data": "x"}], "content": "Yes"},
        "stop",
        [
            {"type": "reasoning", "summary": [], "kept": [{"type": "redacted_thinking", "data": "x"}]},
            {"type": "message", "text": "Yes", "status": "completed"},
        ],
    ),
    "calls": (
        {
            "content": "Let me see.",
            "tool_calls": [
                call(0, "weather", '{"a": 1}'),
                call(1, "team__ask", ""),
                call(2, "patch", '{"input": "*** Begin"}'),
            ],
        },
        "tool_calls",
        [
            {"type": "message", "text": "Let me see.", "status": "completed"},
            {
                "type": "function_call",
                "call_id": "c0",
                "name": "weather",
                "arguments": '{"a": 1}',
                "status": "completed",
            },
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "ask",
                "namespace": "team",
                "arguments": "{}",
                "status": "completed",
            },
            {
                "type": "custom_tool_call",
                "call_id": "c2",
                "name": "patch",
                "input": "*** Begin",
                "status": "completed",
            },
        ],
    ),
}


def shown(item: dict[str, Any]) -> dict[str, Any]:
    """Return what matters of an item."""
    item = {name: value for name, value in item.items() if name not in ("id", "role")}
    if "encrypted_content" in item:
        item["kept"] = json.loads(item.pop("encrypted_content"))
    if "content" in item:
        (part,) = item.pop("content")
        item["text"] = part.get("text") or part.get("refusal")
    return item


def completion(message: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return a chat completion."""
    calls = [{name: value for name, value in each.items() if name != "index"} for each in message.get("tool_calls", [])]
    message = {"role": "assistant", **message, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": USAGE}


def chunks(message: dict[str, Any], reason: str) -> Iterator[bytes]:
    """Yield a stream of the same answer, in small pieces."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + to_json({"id": "chatcmpl-1", "model": "m", "choices": [choice]}) + b"\n\n"

    yield chunk({"role": "assistant", "content": None})
    for name in ("reasoning_content", "thinking_blocks", "content", "refusal"):
        value = message.get(name)
        if isinstance(value, list):
            yield from (chunk({name: [{"index": at, **each}]}) for at, each in enumerate(value))
        elif value:
            yield from (chunk({name: value[at : at + 4]}) for at in range(0, len(value), 4))
    for each in message.get("tool_calls", []):
        function, arguments = each["function"], each["function"]["arguments"]
        yield chunk({"tool_calls": [{**each, "function": {**function, "arguments": ""}}]})
        for at in range(0, len(arguments), 5):
            yield chunk({"tool_calls": [{"index": each["index"], "function": {"arguments": arguments[at : at + 5]}}]})
    yield chunk({}, reason)
    yield b"data: " + to_json({"id": "chatcmpl-1", "model": "m", "choices": [], "usage": USAGE}) + b"\n\n"
    yield b"data: [DONE]\n\n"


@pytest.mark.parametrize("name", ANSWERS)
def test_the_caller_gets_a_response(name: str) -> None:
    message, reason, items = ANSWERS[name]
    response = responses_on_chat.body(ASKED, completion(message, reason))
    assert [shown(item) for item in response["output"]] == items
    is_cut = reason == "length"
    assert response["status"] == ("incomplete" if is_cut else "completed")
    assert response["incomplete_details"] == ({"reason": "max_output_tokens"} if is_cut else None)
    assert parse_usage(response["usage"]) == Usage(9, 0, 4)
    SDKResponse.model_validate(response)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_stream_and_its_plain_answer_are_the_same_response(name: str) -> None:
    message, reason, _ = ANSWERS[name]
    plain = responses_on_chat.body(ASKED, completion(message, reason))
    written = b"".join(responses_on_chat.events(ASKED, chunks(message, reason)))
    events = list(parse_events(written))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert last["output"] == done == plain["output"]
    volatile = {"created_at": 0}
    assert last | volatile == plain | volatile
    for event in events:  # the pieces make the whole
        begins = event["type"].removesuffix("done") + "delta"
        pieces = [
            each["delta"] for each in events if (each["type"], each.get("item_id")) == (begins, event.get("item_id"))
        ]
        whole = next((event[name] for name in ("text", "refusal", "arguments", "input") if name in event), "{}")
        assert whole == "{}" or "".join(pieces) == whole
    reader = response_protocol.reader({})
    reader.feed(written)
    assert reader.is_done
    assert reader.usage == Usage(9, 0, 4)


def test_a_stream_without_its_end_has_none() -> None:
    pieces = list(chunks({"content": "Hello"}, "stop"))
    written = b"".join(responses_on_chat.events(ASKED, iter(pieces[:3])))
    assert b"response.completed" not in written
    error = b'data: {"error": {"message": "no", "code": 500}}\n\n'
    assert b"".join(responses_on_chat.events(ASKED, iter([*pieces[:3], error]))).endswith(error)
    with pytest.raises(BrokenStream):
        list(responses_on_chat.events(ASKED, iter([b"data: {nonsense\n\n"])))


def test_usages_are_the_same_after_translation() -> None:
    usage = Usage(30, 9, 8, 7, 3, 5)
    assert parse_usage(response_usage(usage)) == usage


@pytest.mark.parametrize("stream", [False, True])
def test_it_answers_by_a_provider_like_anthropic(
    roomy: Api, upstream: FakeUpstream, records: Records, stream: bool
) -> None:
    serve("claude", upstream_name="claude-sonnet-4-5", input=3, cached_input=1, output=15)
    Provider.objects.update(style=Provider.Style.ANTHROPIC)
    catalog.forget()
    asked = {
        "model": "claude",
        "input": [{"role": "user", "content": "hello there"}],
        "instructions": "Be brief.",
        "tools": [{"type": "function", "name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}],
        "tool_choice": "required",
        "reasoning": {"effort": "low"},
        "stream": stream,
    }
    roomy = roomy.of(make_key(tier=make_tier("long", max_output_tokens=9000)))
    answer = roomy.post("/v1/responses", asked)
    assert answer.status_code == 200, answer.content
    if stream:
        events = list(parse_events(b"".join(answer.streaming_content)))  # type: ignore[attr-defined]
        body = events[-1]["response"]
    else:
        body = answer.json()
    assert [item["type"] for item in body["output"]] == ["reasoning", "function_call"]
    assert json.loads(body["output"][1]["arguments"]) == {"city": "hello there"}
    sent = upstream.requests[-1]
    assert (sent.path, sent.body["system"], sent.body["tool_choice"]) == ("/v1/messages", "Be brief.", {"type": "any"})
    result = {"type": "function_call_output", "call_id": body["output"][1]["call_id"], "output": "sun"}
    again = [{"role": "user", "content": "hello there"}, *body["output"], result]
    assert roomy.post("/v1/responses", {**asked, "input": again, "tool_choice": "auto"}).status_code == 200
    turns = upstream.requests[-1].body["messages"]
    assert [block["type"] for block in turns[1]["content"]] == ["thinking", "tool_use"]
    assert turns[1]["content"][0]["signature"] == "c2lnbmF0dXJl"
    assert turns[2]["content"][0]["content"] == [{"type": "text", "text": "sun"}]
    record = records()[0]
    assert (record.endpoint, record.usage_source) == ("v1.responses", "provider")
    assert record.cost == (record.input_tokens * 3 + record.output_tokens * 15) / Decimal(1_000_000)
