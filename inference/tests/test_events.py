"""Streams of events: what is forwarded, what is taken out, what counts as broken; however the bytes are cut.

tests/test_provider_streams.py proves the same of whole streams, with what is billed.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ContentFiltered, UpstreamFailed
from inference.api.native import DeltaReader
from inference.protocols import events
from inference.protocols.chat import ChunkReader
from inference.protocols.events import TURN, BrokenStream, EventReader, KeptEvents, parse_events
from inference.protocols.responses import ResponseReader
from inference.usage import Usage

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
COUNTED = Usage(4, 0, 9)
DONE = b"data: [DONE]\n\n"


def event(fields: dict[str, Any], name: str = "") -> bytes:
    """Write an event as providers do."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(text: str, **more: Any) -> bytes:
    """Write a chunk of a chat completion."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more})


def response_event(kind: str, **fields: Any) -> bytes:
    """Write an event of a response."""
    return event({"type": kind, **fields}, kind)


LAST = event({"choices": [], "usage": USAGE})
FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
PLAIN = chunk("Hello", usage=None) + b": keep-alive\n\n" + chunk(" you", usage=None) + LAST + DONE
SILENT = chunk("Hello") + b": keep-alive\n\n" + chunk(" you") + DONE


def chunks(*, forwards_usage: bool = False, answers: int = 1) -> ChunkReader:
    """Make a reader of chunks."""
    return ChunkReader(forwards_usage=forwards_usage, answers=answers)


def deltas() -> DeltaReader:
    """Make a reader that writes /chat's events."""
    payload = {"messages": [{"role": "user", "content": "hi"}]}
    return DeltaReader(payload, model="gpt-4o", label="req-1", is_cached=False)


def follow(reader: EventReader, *pieces: bytes) -> bytes:
    """Feed the pieces and the end, and return what was forwarded."""
    return b"".join(reader.feed(piece) for piece in pieces) + reader.finish()


def billed(reader: EventReader) -> tuple[Usage, str]:
    """Return what a stream is billed, whose tokens are counted as COUNTED."""
    return reader.billed_usage(lambda body: COUNTED)


# What is forwarded


def test_it_forwards_text_and_what_has_no_data_as_it_came() -> None:
    sent = chunk("Hello") + b": a comment\n\nevent: ping\n\nretry: 5\nid: 1\n\n" + chunk('"usage" and [DONE]')
    reader = chunks()
    assert reader.feed(sent) == sent
    assert (reader.is_done, reader.usage) == (False, None)
    assert list(parse_events(sent + b"data: broken\n\n"))[1]["choices"][0]["delta"]["content"] == '"usage" and [DONE]'


@given(st.sampled_from([b"\n", b"\r\n", b"\r"]), st.just(range(1000)) | st.lists(st.integers(0, 1000), max_size=20))
def test_it_forwards_usage_to_who_asked_for_it_however_the_bytes_are_cut(ends: bytes, cuts: Iterable[int]) -> None:
    sent = PLAIN.replace(b"\n", ends)
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    for forwards, told in ((True, PLAIN), (False, SILENT)):
        reader, at_once = chunks(forwards_usage=forwards), chunks(forwards_usage=forwards)
        pieces = (sent[start:end] for start, end in pairwise(places))
        assert follow(reader, *pieces) == follow(at_once, PLAIN) == told
        assert (reader.usage, reader.is_done, reader.text) == (Usage(5, 3, 2), True, at_once.text)


def test_it_takes_usage_out_of_a_chunk_that_holds_it_beside_text() -> None:
    reader = chunks()
    (shown,) = parse_events(reader.feed(chunk("Hello", usage=USAGE)))
    assert event(shown) == chunk("Hello")
    reader.feed(b'data: {"choices": [],\ndata: "usage":\ndata: {"prompt_tokens": 1, "completion_tokens": 1}}\n\n')
    assert reader.usage == Usage(1, 0, 1)


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n", b"data:[DONE]\n\n"])
def test_it_takes_the_end_of_the_stream_for_that_of_its_last_event(end: bytes) -> None:
    reader = chunks()
    assert follow(reader, chunk("Hello") + end).startswith(chunk("Hello") + b"data:")
    assert reader.is_done


ERRORS = [
    event({"error": {"message": "internal"}}),
    event({"message": "internal", "code": 500}, name="error"),
    b"event:error\nid: 3\n" + event({"message": "internal"}),
    event({"object": "error", "message": "internal", "code": 50001}),
]


@pytest.mark.parametrize("error", ERRORS)
def test_it_passes_no_error_on_however_it_is_told(error: bytes) -> None:
    for parts in ([chunk("Hello"), error + chunk(" you") + DONE], [chunk("Hello") + error + chunk(" you") + DONE]):
        reader, own = chunks(), deltas()
        assert follow(reader, *parts) == chunk("Hello")
        assert follow(own, *parts) == b'event: delta\ndata: {"text":"Hello"}\n\n'
        assert reader.error is not None
        assert [reader.is_done, own.is_done] == [False, False]
        assert reader.body()["choices"][0]["message"]["content"] == "Hello"


# What counts as broken


@pytest.mark.parametrize(
    "broken",
    [
        b'data: {"id": "provider-internal-detail", "choices": [{\n\n',
        b"data: provider-internal-detail\n\n",
        b'data: ["provider-internal-detail"]\n\n',
        b'data: "usage"\n\n',
        *(b"data: " + data + b"\n\n" for data in (b"null", b"[" * 50_000, b'{"a": ' + b"[" * 50_000, b"\xff")),
        b"Bad gateway\n\n",
        b'{"a": 1}\n\n',
        b"<p>}\n\n",
    ],
)
@pytest.mark.parametrize("make", [lambda: chunks(forwards_usage=True), ResponseReader])
def test_it_passes_nothing_of_a_broken_event_on(broken: bytes, make: Callable[[], EventReader]) -> None:
    for before in (chunk("Hello"), b""):
        with pytest.raises(BrokenStream) as raised:
            make().feed(before + broken + chunk(" you"))
        assert raised.value.before == before
        assert "provider-internal-detail" not in str(raised.value)


def test_it_takes_a_stream_without_an_answer_for_broken() -> None:
    reader = chunks()
    assert reader.feed(LAST) == b""
    with pytest.raises(BrokenStream):
        reader.feed(DONE)
    assert (reader.usage, reader.is_done) == (Usage(5, 3, 2), True)


def test_it_bounds_an_event_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LONGEST_EVENT", 1000)
    reader = chunks()
    for _ in range(10):
        assert reader.feed(b"x" * 100) == b""
    with pytest.raises(BrokenStream):
        reader.feed(b"x")


def test_it_keeps_the_events_of_streams_side_by_side_in_a_fifth_of_their_bytes() -> None:
    kept, sent = [KeptEvents(), KeptEvents()], [b"", b""]
    for number in range(1000):
        each = number % 2
        kept[each].add(event := chunk(f" word {number}", id="chatcmpl-" + "x" * 40))
        sent[each] += event
    assert [b"".join(each) for each in kept] == sent
    assert all(sum(map(len, each._blocks)) + len(each._last) < len(sent[0]) / 5 for each in kept)
    kept[0].add(large := chunk("x" * TURN))
    assert b"".join(kept[0]) == sent[0] + large


@pytest.mark.parametrize("failing", ["compress", "flush"])
def test_it_keeps_nothing_of_a_stream_whose_compression_failed_among_another_s(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    compressor = Mock(wraps=zlib.compressobj(level=1, wbits=-13, memLevel=6))
    getattr(compressor, failing).side_effect = [MemoryError, DEFAULT]
    monkeypatch.setattr(KeptEvents, "_compressors", [compressor])
    one, other = KeptEvents(), KeptEvents()
    with pytest.raises(MemoryError):
        one.add(chunk("secret" * 1000))
    other.add(sent := chunk("Hello" * 1000))
    assert b"".join(other) == sent
    assert b"".join(one) == chunk("secret" * 1000)


@pytest.mark.parametrize("byte", [b"x", b"\r\n:"])
def test_it_takes_a_long_event_in_many_pieces_in_its_stride(byte: bytes) -> None:
    """An event of 8 MB in pieces of 1,000 bytes: if each piece copied all before it, that would be 32 GB."""
    reader, began = chunks(), time.process_time()
    for _ in range(8000):
        assert reader.feed(b":" + byte * (1000 // len(byte))) == b""
    assert time.process_time() - began < 3


# What is billed


@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (chunk("Hello") + LAST + DONE, True),
        (chunk("Hello") + FINISH + LAST, True),
        (chunk("Hello", usage=USAGE) + DONE, True),
        (chunk("Hello", usage=USAGE) + FINISH + DONE, True),
        (chunk("Hello") + LAST + FINISH + DONE, True),
        (chunk("Hello", usage=USAGE), False),
        (chunk("Hello", usage=USAGE) + chunk(" you", usage=USAGE), False),
        (LAST + chunk("Hello") + chunk(" you"), False),
        (LAST + chunk("Hello") + chunk(" you") + DONE, False),
        (LAST + event({"choices": [{"index": 0, "text": "Hello"}]}) + DONE, False),
        (LAST + chunk("Hello") + LAST + DONE, True),
    ],
)
def test_it_believes_usage_that_was_told_at_the_end_only(forwards: bool, sent: bytes, told: bool) -> None:
    for step in (1, 1000):
        reader = chunks(forwards_usage=forwards)
        follow(reader, *(sent[start : start + step] for start in range(0, len(sent), step)))
        assert billed(reader) == ((Usage(5, 3, 2), "provider") if told else (Usage(5, 3, 9), "estimated"))


@pytest.mark.parametrize(
    ("answers", "texts", "told"),
    [(1, ["one two three "] * 6, True), (2, ["one two three "] * 6, False), (2, ["word"] * 2, True)],
)
def test_it_believes_no_usage_that_is_of_one_answer_among_several(answers: int, texts: list[str], told: bool) -> None:
    """llama.cpp ends each answer's chunks with a usage of its own, so that the last one stands for all."""
    reader = chunks(answers=answers)
    pieces = [event({"choices": [{"index": n % 2, "delta": {"content": text}}]}) for n, text in enumerate(texts)]
    follow(reader, *pieces, LAST, DONE)
    assert billed(reader) == ((Usage(5, 3, 2), "provider") if told else (Usage(5, 3, 9), "estimated"))


def test_it_puts_together_what_was_generated_until_a_stream_broke_off() -> None:
    pieces = [
        {"index": 0, "delta": {"role": "assistant", "content": "Hel"}},
        {"index": 0, "delta": {"content": "lo", "reasoning_content": "(thought)"}},
        {"index": 1, "delta": {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "add"}}]}},
        {"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]}},
        {"index": 1, "delta": {"refusal": "No."}, "finish_reason": "stop"},
        {"index": 2, "text": "a completion's"},
    ]
    reader = chunks()
    reader.feed(b"".join(event({"choices": [piece]}) for piece in pieces))
    texts = [choice["message"]["content"] + choice["text"] for choice in reader.body()["choices"]]
    assert texts == ["Hello(thought)", 'add{"a": 1}No.', "a completion's"]
    assert not reader.is_done


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": None},
        {"choices": "text"},
        {"choices": [None, 1, "text"]},
        {"choices": [{"delta": None}]},
        {"choices": [{"index": None, "delta": {"content": "a"}}, {"index": 1, "delta": {}}, {"index": []}]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"tool_calls": [None]}, "text": 5}]},
        {"choices": [{"delta": {"tool_calls": {"function": None}}}]},
        {"choices": [{"index": 0, "delta": {"content": [{"text": "a"}]}}]},
        {"usage": "none"},
        {"usage": {"prompt_tokens": -1}},
    ],
)
def test_it_makes_an_answer_of_odd_chunks_too(odd: dict[str, Any]) -> None:
    reader = chunks()
    reader.feed(event(odd))
    assert isinstance(reader.body()["choices"], list)
    assert reader.usage is None


# Responses


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete"])
def test_it_reads_a_response(end: str) -> None:
    reader = ResponseReader()
    sent = response_event("response.created", response={"error": None})
    sent += b"".join(response_event("response.output_text.delta", delta=piece) for piece in ("Hel", "lo"))
    assert reader.feed(sent) == sent
    reader.feed(response_event("response.function_call_arguments.delta", delta='{"a": 1}'))
    reader.feed(response_event("response.output_text.done", text="Hello"))
    assert reader.body() == {"output": [{"content": 'Hello{"a": 1}'}]}
    usage = {"input_tokens": 7, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}
    last = response_event(end, response={"usage": usage})
    assert follow(reader, last) == last
    assert (reader.usage, reader.is_done) == (Usage(7, 2, 4), True)


# The platform's own events


def test_it_translates_chunks_into_the_platform_s_own_events() -> None:
    for sent, tokens in ((PLAIN, 7), (SILENT, 10)):
        forwarded = follow(deltas(), sent).decode().split("\n\n")
        assert forwarded[:2] == ['event: delta\ndata: {"text":"Hello"}', 'event: delta\ndata: {"text":" you"}']
        name, _, data = forwarded[2].partition("\ndata: ")
        told = {"response": "Hello you", "tokens_used": tokens, "cached": False, "request_id": "req-1"}
        assert (name, json.loads(data)) == ("event: done", told)


@pytest.mark.parametrize(
    ("reason", "error"), [("content_filter", ContentFiltered), ("error", UpstreamFailed), (None, UpstreamFailed)]
)
def test_it_sends_what_came_before_it_tells_that_it_is_none(reason: str | None, error: type[Exception]) -> None:
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    text = "Hel" if reason else " "
    reader = deltas()
    assert reader.feed(chunk(text) + end + LAST + DONE) == f'event: delta\ndata: {{"text":"{text}"}}\n\n'.encode()
    with pytest.raises(error):
        reader.finish()
    assert (reader.usage, reader.is_done) == (Usage(5, 3, 2), True)
