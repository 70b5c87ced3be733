"""Streams of events: what is forwarded, what is taken out, what counts as broken; however the bytes are cut."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ContentFiltered, UpstreamFailed
from inference.api.native import DeltaReader
from inference.protocols import events
from inference.protocols.base import Usage
from inference.protocols.chat import ChunkReader
from inference.protocols.events import BrokenStream, EventReader, parse_events
from inference.protocols.responses import ResponseReader, response_protocol

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
DONE = b"data: [DONE]\n\n"


def event(fields: dict[str, Any], name: str = "") -> bytes:
    """Write an event as providers do."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(text: str, **more: Any) -> bytes:
    """Write a chunk of a chat completion."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more})


def plain_stream(**more: Any) -> bytes:
    """Write a whole stream with its usage at the end."""
    usage = event({"choices": [], "usage": USAGE})
    return chunk("Hello", **more) + b": keep-alive\n\n" + chunk(" you", **more) + usage + DONE


def follow(reader: EventReader, *pieces: bytes) -> bytes:
    """Feed the pieces and the end, and return what was forwarded."""
    return b"".join(reader.feed(piece) for piece in pieces) + reader.finish()


def test_it_forwards_text_as_it_came() -> None:
    sent = chunk("Hello") + chunk("") + b": a comment\n\n" + chunk('"usage" and [DONE]')
    reader = ChunkReader(forwards_usage=False)
    assert reader.feed(sent) == sent
    assert not reader.is_done


def test_it_takes_out_the_usage_that_the_caller_did_not_ask_for() -> None:
    reader = ChunkReader(forwards_usage=False)
    forwarded = follow(reader, plain_stream(usage=None))
    assert reader.usage == Usage(5, 3, 2)
    assert reader.is_done
    assert b'"usage"' not in forwarded
    assert forwarded == chunk("Hello") + b": keep-alive\n\n" + chunk(" you") + DONE


def test_it_forwards_the_usage_that_the_caller_asked_for() -> None:
    reader = ChunkReader(forwards_usage=True)
    assert follow(reader, plain_stream(usage=None)) == plain_stream(usage=None)
    assert reader.usage == Usage(5, 3, 2)


def test_it_takes_usage_out_of_a_chunk_that_holds_it_beside_text() -> None:
    sent = chunk("Hello", usage=USAGE)
    reader, asked = ChunkReader(forwards_usage=False), ChunkReader(forwards_usage=True)
    (shown,) = parse_events(reader.feed(sent))
    assert event(shown) == chunk("Hello")
    assert asked.feed(sent) == sent
    assert reader.usage == asked.usage == Usage(5, 3, 2)


ERRORS = [
    event({"error": {"message": "internal"}}),
    event({"message": "internal", "code": 500}, name="error"),
    b"event:error\nid: 3\n" + event({"message": "internal"}),
    event({"object": "error", "message": "internal", "code": 50001}),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("pieces", [1, 2])
def test_it_passes_no_error_on_however_it_is_told(error: bytes, pieces: int) -> None:
    reader = ChunkReader(forwards_usage=False)
    parts = [chunk("Hello"), error + chunk(" you") + DONE]
    assert follow(reader, *(parts if pieces == 2 else [b"".join(parts)])) == chunk("Hello")
    assert reader.error is not None
    assert not reader.is_done
    assert reader.body()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("error", ERRORS)
def test_it_takes_no_answer_for_whole_that_an_error_ended(error: bytes) -> None:
    reader = delta_reader()
    assert follow(reader, chunk("Hello") + error + DONE) == b'event: delta\ndata: {"text":"Hello"}\n\n'
    assert reader.error is not None
    assert not reader.is_done


@pytest.mark.parametrize("after", [chunk(" and more"), b"<p>garbage</p>\n\n", ERRORS[0], DONE])
def test_it_ignores_what_follows_the_end(after: bytes) -> None:
    for pieces in ([plain_stream(), after], [plain_stream() + after]):
        reader = ChunkReader(forwards_usage=True)
        assert follow(reader, *pieces) == plain_stream()
        assert (reader.usage, reader.is_done, reader.error) == (Usage(5, 3, 2), True, None)


@pytest.mark.parametrize("piece", ["with the error", "after it"])
def test_it_believes_the_usage_of_an_error(piece: str) -> None:
    error, usage = {"error": {"code": "server_error"}}, {"usage": USAGE}
    told = event({**error, **usage}) if piece == "with the error" else event(error) + event({"choices": [], **usage})
    reader = ChunkReader(forwards_usage=False)
    follow(reader, chunk("Hello") + told)
    assert reader.needs_no_more
    assert billed(reader) == (Usage(5, 3, 2), "provider")


def test_it_takes_an_error_before_any_text_for_free() -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    for sent, is_free in ((role + ERRORS[0], True), (role + chunk("a") + ERRORS[0], False), (role, False)):
        reader = ChunkReader(forwards_usage=False)
        follow(reader, sent)
        assert reader.is_free is is_free


@given(st.data())
def test_it_reads_the_same_however_the_bytes_are_cut(data: st.DataObject) -> None:
    ends = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    sent = plain_stream(usage=None).replace(b"\n", ends)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=20)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    reader, at_once = ChunkReader(forwards_usage=False), ChunkReader(forwards_usage=False)
    assert follow(reader, *pieces) == follow(at_once, plain_stream(usage=None))
    assert (reader.usage, reader.is_done, reader.text) == (at_once.usage, True, at_once.text)


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("forwards", [True, False])
def test_it_reads_byte_by_byte(ends: bytes, forwards: bool) -> None:
    sent = plain_stream().replace(b"\n", ends)
    reader = ChunkReader(forwards_usage=forwards)
    forwarded = follow(reader, *(sent[i : i + 1] for i in range(len(sent))))
    assert forwarded == follow(ChunkReader(forwards_usage=forwards), plain_stream())
    assert (reader.usage, reader.is_done) == (Usage(5, 3, 2), True)


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n", b"data:[DONE]\n\n"])
def test_it_takes_the_end_of_the_stream_for_that_of_its_last_event(end: bytes) -> None:
    reader = ChunkReader(forwards_usage=False)
    assert follow(reader, chunk("Hello") + end).startswith(chunk("Hello") + b"data:")
    assert reader.is_done


COUNTED = Usage(4, 0, 9)


def billed(reader: EventReader) -> tuple[Usage, str]:
    """Return what a stream is billed, whose tokens are counted as COUNTED."""
    return reader.billed_usage(lambda body: COUNTED)


LAST = event({"choices": [], "usage": USAGE})
FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


@pytest.mark.parametrize("make", [lambda: ChunkReader(forwards_usage=False), lambda: ChunkReader(forwards_usage=True)])
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
def test_it_believes_usage_that_was_told_at_the_end_only(
    make: Callable[[], ChunkReader], sent: bytes, told: bool
) -> None:
    for step in (1, 1000):
        reader = make()
        follow(reader, *(sent[start : start + step] for start in range(0, len(sent), step)))
        assert billed(reader) == ((Usage(5, 3, 2), "provider") if told else (Usage(5, 3, 9), "estimated"))


@pytest.mark.parametrize(("answers", "told"), [(1, True), (2, False)])
def test_it_believes_no_usage_that_is_of_one_answer_among_several(answers: int, told: bool) -> None:
    """llama.cpp ends each answer's chunks with a usage of its own, so that the last one stands for all."""
    reader = ChunkReader(forwards_usage=False, answers=answers)
    pieces = [event({"choices": [{"index": n, "delta": {"content": "one two three "}}]}) for n in (0, 1) * 3]
    follow(reader, *pieces, LAST, DONE)
    assert billed(reader) == ((Usage(5, 3, 2), "provider") if told else (Usage(5, 3, 9), "estimated"))


def test_it_believes_a_usage_of_several_answers() -> None:
    reader = ChunkReader(forwards_usage=False, answers=2)
    pieces = [event({"choices": [{"index": n, "text": "word"}]}) for n in (0, 1)]
    follow(reader, *pieces, LAST, DONE)
    assert billed(reader) == (Usage(5, 3, 2), "provider")


def test_it_counts_where_no_usage_was_told() -> None:
    reader = ChunkReader(forwards_usage=False)
    follow(reader, chunk("Hello") + DONE)
    assert billed(reader) == (COUNTED, "estimated")


def test_it_takes_a_stream_without_an_answer_for_broken() -> None:
    reader = ChunkReader(forwards_usage=False)
    assert reader.feed(event({"choices": [], "usage": USAGE})) == b""
    with pytest.raises(BrokenStream):
        reader.feed(DONE)
    assert (reader.usage, reader.is_done) == (Usage(5, 3, 2), True)


def test_it_knows_a_stream_that_did_not_come_to_its_end() -> None:
    reader = ChunkReader(forwards_usage=False)
    follow(reader, chunk("Hello"))
    assert not reader.is_done
    assert reader.usage is None


def test_it_joins_the_lines_of_an_event() -> None:
    reader = ChunkReader(forwards_usage=False)
    reader.feed(b'data: {"choices": [],\ndata: "usage":\ndata: {"prompt_tokens": 1, "completion_tokens": 1}}\n\n')
    assert reader.usage == Usage(1, 0, 1)


@pytest.mark.parametrize(
    "broken",
    [
        b'data: {"id": "provider-internal-detail", "choices": [{\n\n',
        b"data: provider-internal-detail\n\n",
        b"data: <html>\n\n",
        b'data: ["provider-internal-detail"]\n\n',
        b'data: "usage"\n\n',
    ],
)
@pytest.mark.parametrize("kind", ["chunks", "response"])
def test_it_passes_nothing_of_a_broken_event_on(broken: bytes, kind: str) -> None:
    reader: EventReader = ChunkReader(forwards_usage=True) if kind == "chunks" else ResponseReader()
    before = chunk("Hello")
    with pytest.raises(BrokenStream) as raised:
        reader.feed(before + broken + chunk(" you"))
    assert raised.value.before == before
    assert "provider-internal-detail" not in str(raised.value)


def test_it_bounds_an_event_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LONGEST_EVENT", 1000)
    reader = ChunkReader(forwards_usage=False)
    for _ in range(10):
        assert reader.feed(b"x" * 100) == b""
    with pytest.raises(BrokenStream):
        reader.feed(b"x")


@pytest.mark.parametrize("byte", [b"x", b"\r\n:"])
def test_it_takes_a_long_event_in_many_pieces_in_its_stride(byte: bytes) -> None:
    """An event of 8 MB in pieces of 1,000 bytes: if each piece copied all before it, that would be 32 GB."""
    reader, began = ChunkReader(forwards_usage=False), time.process_time()
    for _ in range(8000):
        assert reader.feed(b":" + byte * (1000 // len(byte))) == b""
    assert time.process_time() - began < 3


def test_it_puts_together_what_was_generated_until_a_stream_broke_off() -> None:
    pieces = [
        {"index": 0, "delta": {"role": "assistant", "content": "Hel"}},
        {"index": 0, "delta": {"content": "lo", "reasoning_content": "(thought)"}},
        {"index": 1, "delta": {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "add"}}]}},
        {"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]}},
        {"index": 1, "delta": {"refusal": "No."}, "finish_reason": "stop"},
        {"index": 2, "text": "a completion's"},
    ]
    reader = ChunkReader(forwards_usage=False)
    reader.feed(b"".join(event({"choices": [piece]}) for piece in pieces))
    texts = [choice["message"]["content"] + choice["text"] for choice in reader.body()["choices"]]
    assert texts == ["Hello(thought)", 'add{"a": 1}No.', "a completion's"]


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
    reader = ChunkReader(forwards_usage=False)
    reader.feed(event(odd))
    assert isinstance(reader.body()["choices"], list)
    assert reader.usage is None


def test_it_leaves_out_what_is_no_event() -> None:
    found = list(parse_events(b': comment\n\nevent: ping\n\ndata: broken\n\ndata: {"a": 1}\n\ndata: [DONE]\n\n'))
    assert found == [{"a": 1}]


def response_event(kind: str, **fields: Any) -> bytes:
    """Write an event of a response."""
    return event({"type": kind, **fields}, kind)


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete"])
def test_it_reads_the_usage_of_a_response(end: str) -> None:
    usage = {"input_tokens": 7, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}
    sent = response_event("response.created", response={"error": None}) + response_event(
        "response.output_text.delta", delta="Hello"
    )
    sent += response_event(end, response={"usage": usage})
    reader = ResponseReader()
    assert follow(reader, sent) == sent
    assert (reader.usage, reader.is_done) == (Usage(7, 2, 4), True)


@pytest.mark.parametrize("kind", ["error", "response.failed"])
def test_it_passes_no_failed_response_on_as_it_is(kind: str) -> None:
    reader = ResponseReader()
    assert reader.feed(response_event(kind, response={"error": {"message": "text"}}, message="text")) == b""
    assert reader.error is not None
    assert not reader.is_done


def test_it_puts_a_response_together_that_broke_off() -> None:
    reader = ResponseReader()
    for piece in ("Hel", "lo"):
        reader.feed(response_event("response.output_text.delta", delta=piece))
    reader.feed(response_event("response.function_call_arguments.delta", delta='{"a": 1}'))
    reader.feed(response_event("response.output_text.done", text="Hello"))
    assert reader.body() == {"output": [{"content": 'Hello{"a": 1}'}]}
    assert not reader.is_done


def delta_reader(*, is_cached: bool = False) -> DeltaReader:
    """Return what makes /chat's events."""
    payload = {"messages": [{"role": "user", "content": "hi"}]}
    return DeltaReader(payload, model="gpt-4o", label="req-1", is_cached=is_cached)


def test_it_translates_chunks_into_the_platform_s_own_events() -> None:
    forwarded = follow(delta_reader(), plain_stream(usage=None)).decode().split("\n\n")
    assert forwarded[:2] == ['event: delta\ndata: {"text":"Hello"}', 'event: delta\ndata: {"text":" you"}']
    name, _, data = forwarded[2].partition("\ndata: ")
    assert name == "event: done"
    assert json.loads(data) == {"response": "Hello you", "tokens_used": 7, "cached": False, "request_id": "req-1"}


def test_it_counts_tokens_itself_where_the_provider_tells_none() -> None:
    forwarded = follow(delta_reader(), chunk("Hello") + DONE)
    told = json.loads(forwarded.decode().rpartition("data: ")[2])
    assert told["tokens_used"] > 1


def test_it_tells_of_a_filtered_answer_once_its_usage_is_known() -> None:
    reader = delta_reader()
    reader.feed(chunk("Hel") + event({"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}))
    reader.feed(event({"choices": [], "usage": USAGE}))
    with pytest.raises(ContentFiltered):
        reader.feed(DONE)
    assert (reader.usage, reader.is_done) == (Usage(5, 3, 2), True)


@pytest.mark.parametrize("name", ["event: error", "event:error"])
def test_it_passes_no_named_error_on_among_a_response_s_events(name: str) -> None:
    sent = response_event("response.output_text.delta", delta="Hel")
    error = f'{name}\ndata: {{"message": "internal"}}\n\n'.encode()
    reader = ResponseReader()
    assert reader.feed(sent + error) == sent
    assert reader.error is not None


def test_it_fails_for_an_empty_answer() -> None:
    with pytest.raises(UpstreamFailed):
        follow(delta_reader(), chunk(" ") + DONE)


@pytest.mark.parametrize("reason", ["content_filter", "error"])
def test_it_sends_what_came_before_it_tells_that_it_is_none(reason: str) -> None:
    reader = delta_reader()
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    assert reader.feed(chunk("Hel") + end + DONE) == b'event: delta\ndata: {"text":"Hel"}\n\n'
    with pytest.raises(UpstreamFailed):
        reader.finish()


@pytest.mark.parametrize("garbage", [b"Bad gateway\n\n", b'{"a": 1}\n\n', b"<p>}\n\n"])
def test_it_passes_no_garbage_on(garbage: bytes) -> None:
    for sent in (chunk("Hello") + garbage, garbage + chunk("Hello"), garbage):
        with pytest.raises(BrokenStream) as broken:
            ChunkReader(forwards_usage=False).feed(sent)
        assert garbage not in broken.value.before


def test_it_passes_what_has_no_data_on() -> None:
    sent = b": a comment\n\nevent: ping\n\nretry: 5\nid: 1\n\n" + chunk("Hello")
    assert ChunkReader(forwards_usage=False).feed(sent) == sent


@pytest.mark.parametrize(
    ("first", "opens"),
    [
        ({"type": "response.created", "response": {}}, True),
        ({"type": "response.failed", "response": {}}, False),
        ({"type": "error", "message": "m"}, False),
        ({"choices": []}, False),
    ],
)
def test_it_knows_what_opens_a_stream_of_a_response(first: dict[str, Any], opens: bool) -> None:
    assert response_protocol.opens_stream(first) is opens
