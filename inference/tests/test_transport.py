"""The connections to providers: shared, given back, closed when they should be, and what their failures mean."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from http.client import BadStatusLine, UnknownProtocol
from typing import Any, BinaryIO

import pytest
from django.conf import LazySettings

from core.errors import UpstreamFailed, UpstreamTimeout
from inference.catalog import Route
from inference.fake_provider import FakeUpstream
from inference.prices import Rates
from inference.protocols.chat import chat_protocol
from inference.tests.samples import odd_provider, unanswered
from inference.tests.wire import HELLO
from inference.upstream.client import Upstream, UpstreamStream
from inference.upstream.errors import BROKEN, FAILED, TIMED_OUT, UNCONNECTED, UNREACHED, AttemptFailed, Verdict
from inference.upstream.transport import Abort, PooledTransport
from launch.environment import free_port
from tests.processes import wait_until

CHAT = "/chat/completions"
PAYLOAD: dict[str, Any] = {"messages": HELLO}
STREAM: dict[str, Any] = {**PAYLOAD, "stream": True, "stream_options": {"include_usage": True}}
ANSWER = "You said: hello there"


@pytest.fixture
def provider(fake: FakeUpstream) -> Iterator[FakeUpstream]:
    """Return the fake provider without a past."""
    fake.reset()
    yield fake
    fake.reset()


@pytest.fixture
def client() -> Upstream:
    """Return a client without open connections."""
    return Upstream()


def route(base_url: str) -> Route:
    """Make a deployment at an address."""
    return Route(1, "p/m", "p", base_url, "", (), "m", "max_tokens", 0, 1, Rates())


def call(client: Upstream, provider: FakeUpstream, seconds: float = 5) -> dict[str, Any]:
    """Make a plain call."""
    return client.call(route(provider.base_url), CHAT, PAYLOAD, seconds=seconds)


def open_stream(
    client: Upstream, provider: FakeUpstream, *, seconds: float = 5, idle: float = 5, abort: Abort | None = None
) -> UpstreamStream:
    """Open a stream."""
    where = route(provider.base_url)
    opens = chat_protocol.opens_stream
    return client.open_stream(where, CHAT, STREAM, seconds=seconds, opens=opens, idle_seconds=idle, abort=abort)


def connections(provider: FakeUpstream) -> int:
    """Count the connections that are open at the provider."""
    return len(provider.connections)


def test_it_answers(client: Upstream, provider: FakeUpstream) -> None:
    assert call(client, provider)["choices"][0]["message"]["content"] == ANSWER
    (received,) = provider.requests
    assert received.body == {**PAYLOAD, "model": "m"}


def test_it_asks_for_streams_without_compression(client: Upstream, provider: FakeUpstream) -> None:
    open_stream(client, provider).close()
    (received,) = provider.requests
    assert (received.headers["accept"], received.headers["accept-encoding"]) == ("text/event-stream", "identity")


def test_it_keeps_a_connection_for_the_next_call(client: Upstream, provider: FakeUpstream) -> None:
    before = connections(provider)
    for _ in range(3):
        call(client, provider)
        stream = open_stream(client, provider)
        assert b"[DONE]" in stream.first + b"".join(stream)
        stream.close()
    assert connections(provider) == before + 1


def test_it_connects_anew_where_the_provider_has_closed(client: Upstream, provider: FakeUpstream) -> None:
    call(client, provider)
    provider.refuse()
    provider.listen()
    assert call(client, provider)


def test_it_keeps_no_more_idle_connections_than_it_may(
    client: Upstream, provider: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.upstream.transport.KEPT_CONNECTIONS", 2)
    before = connections(provider)
    streams = [open_stream(client, provider) for _ in range(4)]
    assert connections(provider) == before + 4
    for stream in streams:
        list(stream)
        stream.close()
    wait_until(lambda: connections(provider) == before + 2, "the others to be closed", 2)


def test_it_keeps_connections_to_the_providers_that_it_asked_last(
    client: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.upstream.transport.KEPT_PROVIDERS", 1)
    with FakeUpstream() as one, FakeUpstream() as other:
        call(client, one)
        call(client, other)
        wait_until(lambda: connections(one) == 0, "the first to be closed", 2)
        assert connections(other) == 1


def test_it_sends_no_header_that_holds_another(client: Upstream, provider: FakeUpstream) -> None:
    with pytest.raises(AttemptFailed):
        client.call(
            replace(route(provider.base_url), extra_headers=(("x-a", "b\r\nx-c: d"),)), CHAT, PAYLOAD, seconds=5
        )
    assert provider.requests == []


def read_request(file: BinaryIO) -> bool:
    """Read a request with its body; False if there is none any more."""
    if not file.readline():
        return False
    headers = dict(line.lower().split(b": ", 1) for line in iter(file.readline, b"\r\n"))
    return bool(file.read(int(headers[b"content-length"])))


BODY = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


@contextmanager
def forgetful(*ends: bytes | None, answer: bytes = WHOLE) -> Iterator[tuple[str, list[int]]]:
    """Run a provider that answers the first request of each connection, and yield its URL and what it counted.

    The next request there is read, and the connection ended with these bytes; None: it is reset.
    """
    served: list[int] = []
    endings = iter(ends)

    def serve(connection: socket.socket, number: int) -> None:
        with suppress(ConnectionError), connection, ExitStack() as stack:
            requests = stack.enter_context(connection.makefile("rb"))
            read_request(requests)
            served.append(number)
            connection.sendall(answer)
            if not read_request(requests):
                return
            served.append(number)
            ending = next(endings)
            if ending is None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.sendall(ending)

    def accept(listener: socket.socket) -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=serve, args=(connection, number), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", served
        finally:
            listener.shutdown(socket.SHUT_RDWR)


SIZED, CHUNKED = b"200 OK\r\nContent-Length: 2", b"200 OK\r\nTransfer-Encoding: chunked"
CHUNKS = b"2\r\nhi\r\n0\r\n\r\n"
CONTINUE, HINTS = b"100 Continue\r\n\r\nHTTP/1.1 ", b"103 Early Hints\r\nContent-Length: 1\r\n\r\nHTTP/1.1 "


def ask(url: str, transport: PooledTransport) -> bytes:
    """Send a request and return the body of its answer."""
    return transport.open("POST", url, {}, b"{}", connect=5, read=5).read(1000)


@pytest.mark.parametrize(
    ("head", "sent", "is_kept"),
    [
        (SIZED, b"hi", True),
        (CHUNKED, CHUNKS, True),
        (b"200 OK\r\nX-A: b\r\n Content-Length: 1\r\n\tConnection: close" + SIZED[6:], b"hi", True),
        (SIZED + b"\r\nContent-Length: 2", b"hi", False),
        (SIZED + b"\r\nContent-Length: 3", b"hi", False),
        (SIZED + b"\r\nTransfer-Encoding: identity", b"hi", False),
        (SIZED + b"\r\nTransfer-Encoding: gzip, chunked", b"hi", False),
        (CHUNKED + b"\r\nContent-Length: 2", CHUNKS, False),
        (CHUNKED + b"\r\nTransfer-Encoding: gzip", CHUNKS, False),
        (SIZED + b"\r\nConnection: keep-alive\r\nConnection: close", b"hi", False),
        (CONTINUE + b"102 Processing\r\n\r\nHTTP/1.1 " + HINTS + SIZED, b"hi", True),
        (CONTINUE * 10 + SIZED, b"hi", True),
        (b"204 No Content", b"", True),
        (b"204 No Content\r\nTransfer-Encoding: chunked", b"", False),
        (b"304 Not Modified\r\nTransfer-Encoding: chunked", b"", False),
        (b"304 Not Modified\r\nContent-Length: 2", b"", True),
    ],
)
def test_it_keeps_a_connection_where_the_end_of_an_answer_is_certain(head: bytes, sent: bytes, is_kept: bool) -> None:
    transport = PooledTransport()
    with forgetful(b"", answer=b"HTTP/1.1 " + head + b"\r\n\r\n" + sent) as (url, served):
        assert [ask(url, transport) for _ in range(2)] == [b"hi" if sent else b""] * 2
    assert served == ([1, 1, 2] if is_kept else [1, 2])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", BadStatusLine),
        (b"HTTP/1.1 199 Odd\r\n\r\n" + WHOLE, BadStatusLine),
        (b"HTTP/1.1 " + CONTINUE * 11 + SIZED + b"\r\n\r\nhi", BadStatusLine),
        (WHOLE.replace(b"HTTP/1.1", b"HTTP/2"), UnknownProtocol),
    ],
)
def test_it_takes_no_other_answer_for_one_of_http_1(answer: bytes, error: type[Exception]) -> None:
    with forgetful(answer=answer) as (url, served), pytest.raises(error):
        ask(url, PooledTransport())
    assert served == [1]


@pytest.mark.parametrize("ending", [b"", None])
def test_it_sends_once_more_where_a_kept_connection_had_ended(client: Upstream, ending: bytes | None) -> None:
    with forgetful(ending) as (url, served):
        for _ in range(2):
            assert client.call(route(url), CHAT, PAYLOAD, seconds=5)
    assert served == [1, 1, 2]


def test_it_does_not_send_again_what_was_answered_in_part(client: Upstream) -> None:
    with forgetful(b"HTTP/1.1 2") as (url, served):
        assert client.call(route(url), CHAT, PAYLOAD, seconds=5)
        with pytest.raises(AttemptFailed) as failed:
            client.call(route(url), CHAT, PAYLOAD, seconds=5)
    assert failed.value.verdict == BROKEN
    assert served == [1, 1]


def test_it_does_not_send_again_what_a_provider_was_given_time_for(
    client: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be billed: sent again, the provider would bill it twice and the caller once."""
    monkeypatch.setattr("inference.upstream.transport.ENDED_BEFORE_SECONDS", 0.0)
    with forgetful(b"") as (url, served):
        assert client.call(route(url), CHAT, PAYLOAD, seconds=5)
        with pytest.raises(AttemptFailed) as failed:
            client.call(route(url), CHAT, PAYLOAD, seconds=5)
    assert failed.value.verdict == BROKEN
    assert served == [1, 1]


def test_it_takes_a_new_connection_for_what_it_sends_once_more(client: Upstream) -> None:
    with forgetful(b"", b"") as (url, served):
        together = threading.Barrier(2)

        def call_together() -> None:
            together.wait(5)
            client.call(route(url), CHAT, PAYLOAD, seconds=5)

        threads = [threading.Thread(target=call_together) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert client.call(route(url), CHAT, PAYLOAD, seconds=5)
    assert served[-1] == max(served)


def test_it_sends_no_more_of_what_nobody_wants(client: Upstream) -> None:
    abort = Abort()
    with forgetful(b"") as (url, served):
        assert client.call(route(url), CHAT, PAYLOAD, seconds=5)
        abort.shut_down = lambda: None  # type: ignore[method-assign]  # the other side ends it first
        abort.watch = lambda connection: abort.set()  # type: ignore[method-assign]
        with pytest.raises(AttemptFailed) as failed:
            client.open_stream(route(url), CHAT, STREAM, seconds=5, opens=chat_protocol.opens_stream, abort=abort)
    assert failed.value.verdict == BROKEN
    assert served == [1, 1]


def test_it_sends_nothing_to_where_a_name_must_not_lead(client: Upstream, provider: FakeUpstream) -> None:
    guarded = replace(route(provider.base_url.replace("127.0.0.1", "localhost")), is_guarded=True)
    with pytest.raises(AttemptFailed) as failed:
        client.call(guarded, CHAT, PAYLOAD, seconds=5)
    assert failed.value.verdict == UNREACHED
    with pytest.raises(AttemptFailed):
        client.open_stream(guarded, CHAT, STREAM, seconds=5, opens=chat_protocol.opens_stream)
    assert client.list_models(guarded, seconds=5) is not None
    assert provider.requests == []
    assert client.call(replace(guarded, is_guarded=False), CHAT, PAYLOAD, seconds=5)
    with pytest.raises(AttemptFailed):
        client.call(guarded, CHAT, PAYLOAD, seconds=5)


def test_it_connects_where_a_guarded_name_may_lead(
    client: Upstream, provider: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.upstream.transport.is_forbidden_address", lambda address: address != "127.0.0.1")
    assert client.call(replace(route(provider.base_url), is_guarded=True), CHAT, PAYLOAD, seconds=5)


EVENTS = {"Content-Type": "text/event-stream"}
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}}]}\n\n'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b": processing\n\n" * 3,
        b"event: ping\n\n",
        b"data: [DONE]\n\n",
        b"<html>\n<body>secret</body>\n\n" + CHUNK,
        b": processing\n\nBad gateway\n\n" + CHUNK,
        b"data: not JSON\n\n" + CHUNK,
        b"data: [1]\n\n" + CHUNK,
        b'{"choices": [{}]}\n\n' + CHUNK,
    ],
)
def test_it_takes_what_is_no_event_of_the_endpoint_for_no_answer(client: Upstream, body: bytes) -> None:
    with odd_provider(body, headers=EVENTS) as url, pytest.raises(AttemptFailed) as failed:
        client.open_stream(route(url), CHAT, STREAM, seconds=5, opens=chat_protocol.opens_stream)
    assert failed.value.verdict == BROKEN


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"object": "error", "message": "secret"}\n\n' + CHUNK,
        b'data: {"choices": [], "error": {"message": "secret"}}\n\n',
        b"event: error\ndata: secret\n\n",
        b'{"error": {"message": "secret"}}\n\n',
    ],
)
def test_it_knows_an_error_in_a_first_event(client: Upstream, body: bytes) -> None:
    with odd_provider(body, headers=EVENTS) as url, pytest.raises(AttemptFailed) as failed:
        client.open_stream(route(url), CHAT, STREAM, seconds=5, opens=chat_protocol.opens_stream)
    assert (failed.value.verdict, failed.value.usage) == (FAILED, None)
    assert "secret" not in failed.value.cause


@pytest.mark.parametrize("before", [b"", b": processing\n\n", b"\n\n: a\r\n\r\nid: 1\n\n", b"event: ping\n\n:\n\n"])
@pytest.mark.parametrize("body", [CHUNK, CHUNK.rstrip(), CHUNK.replace(b"\n", b"\r\n"), CHUNK * 2])
def test_it_begins_a_stream_with_its_first_event(client: Upstream, before: bytes, body: bytes) -> None:
    with odd_provider(before + body, headers=EVENTS) as url:
        stream = client.open_stream(route(url), CHAT, STREAM, seconds=5, opens=chat_protocol.opens_stream)
        assert stream.first + b"".join(stream) == body.replace(b"\r\n", b"\n")
        stream.close()


def test_it_hands_over_each_piece_before_the_next_is_sent(client: Upstream) -> None:
    pieces, seen = [b'data: {"choices": [%d]}\n\n' % number for number in range(5)], threading.Semaphore(0)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as requests:
            read_request(requests)
            head = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked"
            connection.sendall(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % head)
            for piece in pieces:
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                if not seen.acquire(timeout=10):
                    return
            connection.sendall(b"0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        stream = client.open_stream(route(url), CHAT, STREAM, seconds=10, opens=chat_protocol.opens_stream)
        came = [stream.first]
        seen.release()
        for piece in stream:
            came.append(piece)
            seen.release()
    assert [piece for piece in came if piece] == pieces


def test_it_closes_the_connection_of_a_stream_that_is_not_read_on(client: Upstream, provider: FakeUpstream) -> None:
    provider.set(chunk_interval_ms=20, tokens=500)
    before = connections(provider)
    stream = open_stream(client, provider)
    stream.close()
    wait_until(lambda: connections(provider) == before, "the connection to be closed", 2)
    wait_until(lambda: provider.billed[0].outcome == "client_left", "the provider to notice", 5)
    assert len(provider.billed) == 1


def test_it_ends_a_read_that_is_under_way_when_another_closes_the_stream(
    client: Upstream, provider: FakeUpstream
) -> None:
    provider.fail_next("stall")
    stream = open_stream(client, provider)
    threading.Timer(0.1, stream.close).start()
    began = time.monotonic()
    assert isinstance(list(stream), list)
    assert time.monotonic() - began < 4  # the read itself may take 5
    stream.close()
    assert call(client, provider)


def test_it_breaks_a_request_off_that_waits_for_its_answer(client: Upstream, provider: FakeUpstream) -> None:
    provider.fail_next("hang")
    abort = Abort()
    threading.Timer(0.1, abort.set).start()
    began = time.monotonic()
    with pytest.raises(AttemptFailed) as failed:
        open_stream(client, provider, abort=abort)
    assert time.monotonic() - began < 4  # the read itself may take 5
    assert failed.value.verdict.may_be_billed
    wait_until(lambda: provider.billed[0].outcome == "client_left", "the provider to notice", 2)


def test_it_sends_nothing_that_was_broken_off_before(client: Upstream, provider: FakeUpstream) -> None:
    abort = Abort()
    abort.set()
    with pytest.raises(AttemptFailed) as failed:
        open_stream(client, provider, abort=abort)
    assert not failed.value.verdict.may_be_billed
    assert provider.requests == []


def test_it_may_ask_again_after_an_answer_that_was_none(client: Upstream, provider: FakeUpstream) -> None:
    provider.fail_next("wrong_type")
    abort = Abort()
    with pytest.raises(AttemptFailed):
        open_stream(client, provider, abort=abort)
    assert open_stream(client, provider, abort=abort).first


def test_it_leaves_a_connection_alone_that_went_back_to_its_pool(client: Upstream, provider: FakeUpstream) -> None:
    abort = Abort()
    stream = open_stream(client, provider, abort=abort)
    list(stream)
    stream.close()
    abort.set()
    before = connections(provider)
    assert call(client, provider)
    assert connections(provider) == before


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("reset", BROKEN),
        ("cut", BROKEN),
        ("broken_json", BROKEN),
        ("wrong_type", BROKEN),
        ("hang", TIMED_OUT),
        ("stall", TIMED_OUT),
    ],
)
def test_it_knows_what_a_failure_means(client: Upstream, provider: FakeUpstream, fault: str, verdict: Verdict) -> None:
    provider.fail_next(fault)
    with pytest.raises(AttemptFailed) as failed:
        call(client, provider, seconds=0.3)
    assert failed.value.verdict == verdict
    assert isinstance(failed.value.error, UpstreamTimeout if verdict == TIMED_OUT else UpstreamFailed)


@pytest.mark.parametrize(("fault", "verdict"), [("reset", BROKEN), ("wrong_type", BROKEN), ("hang", TIMED_OUT)])
def test_it_knows_why_a_stream_did_not_begin(
    client: Upstream, provider: FakeUpstream, fault: str, verdict: Verdict
) -> None:
    provider.fail_next(fault)
    with pytest.raises(AttemptFailed) as failed:
        open_stream(client, provider, seconds=0.3)
    assert failed.value.verdict == verdict


@pytest.mark.parametrize(("fault", "error"), [("cut", UpstreamFailed), ("stall", UpstreamTimeout)])
def test_it_tells_of_a_stream_that_breaks_off(
    client: Upstream, provider: FakeUpstream, fault: str, error: type[Exception]
) -> None:
    provider.fail_next(fault)
    stream = open_stream(client, provider, idle=0.3)
    with pytest.raises(AttemptFailed) as failed:
        list(stream)
    assert isinstance(failed.value.error, error)
    stream.close()


def test_it_says_that_nobody_was_reached(client: Upstream) -> None:
    with pytest.raises(AttemptFailed) as failed:
        client.call(route(f"http://127.0.0.1:{free_port()}/v1"), CHAT, PAYLOAD, seconds=2)
    assert failed.value.verdict == UNREACHED


def test_it_waits_for_a_connection_no_longer_than_the_setting_says(client: Upstream, settings: LazySettings) -> None:
    settings.UPSTREAM_CONNECT_TIMEOUT = 0.2
    began = time.monotonic()
    with unanswered() as port, pytest.raises(AttemptFailed) as failed:
        client.call(route(f"http://127.0.0.1:{port}/v1"), CHAT, PAYLOAD, seconds=30)
    assert time.monotonic() - began < 2
    assert failed.value.verdict == UNCONNECTED
    assert isinstance(failed.value.error, UpstreamTimeout)


def test_it_serves_many_at_once_over_the_same_pool(client: Upstream, provider: FakeUpstream) -> None:
    provider.set(latency_ms=20)
    answered: list[bool] = []
    threads = [threading.Thread(target=lambda: answered.append(bool(call(client, provider)))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answered == [True] * 40
