"""From bytes to a JSON object; test_chat holds what callers see of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from django.conf import LazySettings
from django.test import RequestFactory
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_framework.request import Request as ApiRequest

from core.errors import BodyTooLarge, MalformedBody
from inference.api import parsing
from inference.api.parsing import is_chunked, most_bytes, parse_object, read_body

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SURROGATES = st.text(st.sampled_from("a\ud800\udbff\udc00\udfff"), max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(TEXTS, JSON_VALUES, max_size=4), st.booleans())
def test_it_reads_any_json_object(value: dict[str, Any], ascii_only: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200))
def test_it_refuses_any_other_bytes_with_one_error(body: bytes) -> None:
    with suppress(MalformedBody):
        assert isinstance(parse_object(body), dict)


def test_it_reads_a_hundred_levels_and_no_more() -> None:
    for shape, levels in (('{"a": %s}', 1), ('{"a": [%s]}', 2), ('{"a": [1, {"b": 2}, %s]}', 2)):
        rest = 100 - levels
        assert parse_object((shape % ("[" * rest + "]" * rest)).encode())
        with pytest.raises(MalformedBody, match="deeper than 100"):
            parse_object((shape % ("[" * (rest + 1) + "]" * (rest + 1))).encode())


def test_it_reads_wide_bodies_however_many_levels_they_open() -> None:
    value = {"a": [[{"b": [number]}] for number in range(500)]}
    assert parse_object(json.dumps(value).encode()) == value


TRICKY = 'a "quoted" \\ {[:,]} \\" \\\\'


def counted(value: Any) -> tuple[int, int, int]:
    """Count objects and arrays, members, and the values that follow others, all the way down."""
    if not isinstance(value, dict | list):
        return 0, 0, 0
    inner = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    own = (1, len(value) if isinstance(value, dict) else 0, max(0, len(value) - 1))
    return tuple(map(sum, zip(own, *inner, strict=True)))  # type: ignore[return-value]  # three of them


@given(st.dictionaries(TEXTS | st.just(TRICKY), JSON_VALUES | st.just([TRICKY, {TRICKY: TRICKY}]), max_size=4))
def test_it_counts_parts_outside_of_texts_alone(value: dict[str, Any]) -> None:
    for ascii_only in (True, False):
        left = parsing._without_texts(json.dumps(value, ensure_ascii=ascii_only).encode())
        assert (left.count(b"{") + left.count(b"["), left.count(b":"), left.count(b",")) == counted(value)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda number: {"messages": [{}] * (number - 2)}, parsing.MOST_PARTS),
        (lambda number: {f"name {each}": 1 for each in range(number)}, parsing.MOST_MEMBERS),
        (lambda number: {"input": [1] * (number + 1)}, parsing.MOST_VALUES),
    ],
)
def test_it_takes_bodies_of_many_parts_and_no_more(make: Callable[[int], dict[str, Any]], most: int) -> None:
    assert parse_object(json.dumps(make(most)).encode()) == make(most)
    with pytest.raises(MalformedBody, match="too many parts"):
        parse_object(json.dumps(make(most + 1)).encode())


def test_it_takes_long_texts_whatever_they_are_made_of() -> None:
    value = {"messages": [{"role": "user", "content": json.dumps([{"a": "b", "c": [1, 2]}] * 100_000)}]}
    assert parse_object(json.dumps(value).encode()) == value


def test_it_refuses_a_body_of_nothing_but_quotes() -> None:
    with pytest.raises(MalformedBody):
        parse_object(b'{"a":[' + b'"",' * 2_000_000 + b'""]}')


@settings(max_examples=40)
@given(
    st.recursive(
        SURROGATES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SURROGATES, inner, max_size=3),
        max_leaves=5,
    )
)
def test_it_lets_no_lone_surrogate_through(value: Any) -> None:
    body = json.dumps({"value": value}).encode()
    meant = json.loads(body)  # pairs that the text spells one by one are characters
    try:
        json.dumps(meant, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        with pytest.raises(MalformedBody):
            parse_object(body)
    else:
        assert parse_object(body) == meant


@pytest.mark.parametrize("path", ["/chat", "/summarize", "/chat/"])
def test_it_reads_bodies_up_to_the_limit_of_their_path(settings: LazySettings, path: str) -> None:
    settings.MAX_BODY_BYTES, settings.MAX_V1_BODY_BYTES = 10, 20
    assert _read(path, b"x" * 10) == b"x" * 10
    assert _read("/v1/chat/completions", b"x" * 20) == b"x" * 20
    for where, size in ((path, 11), ("/v1/chat/completions", 21)):
        with pytest.raises(BodyTooLarge):
            _read(where, b"x" * size)


def test_it_reads_no_more_of_a_chunked_body_than_it_may(settings: LazySettings) -> None:
    settings.MAX_BODY_BYTES = 10
    stream = BytesIO(b"x" * 1000)
    with pytest.raises(BodyTooLarge):
        _read("/chat", None, {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": stream})
    assert stream.tell() == 11


def test_it_takes_a_body_that_breaks_off_for_malformed() -> None:
    class Broken(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError

    with pytest.raises(MalformedBody):
        _read("/chat", None, {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": Broken()})


@pytest.mark.parametrize(
    "sent",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}0\r\n\r\n",
        b"2;=\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nbad trailer\r\n\r\n",
        b"2\r\n{}\r\n0\r\n",
        b"20\r\n{}",
    ],
)
def test_it_takes_a_body_of_malformed_chunks_for_malformed(sent: bytes) -> None:
    """Each is read by the server's own reader, which raises what is none of Python's."""
    request = Request(
        Config(), IterUnreader([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + sent]), ("", 0)
    )
    with pytest.raises(MalformedBody):
        _read("/chat", None, {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": request.body})


@pytest.mark.parametrize(
    ("encoding", "chunked"), [("chunked", True), ("Chunked", True), ("gzip, chunked", True), ("identity", False)]
)
def test_it_knows_chunked_bodies(encoding: str, chunked: bool) -> None:
    assert is_chunked(RequestFactory().post("/chat", HTTP_TRANSFER_ENCODING=encoding)) is chunked


def _read(path: str, body: bytes | None, environ: dict[str, Any] | None = None) -> bytes:
    make: Callable[..., Any] = RequestFactory().generic
    made = make("POST", path, body or b"", **(environ or {}))
    return read_body(made, most_bytes(ApiRequest(made)))


@pytest.mark.parametrize(("size", "turns"), [(1_000, 0), (2_000_000, 4)])
def test_it_gives_others_their_turn_between_the_steps_of_a_large_body(
    size: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    own, sleep = threading.get_ident(), time.sleep

    def note(seconds: float) -> None:
        if threading.get_ident() == own:
            taken.append(seconds)
        else:  # a thread that an earlier test left would never wait again
            sleep(seconds)

    monkeypatch.setattr("core.background.time.sleep", note)
    parse_object(json.dumps({"text": "x" * size}).encode())
    assert len(taken) == turns
    assert all(seconds > 0 for seconds in taken), "with 0 gevent does not look for new requests"
