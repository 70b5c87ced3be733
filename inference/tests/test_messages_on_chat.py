"""Anthropic's messages on a provider with chat completions: what the provider gets, and what the caller gets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidRequest
from inference.fake_provider import FakeUpstream
from inference.protocols.base import Body
from inference.protocols.chat import chat_protocol
from inference.protocols.events import BrokenStream, parse_events
from inference.protocols.messages import messages_protocol
from inference.protocols.messages_on_chat import messages_on_chat
from inference.protocols.translation import DAMAGED
from inference.tests.fixtures import MODEL, Api, Records
from inference.usage import Usage, chat_usage, parse_usage

HI = {"role": "user", "content": "Hi"}
DATA = {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}
IMAGE = {"type": "image", "source": DATA}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}}
CACHED = {"cache_control": {"type": "ephemeral"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "input_schema": SCHEMA}
FUNCTION: Body = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


def text(words: str, **more: Any) -> Body:
    return {"type": "text", "text": words, **more}


def result(content: Any = None, *, id: str = "t1", **more: Any) -> Body:  # noqa: A002
    return {"type": "tool_result", "tool_use_id": id, **({} if content is None else {"content": content}), **more}


def sent(**payload: Any) -> Body:
    translated = messages_on_chat.payload({"max_tokens": 9, "messages": [HI], **payload}, model="m")
    messages_protocol.check({"model": "m", "max_tokens": 9, "messages": [HI], **payload})
    chat_protocol.check({"model": "m", **translated})
    return translated


CONTENT: dict[str, tuple[list[Body], list[Body]]] = {
    "a text": ([text("Hi", **CACHED)], [HI]),
    "an image by URL": (
        [text("What?"), {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}],
        [
            {
                "role": "user",
                "content": [
                    text("What?"),
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                ],
            }
        ],
    ),
    "images as data": ([IMAGE, {**IMAGE, **CACHED}], [{"role": "user", "content": [IMAGE_PART, IMAGE_PART]}]),
    "several texts": ([text("a"), text("b")], [{"role": "user", "content": [text("a"), text("b")]}]),
    "results before the rest": (
        [text("Now?"), result("5", id="t1"), result([text("6"), text("7")], id="t2", **CACHED)],
        [
            {"role": "tool", "tool_call_id": "t1", "content": "5"},
            {"role": "tool", "tool_call_id": "t2", "content": "6\n\n7"},
            {"role": "user", "content": "Now?"},
        ],
    ),
    "a result alone, empty": ([result()], [{"role": "tool", "tool_call_id": "t1", "content": ""}]),
    "errors": (
        [
            result("no", is_error=True),
            result("Error: no", id="t2", is_error=True),
            result("x", id="t3", is_error=False),
        ],
        [
            {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
            {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
            {"role": "tool", "tool_call_id": "t3", "content": "x"},
        ],
    ),
    "an image in a result": (
        [result([text("Shot:"), IMAGE]), text("And?")],
        [
            {"role": "tool", "tool_call_id": "t1", "content": "Shot:\n\n(The image is in the next message.)"},
            {"role": "user", "content": [IMAGE_PART, text("And?")]},
        ],
    ),
    "a document in a result, and a tool that is found": (
        [
            result(
                [
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
                    {"type": "tool_reference", "tool_name": "weather"},
                ]
            )
        ],
        [{"role": "tool", "tool_call_id": "t1", "content": "words\n\nweather"}],
    ),
    "a document of text": (
        [
            {
                "type": "document",
                "title": "T",
                "context": "C",
                "citations": {"enabled": False},
                "source": {"type": "text", "media_type": "text/plain", "data": "words"},
            }
        ],
        [{"role": "user", "content": "T\n\nC\n\nwords"}],
    ),
    "a document of blocks": (
        [{"type": "document", "title": None, "source": {"type": "content", "content": [text("a"), text("b")]}}],
        [{"role": "user", "content": "a\n\nb"}],
    ),
    "a document with an image": (
        [{"type": "document", "title": "T", "source": {"type": "content", "content": [text("a"), IMAGE]}}],
        [{"role": "user", "content": [text("T"), text("a"), IMAGE_PART]}],
    ),
    "a search result": (
        [{"type": "search_result", "title": "T", "source": "https://a.example", "content": [text("a"), text("b")]}],
        [{"role": "user", "content": "T\n\nhttps://a.example\n\na\n\nb"}],
    ),
}


@pytest.mark.parametrize("case", CONTENT)
def test_a_user_says_the_same(case: str) -> None:
    content, messages = CONTENT[case]
    assert sent(messages=[{"role": "user", "content": content}])["messages"] == messages


CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Zürich"}}
TOOL_CALL = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("Yes", {"content": "Yes"}),
        ([text("Ye", citations=None), text("s")], {"content": "Yes"}),
        ([THOUGHT, {"type": "redacted_thinking", "data": "x"}], {"content": ""}),
        ([THOUGHT, text("Yes"), CALL], {"content": "Yes", "tool_calls": [TOOL_CALL]}),
        (
            [{**CALL, "caller": {"type": "direct"}}, {**CALL, "id": "t2", "input": {}}],
            {
                "content": None,
                "tool_calls": [
                    TOOL_CALL,
                    {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                ],
            },
        ),
    ],
)
def test_an_assistant_said_the_same(content: Any, answer: Body) -> None:
    messages = sent(messages=[HI, {"role": "assistant", "content": content}, HI])["messages"]
    assert messages == [HI, {"role": "assistant", **answer}, HI]


@pytest.mark.parametrize(
    ("payload", "translated"),
    [
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"temperature": None, "top_k": None, "mcp_servers": [], "speed": False}, {}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_sequences": []}, {}),
        ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
        ({"tools": []}, {}),
        (
            {
                "tools": [
                    {**TOOL, "type": "custom", "description": "D", "strict": True, "defer_loading": True, **CACHED}
                ]
            },
            {"tools": [{"type": "function", "function": {**FUNCTION["function"], "description": "D", "strict": True}}]},
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"tools": [FUNCTION], "tool_choice": "auto"}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [FUNCTION], "tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [FUNCTION], "tool_choice": "none"}),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, {}),
        (
            {
                "tools": [{**TOOL, "allowed_callers": ["direct"]}],
                "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            },
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False,
            },
        ),
        ({"output_config": {"format": FORMAT}}, {"response_format": RESPONSE_FORMAT}),
        ({"output_format": FORMAT}, {"response_format": RESPONSE_FORMAT}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"output_config": {"effort": "max", "format": None}}, {"reasoning_effort": "xhigh"}),
        (
            {
                "thinking": {"type": "enabled", "budget_tokens": 1024},
                "metadata": {"user_id": "u"},
                "service_tier": "standard_only",
                "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
                **CACHED,
            },
            {},
        ),
    ],
)
def test_the_provider_gets_the_parameters(payload: Body, translated: Body) -> None:
    assert sent(**payload) == {"messages": [HI], **translated}


@pytest.mark.parametrize("system", ["Be kind.\n\nBe brief.", [text("Be kind.", **CACHED), text("Be brief.")]])
def test_the_system_prompt_is_the_first_message(system: Any) -> None:
    assert sent(system=system)["messages"] == [{"role": "system", "content": "Be kind.\n\nBe brief."}, HI]


def in_content(*blocks: Any, role: str = "user") -> Body:
    return {"messages": [{"role": role, "content": list(blocks)}, HI]}


PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({"top_k": 5}, "top_k"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        (in_content(text("a"), {"type": "document", "source": PDF}), "messages[0].content[1]"),
        (
            in_content({"type": "document", "source": {"type": "url", "url": "https://a.example/a.pdf"}}),
            "messages[0].content[0]",
        ),
        (in_content(result([{"type": "document", "source": PDF}])), "messages[0].content[0].content[0]"),
        (
            in_content(
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "a"},
                    "citations": {"enabled": True},
                }
            ),
            "messages[0].content[0].citations",
        ),
        (in_content(text("a", future=1)), "messages[0].content[0].future"),
        (in_content(IMAGE, role="assistant"), "messages[0].content[0].type"),
        (in_content(CALL), "messages[0].content[0].type"),
        (in_content(text(5)), "messages[0]"),  # type: ignore[arg-type]
        (in_content({"text": "a"}), "messages[0]"),
        (in_content("a"), "messages[0]"),
        (in_content(text("a"), role="tool"), "messages[0].role"),
        ({"messages": [HI, {"role": "assistant", "content": "{"}]}, "messages[1]"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"system": 5}, "system"),
        ({"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}]}, "tools[1].type"),
        ({"tools": [{**TOOL, "input_examples": [{"city": "Rome"}]}]}, "tools[0].input_examples"),
        ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20260120"]}]}, "tools[0].allowed_callers"),
        ({"tools": [{"name": "weather"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice"),
        ({"output_config": {"task_budget": {"total": 5}}}, "output_config.task_budget"),
        ({"output_config": {"effort": "utmost"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "grammar"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(payload: Body, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        sent(**payload)
    assert refused.value.param == param


# Answers

REPORTED = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 12},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
USAGE = {
    "input_tokens": 8,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 12,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
}


def called(arguments: Any = '{"city":"Rome"}', **more: Any) -> Body:
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}, **more}


def used(input: Any = None, id: str = "c1") -> Body:  # noqa: A002
    return {"type": "tool_use", "id": id, "name": "weather", "input": {"city": "Rome"} if input is None else input}


def thought(words: str, signature: str = "") -> Body:
    return {"type": "thinking", "thinking": words, "signature": signature}


#: A message of chat completions with its finish reason, and the content and stop reason of the caller's.
ANSWERS: dict[str, tuple[Body, Any, list[Body], Any]] = {
    "a text": ({"content": "Hi"}, "stop", [text("Hi")], "end_turn"),
    "a cut text": ({"content": "Hi"}, "length", [text("Hi")], "max_tokens"),
    "a filtered text": ({"content": "Hi"}, "content_filter", [text("Hi")], "refusal"),
    "nothing": ({"content": None}, "stop", [], "end_turn"),
    "another server's name for stop": ({"content": "Hi"}, "eos_token", [text("Hi")], "end_turn"),
    "a refusal": ({"content": None, "refusal": "No."}, "stop", [text("No.")], "end_turn"),
    "reasoning": (
        {"reasoning_content": "hm", "reasoning": "hm", "content": "Hi", "tool_calls": []},
        "stop",
        [thought("hm"), text("Hi")],
        "end_turn",
    ),
    "reasoning by its other name": (
        {"reasoning": "hm", "content": "Hi"},
        "stop",
        [thought("hm"), text("Hi")],
        "end_turn",
    ),
    "reasoning in blocks": (
        {
            "reasoning_content": "ab",
            "thinking_blocks": [thought("a", "s1"), {"type": "redacted_thinking", "data": "x"}, thought("b", "s2")],
            "content": "Hi",
        },
        "stop",
        [thought("a", "s1"), {"type": "redacted_thinking", "data": "x"}, thought("b", "s2"), text("Hi")],
        "end_turn",
    ),
    "Mistral's parts": (
        {"content": [{"type": "thinking", "thinking": [text("hm")]}, text("Hi")]},
        "stop",
        [thought("hm"), text("Hi")],
        "end_turn",
    ),
    "a call": ({"content": "So", "tool_calls": [called()]}, "tool_calls", [text("So"), used()], "tool_use"),
    "a call of a named tool": ({"content": None, "tool_calls": [called()]}, "stop", [used()], "tool_use"),
    "parallel calls": (
        {"content": "", "tool_calls": [called(index=0), called('{"city":"Oslo"}', id="c2", index=1)]},
        "tool_calls",
        [used(), used({"city": "Oslo"}, "c2")],
        "tool_use",
    ),
    "a call without arguments": ({"tool_calls": [called("")]}, "tool_calls", [used({})], "tool_use"),
    "a call with arguments of null": ({"tool_calls": [called(None)]}, "tool_calls", [used({})], "tool_use"),
    "arguments as an object": ({"tool_calls": [called({"city": "Rome"})]}, "tool_calls", [used()], "tool_use"),
    "calls without an ID": (
        {"tool_calls": [called(id=None), called("{}", id="")]},
        "tool_calls",
        [used(id="toolu_7_0"), used({}, "toolu_7_1")],
        "tool_use",
    ),
}


def completion(message: Body, reason: Any = "stop", **more: Any) -> Body:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return {"id": "chatcmpl-7", "object": "chat.completion", "model": "gpt", "choices": [choice], **more}


def message_of(content: list[Body], reason: Any, **more: Any) -> Body:
    fixed = {"id": "msg_7", "type": "message", "role": "assistant", "model": "gpt", "stop_sequence": None}
    return {**fixed, "content": content, "stop_reason": reason, **more}


@pytest.mark.parametrize("case", ANSWERS)
def test_the_caller_gets_the_answer(case: str) -> None:
    message, reason, content, stop_reason = ANSWERS[case]
    body = messages_on_chat.body({}, completion(message, reason, usage=REPORTED))
    assert body == message_of(content, stop_reason, usage=USAGE)


@pytest.mark.parametrize("reason", [None, "error", "abort"])
def test_an_aborted_answer_has_no_stop_reason(reason: str | None) -> None:
    assert messages_on_chat.body({}, completion({"content": "Hi"}, reason))["stop_reason"] is None


def test_a_call_that_is_cut_off_has_no_input() -> None:
    body = messages_on_chat.body({}, completion({"tool_calls": [called('{"city":"Ro')]}, "length"))
    assert (body["content"], body["stop_reason"]) == ([used({})], "max_tokens")


def test_an_unknown_usage_is_absent_and_an_unknown_id_is_made() -> None:
    body = messages_on_chat.body({}, {"choices": [{"message": {"content": "Hi"}}]})
    assert "usage" not in body
    assert body["id"].startswith("msg_")
    assert body["model"] == ""


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        completion({"tool_calls": [{"id": "c1"}]}),
        completion({"tool_calls": [{"function": {"name": ""}}]}),
        completion({"tool_calls": [called("[1]")]}),
        completion({"tool_calls": [called('{"city":"Ro')]}),
        completion({"tool_calls": [called("[" * 100_000)]}),
    ],
)
def test_what_is_no_answer_is_an_error(body: Body) -> None:
    with pytest.raises(DAMAGED):
        messages_on_chat.body({}, body)


parts = st.integers(0, 10**7)


@given(parts, parts, parts, parts, parts, parts)
def test_the_usage_stays_the_same(fresh: int, cached: int, written: int, hour: int, output: int, reason: int) -> None:
    usage = Usage(fresh + cached + written, cached, output, written, min(hour, written), min(reason, output))
    reported = chat_usage(usage)
    assert parse_usage(messages_on_chat.body({}, completion({"content": "Hi"}, usage=reported))["usage"]) == usage
    assert parse_usage(collected(streamed({"content": "Hi"}, usage=reported))["usage"]) == usage


# Streams


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(delta: Body, reason: Any = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return event({"id": "chatcmpl-7", "object": "chat.completion.chunk", "model": "gpt", "choices": [choice], **more})


USAGE_CHUNK = {"id": "chatcmpl-7", "model": "gpt", "choices": []}
END = [event({**USAGE_CHUNK, "usage": REPORTED}), event(b"[DONE]")]


def deltas(message: Body) -> Iterator[Body]:
    """Yield a message in deltas, its texts and arguments letter by letter."""
    yield {"role": "assistant", "content": ""}
    if "thinking_blocks" not in message:
        yield from ({"reasoning_content": letter} for letter in message.get("reasoning_content") or "")
    for block in message.get("thinking_blocks") or ():
        if block["type"] == "thinking":
            yield from ({"thinking_blocks": [thought(letter)]} for letter in block["thinking"])
            yield {"thinking_blocks": [thought("", block["signature"])]}
        else:
            yield {"thinking_blocks": [block]}
    if "reasoning_content" not in message and "reasoning" in message:
        yield {"reasoning": message["reasoning"]}
    content = message.get("content") or ""
    yield from ({"content": [part]} if isinstance(part, dict) else {"content": part} for part in content)
    if message.get("refusal"):
        yield {"refusal": message["refusal"]}
    for at, call in enumerate(message.get("tool_calls") or ()):
        arguments, function = call["function"]["arguments"], {"name": call["function"]["name"]}
        yield {"tool_calls": [{**call, "index": at, "function": {**function, "arguments": ""}}]}
        for piece in [arguments] if not isinstance(arguments, str) else arguments:
            yield {"tool_calls": [{"index": at, "function": {"arguments": piece}}]}


def streamed(message: Body, reason: Any = "stop", *, usage: Body) -> list[bytes]:
    last = [chunk({}, reason), event({**USAGE_CHUNK, "usage": usage}), event(b"[DONE]")]
    return [*map(chunk, deltas(message)), *last]


def translated(pieces: Iterable[bytes]) -> list[Body]:
    return list(parse_events(b"".join(messages_on_chat.events({}, iter(pieces)))))


def collected(pieces: Iterable[bytes]) -> Body:
    return collected_events(translated(pieces))


def collected_events(stream: Iterable[Body]) -> Body:
    """Return the message of events as Anthropic's SDK collects it; they must come in their order."""
    events = list(stream)
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    message: Body = events[0]["message"]
    is_open, arguments = False, ""
    for each in events[1:-1]:
        match each["type"]:
            case "content_block_start":
                assert not is_open
                assert each["index"] == len(message["content"])
                message["content"].append(each["content_block"])
                is_open, arguments = True, ""
            case "content_block_delta":
                assert is_open
                assert each["index"] == len(message["content"]) - 1
                delta, block = dict(each["delta"]), message["content"][-1]
                match delta.pop("type"):
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case "input_json_delta":
                        arguments += delta["partial_json"]
            case "content_block_stop":
                assert is_open
                if arguments:
                    message["content"][-1]["input"] = json.loads(arguments)
                is_open = False
            case "message_delta":
                assert not is_open
                message |= each["delta"]
                message["usage"] |= each["usage"]
            case unknown:
                pytest.fail(unknown)
    return message


@pytest.mark.parametrize("case", ANSWERS)
def test_a_stream_and_its_plain_answer_are_the_same_message(case: str) -> None:
    message, reason, content, stop_reason = ANSWERS[case]
    pieces = streamed(message, reason, usage=REPORTED)
    expected = message_of(content, stop_reason, usage=USAGE)
    assert collected(pieces) == expected
    assert collected([b"".join(pieces)]) == expected
    assert collected(bytes([byte]) for byte in b"".join(pieces).replace(b"\n", b"\r\n")) == expected


def test_a_stream_arrives_as_it_is_written() -> None:
    pieces = [chunk({"role": "assistant", "content": ""}), chunk({"content": "H"}), chunk({"content": "i"})]
    written = messages_on_chat.events({}, iter(pieces))
    kinds = [[each["type"] for each in parse_events(next(written))] for _ in pieces]
    assert kinds == [["message_start"], ["content_block_start", "content_block_delta"], ["content_block_delta"]]
    assert next(written, b"") == b""  # it ended early


@given(st.lists(st.text(), min_size=1), st.booleans())
def test_a_text_is_the_same_whatever_its_letters(words: list[str], is_ascii: bool) -> None:
    first = chunk({"role": "assistant", "content": ""})
    pieces = [
        b'data: {"id":"chatcmpl-7","model":"gpt","choices":[{"delta":{"content":'
        + json.dumps(word, ensure_ascii=is_ascii).encode()
        + b'},"content":null}]}\n\n'
        for word in words
    ]
    content = [text("".join(words))] if any(words) else []
    assert collected([first, *pieces, chunk({}, "stop"), *END])["content"] == content


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":20,"completion_tokens":9}}\n\n',
        b'data: {"choices":[{"delta":{"content":"a","refusal":"b"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}],"content":"b"}\n\n',
        b'data: {"content":"b","choices":[{"delta":{"content":"a"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a\\"},\\"x\\":\\"b"}}]}\n\n',
        b'data: {"choices":[{"delta":\ndata: {"content":"a"}}]}\n\n',
        b'event: x\ndata: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    ],
)
def test_chunks_that_are_nearly_alike_are_not_mixed_up(odd: bytes) -> None:
    plain = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    others = [plain, plain, odd, plain, odd, odd, plain]
    alone = [translated([plain, each, chunk({}, "stop")])[3:-1] for each in others]
    texts = "".join(each["delta"]["text"] for events in alone for each in events if "text" in each.get("delta", {}))
    (block,) = collected([chunk({"content": "-"}), *others, chunk({}, "stop"), *END])["content"]
    assert block == text("-" + texts)


def call_delta(*calls: Body) -> bytes:
    return chunk({"tool_calls": list(calls)})


def piece(at: int | None, arguments: Any, **more: Any) -> Body:
    function = {"arguments": arguments, **({"name": "weather"} if "id" in more else {})}
    return {**({} if at is None else {"index": at}), "function": function, **more}


ROME, OSLO = used(), used({"city": "Oslo"}, "c2")
ODD_STREAMS: dict[str, tuple[list[bytes], list[Body]]] = {
    "calls in turn": (
        [
            call_delta(piece(0, "", id="c1"), piece(1, "", id="c2")),
            call_delta(piece(1, '{"city":'), piece(0, '{"city":"Ro')),
            call_delta(piece(0, 'me"}')),
            call_delta(piece(1, '"Oslo"}')),
        ],
        [ROME, OSLO],
    ),
    "whole calls in one chunk, without an index": (
        [call_delta(piece(None, '{"city":"Rome"}', id="c1"), piece(None, '{"city":"Oslo"}', id="c2"))],
        [ROME, OSLO],
    ),
    "whole calls, all with the index 0": (
        [call_delta(piece(0, '{"city":"Rome"}', id="c1")), call_delta(piece(0, '{"city":"Oslo"}', id="c2"))],
        [ROME, OSLO],
    ),
    "calls without an ID": (
        [call_delta(piece(0, "{}", id=None)), call_delta(piece(1, "", id=None), piece(1, "{}"))],
        [used({}, "toolu_7_0"), used({}, "toolu_7_1")],
    ),
    "the ID and the name in every chunk": (
        [call_delta(piece(0, '{"city":', id="c1")), call_delta(piece(0, '"Rome"}', id="c1")), call_delta(piece(0, ""))],
        [ROME],
    ),
    "a text after a call": (
        [call_delta(piece(0, '{"city":"Rome"}', id="c1")), chunk({"content": "a"}), chunk({"content": "b"})],
        [ROME, text("ab")],
    ),
    "a text in a call": (
        [
            call_delta(piece(0, '{"city":', id="c1")),
            chunk({"content": "a"}),
            call_delta(piece(0, '"Rome"}')),
            chunk({"content": "b"}),
        ],
        [ROME, text("ab")],
    ),
    "thinking between texts": (
        [chunk({"content": "a"}), chunk({"reasoning": "hm"}), chunk({"content": "b"}), chunk({"content": "c"})],
        [text("a"), thought("hm"), text("bc")],
    ),
    "thinking and text in one chunk": (
        [chunk({"reasoning_content": "hm", "content": "a"}), chunk({"reasoning_content": None, "content": "b"})],
        [thought("hm"), text("ab")],
    ),
    "chunks without a delta": (
        [event({"choices": [{"delta": None}], "id": "chatcmpl-7"}), chunk({"content": "a"}), event({"choices": []})],
        [text("a")],
    ),
    "comments": ([b": keep-alive\n\n", chunk({"content": "a"}), b":\n\n", chunk({"content": "b"})], [text("ab")]),
}


@pytest.mark.parametrize("case", ODD_STREAMS)
def test_an_odd_stream_is_a_message(case: str) -> None:
    pieces, content = ODD_STREAMS[case]
    message = collected([*pieces, chunk({}, "stop"), *END])
    assert message["content"] == content
    assert message["stop_reason"] == ("tool_use" if any(each["type"] == "tool_use" for each in content) else "end_turn")


BARE = {"prompt_tokens": 20, "completion_tokens": 9}


@pytest.mark.parametrize(
    ("pieces", "usage"),
    [
        ([chunk({}, "stop"), *END], Usage(20, 12, 9, reasoning_tokens=4)),
        ([chunk({}, "stop", usage=BARE), event(b"[DONE]")], Usage(20, 0, 9)),
        ([chunk({}, "stop", usage=BARE)], Usage(20, 0, 9)),
        ([chunk({}, "stop", x_groq={"id": "r", "usage": BARE}), event(b"[DONE]")], Usage(20, 0, 9)),
        (
            [event({"choices": [{"delta": {}, "finish_reason": "stop", "usage": BARE}]}), event(b"[DONE]")],
            Usage(20, 0, 9),
        ),
        (
            [chunk({"content": "a"}, usage={**BARE, "completion_tokens": 1}), chunk({}, "stop", usage=BARE), *END[1:]],
            Usage(20, 0, 9),
        ),
        (
            [chunk({}, "stop", usage=BARE), event({"choices": [], "usage": {"prompt_tokens": 0}}), *END[1:]],
            Usage(20, 0, 9),
        ),
        ([chunk({}, "stop"), event(b"[DONE]")], Usage()),
        # more output followed, so that its tokens are unknown
        ([chunk({"content": "a"}, usage=BARE), chunk({"content": "b"}), chunk({}, "stop"), *END[1:]], Usage(20)),
    ],
)
def test_the_usage_of_a_stream_is_found(pieces: list[bytes], usage: Usage) -> None:
    assert parse_usage(collected([chunk({"content": "Hi"}), *pieces])["usage"]) == usage


@pytest.mark.parametrize(
    ("pieces", "last"),
    [
        ([], "content_block_delta"),
        ([chunk({}, "stop")], "message_delta"),
        ([event(b"[DONE]")], "content_block_delta"),
        (END, "message_delta"),
        ([chunk({}, "error"), *END], "message_delta"),
    ],
)
def test_a_message_that_breaks_off_has_no_end(pieces: list[bytes], last: str) -> None:
    assert translated([chunk({"content": "Hi"}), *pieces])[-1]["type"] == last


@pytest.mark.parametrize(
    "error", [event({"error": {"message": "m", "code": 500}}), b'event: error\ndata: {"message":"m"}\n\n']
)
def test_an_error_and_what_follows_stay_as_they_were(error: bytes) -> None:
    events = b"".join(messages_on_chat.events({}, iter([chunk({"content": "Hi"}) * 3 + error, *END])))
    assert events.endswith(error + b"".join(END))
    assert b"message_delta" not in events


@pytest.mark.parametrize(
    "broken",
    [
        b"<html>\n\n",
        b"data: nonsense\n\n",
        event({"choices": [{"delta": "x"}]}),
        event({"choices": [{"delta": {"content": 5}}]}),
        call_delta({"index": 0, "function": {"arguments": "{}"}}),
        call_delta(piece(0, "{}", id="c1"), piece(1, "{}", id="c2"), piece(0, "{}")),
    ],
)
def test_a_broken_stream_ends_with_what_came_before(broken: bytes) -> None:
    events = messages_on_chat.events({}, iter([chunk({"content": "Hi"}) + broken]))
    assert b'"text":"Hi"' in next(events)
    with pytest.raises((BrokenStream, *DAMAGED)):
        next(events)


def test_a_stream_without_choices_is_broken() -> None:
    with pytest.raises(BrokenStream):
        translated(END)


def test_nothing_follows_the_end() -> None:
    pieces = [chunk({"content": "Hi"}), chunk({}, "stop"), *END]
    assert translated([*pieces, chunk({"content": "no"})]) == translated(pieces)
    assert translated([*pieces[:-1], pieces[-1] + chunk({"content": "no"})]) == translated(pieces)


# Through the platform

PATH = "/v1/messages"
ASKED: Body = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hello there"}]}


def sent_by(answer: Any) -> bytes:
    return b"".join(answer.streaming_content)


def test_a_call_is_answered_and_billed_as_by_the_provider(roomy: Api, upstream: FakeUpstream, records: Records) -> None:
    upstream.set(cached_ratio=0.5)
    plain = roomy.post(PATH, {**ASKED, "system": "Be brief."})
    assert plain.status_code == 200, plain.content
    request = upstream.requests[-1]
    assert request.path == "/v1/chat/completions"
    assert request.body["messages"] == [{"role": "system", "content": "Be brief."}, ASKED["messages"][0]]
    body = plain.json()
    assert body["content"] == [text("You said: hello there")]
    message = collected_events(
        parse_events(sent_by(roomy.post(PATH, {**ASKED, "system": "Be brief.", "stream": True})))
    )
    assert {**message, "id": ""} == {**body, "id": ""}
    for record, bill in zip(records(), upstream.billed, strict=True):
        assert (record.endpoint, record.usage_source) == ("v1.messages", "provider")
        assert (record.input_tokens, record.output_tokens) == (bill.prompt_tokens, bill.completion_tokens)
        assert record.cached_tokens == bill.cached_tokens > 0


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_tool_is_called(roomy: Api, upstream: FakeUpstream, is_stream: bool) -> None:
    asked = {**ASKED, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}, "stream": is_stream}
    answer = roomy.post(PATH, asked)
    message = collected_events(parse_events(sent_by(answer))) if is_stream else answer.json()
    (block,) = message["content"]
    assert (block["type"], block["name"], list(block["input"])) == ("tool_use", "weather", ["city"])
    assert message["stop_reason"] == "tool_use"


def test_the_caller_reads_what_cannot_be_translated(roomy: Api, upstream: FakeUpstream) -> None:
    refused = roomy.post(PATH, {**ASKED, "top_k": 5})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "top_k" in refused.json()["error"]["message"]
    assert not upstream.requests


@pytest.mark.parametrize(
    ("fault", "last", "source"),
    [
        ("no_usage", "message_stop", "estimated"),
        ("content_filter", "message_stop", "provider"),
        ("error_event", "error", "estimated"),
        ("error_usage", "error", "provider"),
        ("cut", "error", "estimated"),
        ("broken_json", "error", "estimated"),
    ],
)
def test_a_fault_in_a_stream_is_told_and_billed(
    roomy: Api, upstream: FakeUpstream, records: Records, fault: str, last: str, source: str
) -> None:
    upstream.set(tokens=40)
    upstream.fail_next(fault)
    events = list(parse_events(sent_by(roomy.post(PATH, {**ASKED, "stream": True}))))
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", last)
    (record,) = records()
    assert record.usage_source == source
    assert record.input_tokens > 0
    assert record.output_tokens > 0
