"""The connections to providers: shared, given back, closed when they should be, and what their failures mean."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest
from django.conf import LazySettings

from accounts.exceptions import UpstreamFailed, UpstreamTimeout
from inference.catalog import Rates, Route
from inference.tests.wire import HELLO
from inference.upstream.attempts import AttemptFailed, Verdict
from inference.upstream.client import Client, UpstreamStream
from inference.upstream.errors import BROKEN, TIMED_OUT, UNREACHED
from inference.upstream.fake import FakeUpstream
from inference.upstream.transport import Abort
from launch.system import free_port
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
def client() -> Client:
    """Return a client without open connections."""
    return Client()


def route(base_url: str) -> Route:
    """Make a deployment at an address."""
    return Route(1, "p/m", "p", base_url, "", (), "m", "max_tokens", 0, 1, Rates())


def call(client: Client, provider: FakeUpstream, seconds: float = 5) -> dict[str, Any]:
    """Make a plain call."""
    return client.call(route(provider.base_url), CHAT, PAYLOAD, seconds=seconds)


def open_stream(
    client: Client, provider: FakeUpstream, *, seconds: float = 5, idle: float = 5, abort: Abort | None = None
) -> UpstreamStream:
    """Open a stream."""
    where = route(provider.base_url)
    return client.open_stream(where, CHAT, STREAM, seconds=seconds, idle_seconds=idle, abort=abort)


def connections(provider: FakeUpstream) -> int:
    """Count the connections that are open at the provider."""
    return len(provider._connections)


@contextmanager
def unanswered() -> Iterator[int]:
    """Hold a port whose queue of connections is full, so that another one gets no answer at all."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def test_it_answers(client: Client, provider: FakeUpstream) -> None:
    assert call(client, provider)["choices"][0]["message"]["content"] == ANSWER
    (received,) = provider.requests
    assert received.body == {**PAYLOAD, "model": "m"}


def test_it_asks_for_streams_without_compression(client: Client, provider: FakeUpstream) -> None:
    open_stream(client, provider).close()
    (received,) = provider.requests
    assert (received.headers["accept"], received.headers["accept-encoding"]) == ("text/event-stream", "identity")


def test_it_keeps_a_connection_for_the_next_call(client: Client, provider: FakeUpstream) -> None:
    before = connections(provider)
    for _ in range(3):
        call(client, provider)
        stream = open_stream(client, provider)
        assert b"[DONE]" in stream.first + b"".join(stream)
        stream.close()
    assert connections(provider) == before + 1


def test_it_connects_anew_where_the_provider_has_closed(client: Client, provider: FakeUpstream) -> None:
    call(client, provider)
    provider.refuse()
    provider.listen()
    assert call(client, provider)


def test_it_hands_over_each_piece_as_it_comes(client: Client, provider: FakeUpstream) -> None:
    provider.set(chunk_interval_ms=50)
    stream = open_stream(client, provider)
    came = [time.monotonic(), *(time.monotonic() for _ in stream)]
    assert len(came) == 8  # the role, four words, the reason, the usage, the end
    assert all(later - earlier > 0.03 for earlier, later in pairwise(came[:-1]))


def test_it_closes_the_connection_of_a_stream_that_is_not_read_on(client: Client, provider: FakeUpstream) -> None:
    provider.set(chunk_interval_ms=20, tokens=500)
    before = connections(provider)
    stream = open_stream(client, provider)
    stream.close()
    wait_until(lambda: connections(provider) == before, "the connection to be closed", 2)
    assert provider.billed[0].outcome == "client_left"


def test_it_ends_a_read_that_is_under_way_when_another_closes_the_stream(
    client: Client, provider: FakeUpstream
) -> None:
    provider.fail_next("stall")
    stream = open_stream(client, provider)
    threading.Timer(0.1, stream.close).start()
    began = time.monotonic()
    assert isinstance(list(stream), list)
    assert time.monotonic() - began < 1
    stream.close()
    assert call(client, provider)


def test_it_breaks_a_request_off_that_waits_for_its_answer(client: Client, provider: FakeUpstream) -> None:
    provider.fail_next("hang")
    abort = Abort()
    threading.Timer(0.1, abort.set).start()
    began = time.monotonic()
    with pytest.raises(AttemptFailed) as failed:
        open_stream(client, provider, abort=abort)
    assert time.monotonic() - began < 1
    assert failed.value.verdict.may_be_billed
    wait_until(lambda: provider.billed[0].outcome == "client_left", "the provider to notice", 2)


def test_it_sends_nothing_that_was_broken_off_before(client: Client, provider: FakeUpstream) -> None:
    abort = Abort()
    abort.set()
    with pytest.raises(AttemptFailed) as failed:
        open_stream(client, provider, abort=abort)
    assert not failed.value.verdict.may_be_billed
    assert provider.requests == []


def test_it_may_ask_again_after_an_answer_that_was_none(client: Client, provider: FakeUpstream) -> None:
    provider.fail_next("wrong_type")
    abort = Abort()
    with pytest.raises(AttemptFailed):
        open_stream(client, provider, abort=abort)
    assert open_stream(client, provider, abort=abort).first


def test_it_leaves_a_connection_alone_that_went_back_to_its_pool(client: Client, provider: FakeUpstream) -> None:
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
def test_it_knows_what_a_failure_means(client: Client, provider: FakeUpstream, fault: str, verdict: Verdict) -> None:
    provider.fail_next(fault)
    with pytest.raises(AttemptFailed) as failed:
        call(client, provider, seconds=0.3)
    assert failed.value.verdict == verdict
    assert isinstance(failed.value.error, UpstreamTimeout if verdict == TIMED_OUT else UpstreamFailed)


@pytest.mark.parametrize(("fault", "verdict"), [("reset", BROKEN), ("wrong_type", BROKEN), ("hang", TIMED_OUT)])
def test_it_knows_why_a_stream_did_not_begin(
    client: Client, provider: FakeUpstream, fault: str, verdict: Verdict
) -> None:
    provider.fail_next(fault)
    with pytest.raises(AttemptFailed) as failed:
        open_stream(client, provider, seconds=0.3)
    assert failed.value.verdict == verdict


@pytest.mark.parametrize(("fault", "error"), [("cut", UpstreamFailed), ("stall", UpstreamTimeout)])
def test_it_tells_of_a_stream_that_breaks_off(
    client: Client, provider: FakeUpstream, fault: str, error: type[Exception]
) -> None:
    provider.fail_next(fault)
    stream = open_stream(client, provider, idle=0.3)
    with pytest.raises(AttemptFailed) as failed:
        list(stream)
    assert isinstance(failed.value.error, error)
    stream.close()


def test_it_says_that_nobody_was_reached(client: Client) -> None:
    with pytest.raises(AttemptFailed) as failed:
        client.call(route(f"http://127.0.0.1:{free_port()}/v1"), CHAT, PAYLOAD, seconds=2)
    assert failed.value.verdict == UNREACHED


def test_it_waits_for_a_connection_no_longer_than_the_setting_says(client: Client, settings: LazySettings) -> None:
    settings.UPSTREAM_CONNECT_TIMEOUT = 0.2
    began = time.monotonic()
    with unanswered() as port, pytest.raises(AttemptFailed) as failed:
        client.call(route(f"http://127.0.0.1:{port}/v1"), CHAT, PAYLOAD, seconds=30)
    assert time.monotonic() - began < 2
    assert failed.value.verdict == UNREACHED
    assert isinstance(failed.value.error, UpstreamTimeout)


def test_it_serves_many_at_once_over_the_same_pool(client: Client, provider: FakeUpstream) -> None:
    provider.set(latency_ms=20)
    answered: list[bool] = []
    threads = [threading.Thread(target=lambda: answered.append(bool(call(client, provider)))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answered == [True] * 40
