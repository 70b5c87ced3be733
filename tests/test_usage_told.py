"""What a provider tells of the tokens that a call used: whether it is believed, and who gets to see it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.running import CHAT, EMBEDDINGS, ENDPOINTS, STREAMING, Model, Reply, answered, event

WORDS = "one two three four five"
COUNTED = 5
#: A request of each endpoint that generates text.
CALLS: list[tuple[str, dict[str, bool]]] = [
    *[(path, {}) for path in ENDPOINTS if path != EMBEDDINGS],
    *[(path, {"stream": True}) for path in STREAMING],
]
CHUNKED = (CHAT, "/v1/completions")
#: Figures of input and output that can't be, beside a question and five words.
IMPOSSIBLE = [(0, 0), (90, 0), (0, 9)]


def told(prompt: int, output: int | None) -> dict[str, int]:
    """Make a usage as chat completions tell it; None: without the output."""
    return {"prompt_tokens": prompt} | ({} if output is None else {"completion_tokens": output})


def choice(path: str, text: str, **more: Any) -> dict[str, Any]:
    said = {"text": text} if path == "/v1/completions" else {"delta": {"content": text}}
    return {"index": 0, **said, "finish_reason": None, **more}


def chunk(path: str, text: str, **more: Any) -> bytes:
    """Write a chunk with a piece of text."""
    return event({"id": "c", "choices": [choice(path, text)], **more})


def finish(path: str, **more: Any) -> bytes:
    """Write the chunk that ends an answer."""
    return event({"id": "c", "choices": [choice(path, "", finish_reason="stop")], **more})


def own(usage: Any) -> bytes:
    """Write a chunk that holds nothing but usage."""
    return event({"id": "c", "choices": [], "usage": usage})


def stream(*events: bytes) -> Reply:
    """Make the reply of a stream of chunks."""
    return Reply(body=[*events, event("[DONE]")])


@pytest.mark.parametrize(("path", "more"), CALLS)
@pytest.mark.parametrize(("prompt", "output"), IMPOSSIBLE)
def test_it_counts_itself_beside_a_usage_that_can_not_be(
    model: Model, path: str, more: dict[str, bool], prompt: int, output: int
) -> None:
    model.script(answered(path, WORDS, prompt=prompt, output=output, is_stream="stream" in more))
    answer = model.ask(path, **more)
    assert answer.status == 200
    record = model.record(answer)
    assert record.usage_source == "estimated"
    assert record.output_tokens == (output or COUNTED)
    assert record.input_tokens == prompt or (not prompt and record.input_tokens > 1)
    assert record.cost == 2000 * record.input_tokens + 10000 * record.output_tokens
    if path == "/chat":
        tokens = answer.events()[-1]["tokens_used"] if "stream" in more else answer.json()["tokens_used"]
        assert tokens == record.input_tokens + record.output_tokens


@pytest.mark.parametrize(("path", "more"), CALLS)
def test_it_believes_a_usage_that_can_be(model: Model, path: str, more: dict[str, bool]) -> None:
    model.script(answered(path, WORDS, prompt=100, output=3, is_stream="stream" in more))
    record = model.record(model.ask(path, **more))
    assert (record.usage_source, record.input_tokens, record.output_tokens) == ("provider", 100, 3)


@pytest.mark.parametrize("path", [path for path in STREAMING if path != "/chat"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_it_believes_that_nothing_was_generated_where_nothing_came(model: Model, path: str, is_stream: bool) -> None:
    model.script(answered(path, "", prompt=9, output=0, is_stream=is_stream))
    record = model.record(model.ask(path, stream=is_stream))
    assert (record.usage_source, record.input_tokens, record.output_tokens) == ("provider", 9, 0)


@pytest.mark.parametrize("is_stream", [False, True])
def test_it_counts_the_tool_calls_that_a_usage_leaves_out(model: Model, is_stream: bool) -> None:
    called = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [called]}
    said = {"index": 0, "finish_reason": "tool_calls", ("delta" if is_stream else "message"): message}
    body = {"id": "c", "choices": [said], "usage": told(9, 0)}
    model.script(stream(event(body)) if is_stream else Reply(body=json.dumps(body).encode()))
    record = model.record(model.ask(stream=is_stream))
    assert (record.usage_source, record.input_tokens) == ("estimated", 9)
    assert record.output_tokens > 3


@pytest.mark.parametrize("usage", [told(0, None), told(0, 0), None])
def test_it_counts_the_input_of_embeddings_that_a_usage_leaves_out(
    make_model: Callable[..., Model], usage: dict[str, int] | None
) -> None:
    body = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}], "usage": usage}
    model = make_model(EMBEDDINGS)
    model.script(Reply(body=json.dumps(body).encode()))
    record = model.record(model.ask(EMBEDDINGS, input=WORDS))
    assert (record.usage_source, record.input_tokens, record.output_tokens) == ("estimated", COUNTED, 0)


def running(path: str, *usages: Any) -> list[bytes]:
    """Write chunks of a word each, each with a usage; the last one ends the answer."""
    words = zip(WORDS.split(), usages, strict=False)
    pieces = [chunk(path, word + " ", usage=usage) for word, usage in words]
    return [*pieces, finish(path, usage=usages[-1])]


@pytest.mark.parametrize("path", CHUNKED)
@pytest.mark.parametrize(
    "last",
    [
        lambda path: [finish(path)],
        lambda path: [finish(path, usage=told(30, 9))],
        lambda path: [finish(path), own(told(30, 9))],
        lambda path: [finish(path, usage=told(30, 8)), own(told(30, 9))],
        lambda path: [finish(path, usage=told(30, 9)), own(told(0, 0))],
        lambda path: [finish(path, usage=told(30, 9)), own(None)],
    ],
)
def test_it_takes_the_last_of_the_usages_that_run_along(
    model: Model, path: str, last: Callable[[str], list[bytes]]
) -> None:
    ending = last(path)
    pieces = [chunk(path, f"{word} ", usage=told(30, n)) for n, word in enumerate(WORDS.split())]
    is_told_late = any(b'"completion_tokens": 9' in each for each in ending)
    model.script(stream(*pieces, *ending))
    record = model.record(model.ask(path, stream=True))
    assert (record.usage_source, record.input_tokens) == ("provider", 30)
    assert record.output_tokens == (9 if is_told_late else 4)


@pytest.mark.parametrize("path", CHUNKED)
def test_it_takes_a_usage_out_of_the_choice_that_holds_it(model: Model, path: str) -> None:
    last = event({"id": "c", "choices": [choice(path, "", finish_reason="stop", usage=told(30, 9))]})
    model.script(stream(chunk(path, WORDS), last))
    record = model.record(model.ask(path, stream=True))
    assert (record.usage_source, record.input_tokens, record.output_tokens) == ("provider", 30, 9)


#: Where in a stream a provider may tell usage.
PLACES: dict[str, Callable[[str], Sequence[bytes]]] = {
    "its own chunk": lambda path: [chunk(path, WORDS), finish(path), own(told(9, 5))],
    "its own chunk, odd": lambda path: [chunk(path, WORDS), finish(path), own({"prompt_tokens": "9"})],
    "the last chunk": lambda path: [chunk(path, WORDS), finish(path, usage=told(9, 5))],
    "every chunk": lambda path: [
        *(chunk(path, word, usage=told(9, n)) for n, word in enumerate(["one two ", "three ", "four five"])),
        finish(path, usage=told(9, 5)),
        own(told(9, 5)),
    ],
    "every chunk, null": lambda path: [
        *(event({"usage": None, "choices": [choice(path, word)]}) for word in ["one two ", "three ", "four five"]),
        finish(path, usage=None),
        own(told(9, 5)),
    ],
    "the choice": lambda path: [
        chunk(path, WORDS),
        event({"choices": [choice(path, "", finish_reason="stop", usage=told(9, 5))]}),
    ],
    "an object of its own": lambda path: [chunk(path, WORDS), finish(path, x_groq={"id": "g", "usage": told(9, 5)})],
    "an event with an id": lambda path: [
        chunk(path, WORDS),
        b"id: 7\nevent: message\n" + finish(path, usage=told(9, 5)),
    ],
}


def text_of(events: Sequence[Any]) -> str:
    choices = [each["choices"][0] for each in events if each != "[DONE]" and each["choices"]]
    return "".join(each.get("text") or each.get("delta", {}).get("content") or "" for each in choices)


@pytest.mark.parametrize("path", CHUNKED)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}, {"stream_options": None}])
def test_it_shows_no_usage_to_one_who_did_not_ask_for_it(
    model: Model, path: str, place: str, options: dict[str, Any]
) -> None:
    """Not from the provider, not from the cache, and not from what an Idempotency-Key replays."""
    model.script(stream(*PLACES[place](path)), Reply(500))
    headers, body = {"Idempotency-Key": model.name}, {"stream": True, "temperature": 0, **options}
    first, replayed = (model.ask(path, headers=headers, **body) for _ in range(2))
    cached = model.ask(path, **body)
    assert (replayed.headers.get("idempotency-replayed"), cached.headers["x-cache"]) == ("true", "HIT")
    for answer in (first, replayed, cached):
        assert answer.status == 200
        assert b"usage" not in answer.body
        events = answer.events()
        assert (text_of(events), events[-1]) == (WORDS, "[DONE]")
        assert events[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", CHUNKED)
@pytest.mark.parametrize("place", [place for place in PLACES if "odd" not in place])
def test_it_shows_the_usage_to_one_who_asked_for_it(model: Model, path: str, place: str) -> None:
    sent = PLACES[place](path)
    model.script(stream(*sent), Reply(500))
    body = {"stream": True, "temperature": 0, "stream_options": {"include_usage": True}}
    first, cached = (model.ask(path, **body) for _ in range(2))
    assert cached.headers["x-cache"] == "HIT"
    for answer in (first, cached):
        assert answer.body == b"".join([*sent, event("[DONE]")])


@pytest.mark.parametrize("path", CHUNKED)
def test_it_leaves_the_rest_of_a_chunk_as_it_was(model: Model, path: str) -> None:
    """Text in any script, halves of surrogate pairs, and what nobody knows."""
    odd = {"of_next_year": {"usage_tips": [1e-7, None, "usage"]}, "logprobs": None}
    piece = choice(path, 'naïve 東京 \U0001f600 \ud83d "usage": null', **odd)
    model.script(stream(event({"id": "c", "choices": [piece], "usage": told(9, 5)}), finish(path)))
    answer = model.ask(path, stream=True)
    assert answer.events()[0] == {"id": "c", "choices": [piece]}
