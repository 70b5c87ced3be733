"""Chat completions on a provider that has only messages: what it gets, and what the caller gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from core.errors import InvalidRequest
from inference.protocols.chat import ChunkReader, chat_protocol
from inference.protocols.chat_on_messages import chat_on_messages
from inference.protocols.events import BrokenStream, parse_events, server_sent
from inference.protocols.messages import messages_protocol
from inference.usage import Usage, merged_usage, parse_usage

EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}
HELLO = {"role": "user", "content": "Hello"}
ASKED = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "ZGF0YQ=="}
WEATHER = {"name": "weather", "parameters": SCHEMA}
TOOL = {"type": "function", "function": WEATHER}
TAKEN = {"name": "weather", "input_schema": SCHEMA}
PARIS = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
CALLED = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "sunny"}]}


def sent(*messages: dict[str, Any], model: str = "claude-opus-5", **more: Any) -> dict[str, Any]:
    """Return the provider's payload for a chat; both are valid for their endpoints."""
    payload = {"messages": list(messages) or [HELLO], **more}
    chat_protocol.check({**payload, "model": "m"})
    body = chat_on_messages.payload(payload, model=model)
    messages_protocol.check({**body, "model": model, "max_tokens": 9})
    return body


def text(value: str, **more: Any) -> dict[str, Any]:
    """Return a part, or a block, of text."""
    return {"type": "text", "text": value, **more}


def image(url: str) -> dict[str, Any]:
    """Return a part with an image."""
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


MESSAGES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "system and developer messages": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [text("Be kind."), text("")]},
            HELLO,
        ],
        {"system": "Be brief.\n\nBe kind.", "messages": ASKED},
    ),
    "a system message to be cached": (
        [{"role": "system", "content": [text("Be brief."), text("Be kind.", cache_control=EPHEMERAL)]}, HELLO],
        {"system": [text("Be brief."), text("Be kind.", cache_control=EPHEMERAL)], "messages": ASKED},
    ),
    "messages to be cached": (
        [
            {"role": "system", "content": "Be brief.", "cache_control": EPHEMERAL},
            {"role": "user", "content": [text("a", cache_control=EPHEMERAL), text("b")]},
        ],
        {
            "system": [text("Be brief.", cache_control=EPHEMERAL)],
            "messages": [{"role": "user", "content": [text("a", cache_control=EPHEMERAL), text("b")]}],
        },
    ),
    "images": (
        [
            {
                "role": "user",
                "content": [image("data:image/JPG;base64,aGk="), image("https://example.com/a.png"), text("These?")],
            },
        ],
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "aGk="}},
                        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                        text("These?"),
                    ],
                },
            ]
        },
    ),
    "an answer as OpenAI gives it": (
        [
            HELLO,
            {"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "audio": None},
            {"role": "user", "content": "And?", "name": None},
        ],
        {
            "messages": [
                *ASKED,
                {"role": "assistant", "content": [text("Hi")]},
                {"role": "user", "content": [text("And?")]},
            ]
        },
    ),
    "empty texts and refusals": (
        [
            HELLO,
            {"role": "assistant", "content": ""},
            {"role": "user", "content": [text("more"), text(" \n")]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
            {"role": "assistant", "content": None, "refusal": "Never"},
        ],
        {
            "messages": [
                {"role": "user", "content": [text("Hello"), text("more")]},
                {"role": "assistant", "content": [text("No"), text("Never")]},
            ]
        },
    ),
    "parallel calls, and a further question": (
        [
            HELLO,
            {
                "role": "assistant",
                "content": None,
                "thinking_blocks": [{**THOUGHT, "index": 0}, REDACTED],
                "reasoning_content": "Hm.",
                "tool_calls": [PARIS, {"id": "functions.now:1", "function": {"name": "now", "arguments": ""}}],
            },
            {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "sunny"},
            {"role": "tool", "tool_call_id": "functions.now:1", "content": "", "cache_control": EPHEMERAL},
            {"role": "user", "content": "So?"},
        ],
        {
            "messages": [
                *ASKED,
                {
                    "role": "assistant",
                    "content": [
                        THOUGHT,
                        REDACTED,
                        CALLED,
                        {"type": "tool_use", "id": "functions_now_1", "name": "now", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        RESULT,
                        {"type": "tool_result", "tool_use_id": "functions_now_1", "cache_control": EPHEMERAL},
                        text("So?"),
                    ],
                },
            ]
        },
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_it_translates_messages(case: str) -> None:
    messages, expected = MESSAGES[case]
    assert sent(*messages) == expected


PARAMETERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 9, "max_completion_tokens": 9}, {}),
    ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"stop": "."}, {"stop_sequences": ["."]}),
    ({"stop": [".", "!"]}, {"stop_sequences": [".", "!"]}),
    ({"user": "u"}, {"metadata": {"user_id": "u"}}),
    ({"user": "u", "safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
    ({"tools": [TOOL]}, {"tools": [TAKEN]}),
    (
        {"tools": [{"type": "function", "function": {"name": "now", "description": "", "strict": False}}]},
        {"tools": [{"name": "now", "input_schema": {"type": "object", "properties": {}}}]},
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {**WEATHER, "description": "d", "strict": True},
                    "cache_control": EPHEMERAL,
                }
            ]
        },
        {"tools": [{**TAKEN, "description": "d", "strict": True, "cache_control": EPHEMERAL}]},
    ),
    ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TAKEN], "tool_choice": {"type": "auto"}}),
    ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [TAKEN], "tool_choice": {"type": "any"}}),
    ({"tools": [TOOL], "tool_choice": "none"}, {"tools": [TAKEN], "tool_choice": {"type": "none"}}),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tools": [TAKEN], "tool_choice": {"type": "tool", "name": "weather"}},
    ),
    (
        {"tools": [TOOL], "parallel_tool_calls": False},
        {"tools": [TAKEN], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    (
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [TAKEN], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
    ),
    (
        {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False},
        {"tools": [TAKEN], "tool_choice": {"type": "none"}},
    ),
    ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
    ({"response_format": {"type": "text"}}, {}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "description": "d", "schema": SCHEMA},
            },
            "reasoning_effort": "low",
        },
        {
            "thinking": {"type": "adaptive"},
            "output_config": {
                "format": {"type": "json_schema", "schema": {"description": "d", **SCHEMA}},
                "effort": "low",
            },
        },
    ),
    # values that mean nothing
    (
        {
            "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "top_logprobs": 0,
            "logit_bias": {}, "store": False, "modalities": ["text"], "stream_options": {"include_usage": True},
            "service_tier": "default", "parallel_tool_calls": True, "verbosity": "medium", "seed": None,
            "functions": [],
            "response_format": None, "tool_choice": None, "reasoning_effort": None, "stop": None, "temperature": None,
            "metadata": {"a": "b"}, "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        },
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "expected"), PARAMETERS)
def test_it_translates_parameters(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sent(**parameters) == {"messages": ASKED, **expected}


@pytest.mark.parametrize(
    ("model", "has_budget"),
    [
        ("claude-3-7-sonnet-latest", True),
        ("anthropic/claude-3.7-sonnet", True),
        ("claude-sonnet-4-0", True),
        ("anthropic.claude-sonnet-4-20250514-v1:0", True),
        ("claude-opus-4@20250514", True),
        ("claude-opus-4-1-20250805", True),
        ("claude-sonnet-4.5", True),
        ("claude-haiku-4-5-20251001", True),
        ("claude-opus-4-5", True),
        ("claude-opus-4-6", False),
        ("claude-sonnet-4-6-20260101", False),
        ("claude-sonnet-5", False),
        ("claude-haiku-5-5", False),
        ("model-of-another-maker", False),
    ],
)
def test_reasoning_becomes_thinking_as_the_model_knows_it(model: str, has_budget: bool) -> None:
    budgets = {"low": 2048, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
    efforts = {"low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}
    for effort, budget in budgets.items():
        body = sent(model=model, reasoning_effort=effort)
        if has_budget:
            assert body == {"messages": ASKED, "thinking": {"type": "enabled", "budget_tokens": budget}}
        else:
            thinking = {"thinking": {"type": "adaptive"}, "output_config": {"effort": efforts[effort]}}
            assert body == {"messages": ASKED, **thinking}
    for effort in ("none", "minimal"):
        assert sent(model=model, reasoning_effort=effort)["thinking"] == {"type": "disabled"}


def test_a_budget_is_left_out_where_the_provider_requires_thoughts_that_the_caller_lacks() -> None:
    results = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    call: dict[str, Any] = {"role": "assistant", "tool_calls": [PARIS]}
    older = {"model": "claude-sonnet-4-5", "reasoning_effort": "low"}
    assert "thinking" not in sent(HELLO, call, results, **older)
    assert "thinking" in sent(HELLO, {**call, "thinking_blocks": [THOUGHT]}, results, **older)
    assert "thinking" in sent(HELLO, {"role": "assistant", "content": "Hi"}, HELLO, **older)
    assert "thinking" in sent(HELLO, call, results, reasoning_effort="low")


def calling(**fields: Any) -> dict[str, Any]:
    """Return a chat with a call of a tool."""
    return {"messages": [HELLO, {"role": "assistant", "tool_calls": [{**PARIS, **fields}]}]}


def function(**fields: Any) -> dict[str, Any]:
    """Return a chat with a tool."""
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"top_k": 5}, "top_k"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"temperature": 1.1}, "temperature"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"user": 5}, "user"),
    ({"reasoning_effort": "most"}, "reasoning_effort"),
    ({"reasoning_effort": ["low"]}, "reasoning_effort"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format.json_schema.schema"),
    ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    (function(name=""), "tools[0].function.name"),
    (function(parameters=[1]), "tools[0].function.parameters"),
    (function(examples=[1]), "tools[0].function.examples"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": "f"}}, "tool_choice.function.name"),
    ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"messages": [HELLO, {"role": "system", "content": "Be brief."}]}, "messages[1].role"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{**HELLO, "name": "Bob"}]}, "messages[0].name"),
    ({"messages": [{**HELLO, "tool_calls": [PARIS]}]}, "messages[0].tool_calls"),
    ({"messages": [HELLO, {"role": "assistant", "function_call": {"name": "f"}}]}, "messages[1].function_call"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [text("x", mood="good")]}]}, "messages[0].content[0].mood"),
    (
        {"messages": [{"role": "user", "content": [image("data:image/heic;base64,aGk=")]}]},
        "messages[0].content[0].image_url",
    ),
    ({"messages": [{"role": "system", "content": [image("data:image/png;base64,aGk=")]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "assistant", "thinking_blocks": [{"type": "text"}]}]},
        "messages[0].thinking_blocks[0].type",
    ),
    (calling(type="custom"), "messages[1].tool_calls[0].type"),
    (calling(function=None), "messages[1].tool_calls[0].function"),
    (calling(id=None), "messages[1].tool_calls[0].id"),
    (calling(function={}), "messages[1].tool_calls[0].function.name"),
    *(
        (calling(function={"name": "f", "arguments": arguments}), "messages[1].tool_calls[0].function.arguments")
        for arguments in ("{", "[]", "NaN", "[" * 100_000, {"city": "Paris"})
    ),
]


@pytest.mark.parametrize(("parameters", "place"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_it_refuses_by_name_what_it_cannot_translate(parameters: dict[str, Any], place: str) -> None:
    payload = {"messages": [HELLO], **parameters}
    chat_protocol.check({**payload, "model": "m"})
    with pytest.raises(InvalidRequest) as refusal:
        chat_on_messages.payload(payload, model="claude-opus-5")
    assert refusal.value.param == place


def test_the_payload_is_left_as_it_was() -> None:
    """It is translated again for each attempt."""
    payload = {"messages": MESSAGES["parallel calls, and a further question"][0], "tools": [TOOL]}
    before = json.dumps(payload)
    once = chat_on_messages.payload(payload, model="")
    assert chat_on_messages.payload(payload, model="") == once
    assert json.dumps(payload) == before


# Answers

USED = {
    "input_tokens": 5,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
}
HI = [text("Hi")]


def message(content: list[dict[str, Any]], reason: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    """Return a provider's answer."""
    head = {"id": "msg_01", "type": "message", "role": "assistant", "model": "claude-opus-5"}
    return {**head, "content": content, "stop_reason": reason, "stop_sequence": None, "usage": USED, **more}


def said(content: str | None, **more: Any) -> dict[str, Any]:
    """Return the message of a completion."""
    return {"role": "assistant", "content": content, "refusal": None, **more}


NOW = {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}}
ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "text": (message([text("Hi"), text(" you")]), said("Hi you"), "stop"),
    "thoughts": (
        message([THOUGHT, REDACTED, {**THOUGHT, "thinking": "So."}, text("Hi")]),
        said(
            "Hi",
            reasoning_content="Hm.So.",
            thinking_blocks=[THOUGHT, REDACTED, {**THOUGHT, "thinking": "So."}],
        ),
        "stop",
    ),
    "a thought that is omitted": (
        message([{**THOUGHT, "thinking": ""}, text("Hi")]),
        said("Hi", thinking_blocks=[{**THOUGHT, "thinking": ""}]),
        "stop",
    ),
    "calls": (
        message([text("Wait."), CALLED, {"type": "tool_use", "id": "call_2", "name": "now", "input": {}}], "tool_use"),
        said("Wait.", tool_calls=[PARIS, NOW]),
        "tool_calls",
    ),
    "a call alone": (message([CALLED], "tool_use"), said(None, tool_calls=[PARIS]), "tool_calls"),
    "nothing": (message([]), said(None), "stop"),
    "empty text": (message([text("")]), said(None), "stop"),
    "blocks of unknown types": (
        message([{"type": "scent", "smell": "rose"}, {"type": "poem", "text": "Rose"}]),
        said("Rose"),
        "stop",
    ),
    "a stop sequence": (message(HI, "stop_sequence"), said("Hi"), "stop"),
    "a pause": (message(HI, "pause_turn"), said("Hi"), "stop"),
    "the maximum": (message(HI, "max_tokens"), said("Hi"), "length"),
    "the whole context": (message(HI, "model_context_window_exceeded"), said("Hi"), "length"),
    "a refusal": (message([], "refusal"), said(None), "content_filter"),
    "an unknown reason": (message(HI, "boredom"), said("Hi"), "stop"),
    "no reason": (message(HI, None), said("Hi"), "stop"),
    "no usage": (message(HI, usage=None), said("Hi"), "stop"),
    "a small usage": (message(HI, usage={"input_tokens": 5, "output_tokens": 9}), said("Hi"), "stop"),
}


def events(answer: dict[str, Any]) -> Iterator[bytes]:
    """Yield an answer as Anthropic streams it."""
    deltas: dict[str, Callable[[str], dict[str, Any]]] = {
        "text": lambda text: {"type": "text_delta", "text": text},
        "thinking": lambda text: {"type": "thinking_delta", "thinking": text},
        "signature": lambda text: {"type": "signature_delta", "signature": text},
        "input": lambda text: {"type": "input_json_delta", "partial_json": text},
    }
    usage = answer["usage"]
    first = {
        "message": {**answer, "content": [], "stop_reason": None, "usage": usage and {**usage, "output_tokens": 1}}
    }
    yield server_sent("message_start", {"type": "message_start", **first})
    yield server_sent("ping", {"type": "ping"})
    for index, block in enumerate(answer["content"]):
        empty: dict[str, Any] = {
            name: {} if name == "input" else "" if name in deltas else value for name, value in block.items()
        }
        yield server_sent(
            "content_block_start", {"type": "content_block_start", "index": index, "content_block": empty}
        )
        for name, delta_of in deltas.items():
            if value := block.get(name):
                whole = json.dumps(value, separators=(",", ":")) if name == "input" else value
                for piece in ("", whole[:3], whole[3:]):
                    delta = {"type": "content_block_delta", "index": index, "delta": delta_of(piece)}
                    yield server_sent("content_block_delta", delta)
        yield server_sent("content_block_stop", {"type": "content_block_stop", "index": index})
    end = {
        "delta": {"stop_reason": answer["stop_reason"]},
        "usage": usage and {"output_tokens": usage["output_tokens"]},
    }
    yield server_sent("message_delta", {"type": "message_delta", **end})
    yield server_sent("message_stop", {"type": "message_stop"})


def translated(*pieces: bytes) -> bytes:
    """Return a stream as the caller gets it."""
    return b"".join(chat_on_messages.events({}, iter(pieces)))


def collected(stream: bytes) -> dict[str, Any]:
    """Return the completion that OpenAI's SDK makes of a stream, without what the SDK adds or keeps in it."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for event in parse_events(stream):
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    completion = state.current_completion_snapshot.model_dump(exclude_unset=True)
    message = completion["choices"][0]["message"]
    message = {name: value for name, value in message.items() if value is not None or name == "content"}
    completion["choices"][0]["message"] = {"refusal": None, **message}
    for name in ("tool_calls", "thinking_blocks"):
        for number, entry in enumerate(message.get(name, ())):
            assert entry.pop("index") == number
            entry.get("function", {}).pop("parsed_arguments", None)
    return completion


@pytest.mark.parametrize("case", ANSWERS)
def test_it_translates_answers(case: str) -> None:
    answer, expected, reason = ANSWERS[case]
    body = chat_on_messages.body({}, answer)
    assert (body["id"], body["object"], body["model"]) == ("chatcmpl-01", "chat.completion", "claude-opus-5")
    assert body["choices"] == [{"index": 0, "message": expected, "logprobs": None, "finish_reason": reason}]
    assert parse_usage(body.get("usage")) == parse_usage(answer["usage"])
    assert chat_protocol.is_complete(body)


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("cut", [1, 50, 10**6])
def test_a_stream_is_the_same_completion(case: str, cut: int) -> None:
    answer = ANSWERS[case][0]
    whole = b"".join(events(answer))
    stream = translated(*(whole[at : at + cut] for at in range(0, len(whole), cut)))
    assert stream.endswith(b"data: [DONE]\n\n")
    completion, body = collected(stream), chat_on_messages.body({}, answer)
    for name in ("message", "finish_reason"):
        assert completion["choices"][0][name] == body["choices"][0][name]
    assert (completion["id"], completion["model"]) == (body["id"], body["model"])
    reader = ChunkReader(forwards_usage=False)
    assert b"usage" not in reader.feed(stream)
    assert reader.usage == parse_usage(answer["usage"])
    assert reader.is_done


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"content": None},
        {"content": ["Hi"]},
        {"content": [{"text": "Hi"}]},
        {"content": [{"type": "tool_use"}]},
        {"content": [{"type": "thinking", "thinking": 1}]},
        {"content": [], "stop_reason": [1]},
    ],
)
def test_it_recognizes_damaged_answers(answer: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        chat_on_messages.body({}, answer)


START, PING, FIRST, EMPTY, TEXT, *REST = events(message(HI))
STOP = server_sent("message_stop", {"type": "message_stop"})
BUSY = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'


def test_an_error_is_passed_on_as_received() -> None:
    stream = translated(START + FIRST + TEXT + BUSY)
    assert stream.endswith(BUSY)
    assert b"[DONE]" not in stream


def test_a_stream_that_ends_early_has_no_end() -> None:
    stream = translated(START, PING, FIRST, EMPTY, TEXT, *REST[:-1])
    assert (b'"finish_reason":"stop"' in stream, b"[DONE]" in stream) == (True, False)


def test_a_usage_that_comes_late_is_reported_too() -> None:
    end = {"delta": {"stop_reason": "end_turn"}}, {"delta": {}, "usage": {"output_tokens": 50}}
    ends = [server_sent("message_delta", {"type": "message_delta", **each}) for each in end]
    reader = ChunkReader(forwards_usage=True)
    stream = reader.feed(translated(START, *ends, STOP))
    assert reader.usage == Usage(135, 100, 50, 30, 20, 4)
    assert (stream.count(b'"finish_reason":"stop"'), stream.count(b"[DONE]")) == (1, 1)


def test_odd_streams_are_understood() -> None:
    """Pings, comments, unknown events and deltas say nothing; some servers send whole blocks, and `[DONE]` at last."""
    call = {"type": "content_block_start", "index": 7, "content_block": CALLED}
    block = {"type": "content_block_start", "index": 8, "content_block": text("Hi")}
    quote = {"type": "content_block_delta", "index": 8, "delta": {"type": "citations_delta", "citation": {}}}
    stray = {"type": "content_block_delta", "index": 9, "delta": {"type": "input_json_delta", "partial_json": "{}"}}
    data = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in (call, block, quote, stray)]
    stop = server_sent("content_block_stop", {"type": "content_block_stop", "index": 7})
    news = server_sent("news", {"type": "news"})
    stream = translated(
        START, b": still here\n\n", *data, stop, stop, news, STOP.rstrip(), b"\n\ndata: [DONE]\n\n", BUSY
    )
    choice = collected(stream)["choices"][0]
    assert choice["message"]["content"] == "Hi"
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [PARIS["function"]]
    assert choice["finish_reason"] == "stop"
    assert stream.endswith(b"data: [DONE]\n\n")


def test_an_unfinished_last_event_is_read() -> None:
    assert translated(*events(message(HI)))[-14:] == translated(START, STOP.rstrip(b"\n"))[-14:] == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "piece",
    [
        b"<html>\n\n",
        b"data: nothing\n\n",
        server_sent("content_block_delta", {"type": "content_block_delta"}),
        server_sent("content_block_start", {"type": "content_block_start", "index": 0, "content_block": None}),
    ],
)
def test_what_is_valid_comes_before_the_break(piece: bytes) -> None:
    got: list[bytes] = []
    with pytest.raises(BrokenStream):
        got.extend(chat_on_messages.events({}, iter([START + FIRST + TEXT + piece])))
    assert collected(b"".join(got))["choices"][0]["message"]["content"] == "Hi"
    with pytest.raises(BrokenStream):
        translated(TEXT)


counts = st.integers(0, 10**7)


@given(st.tuples(*[counts] * 6), st.booleans())
def test_a_usage_is_the_same_however_it_is_split(numbers: tuple[int, ...], is_early: bool) -> None:
    fresh, cached, written, hour, output, thought = numbers
    usage = {
        "input_tokens": fresh,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_1h_input_tokens": min(hour, written)},
        "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": min(thought, output)},
    }
    zeros = {"input_tokens": 0, "output_tokens": 0, "cache_creation": None}
    start, end = (usage, zeros) if is_early else (zeros, usage)
    whole = Usage(fresh + cached + written, cached, output, written, min(hour, written), min(thought, output))
    assert parse_usage(merged_usage(start, end)) == whole
    assert parse_usage(chat_on_messages.body({}, message(HI, usage=usage))["usage"]) == whole
