"""The fake provider's faults, pace and ledger over real sockets, and how other processes drive it."""

import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import openai
import pytest
from django.conf import settings

from inference.fake_provider import FAULTS, LEAK_MARKER, FakeUpstream
from inference.fake_provider.settings import HTTP_FAULTS
from inference.tests.wire import CHAT, HELLO, chat_body, connect, events, post


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.mark.parametrize("kind", HTTP_FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_it_fails_with_a_status(fake: FakeUpstream, kind: str, stream: bool) -> None:
    fake.set(retry_after=7)
    fake.fail_next(kind)
    answer = post(fake, CHAT, chat_body(stream=stream))
    assert answer.status == HTTP_FAULTS[kind].status
    assert answer.getheader("Retry-After") == ("7" if kind == "http_429" else None)
    assert LEAK_MARKER in json.load(answer)["error"]["message"]
    assert post(fake, CHAT, chat_body()).status == 200
    failed = ("complete", 4) if kind == "http_504" else ("failed", 0)
    assert [(call.outcome, call.completion_tokens) for call in fake.billed] == [failed, ("complete", 4)]


def test_it_refuses_connections_and_comes_back_on_its_port(fake: FakeUpstream) -> None:
    idle = connect(fake)
    idle.connect()
    fake.fail_next("refuse")
    with suppress(ConnectionResetError):
        assert idle.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        post(fake, CHAT, chat_body())
    fake.listen()
    assert post(fake, CHAT, chat_body()).status == 200


def test_it_resets_the_connection(fake: FakeUpstream) -> None:
    fake.fail_next("reset")
    with pytest.raises(ConnectionError):
        post(fake, CHAT, chat_body())
    assert [(call.outcome, call.prompt_tokens) for call in fake.billed] == [("failed", 0)]


@pytest.mark.parametrize(("stream", "billed"), [(False, 4), (True, 2)])
def test_it_cuts_an_answer_and_bills_what_it_made(fake: FakeUpstream, stream: bool, billed: int) -> None:
    fake.fail_next("cut")
    with pytest.raises(http.client.IncompleteRead):
        post(fake, CHAT, chat_body(stream=stream)).read()
    assert [(call.outcome, call.prompt_tokens, call.completion_tokens) for call in fake.billed] == [("cut", 2, billed)]


@pytest.mark.parametrize("kind", ["hang", "stall"])
@pytest.mark.parametrize("stream", [False, True])
def test_it_falls_silent_until_the_client_leaves(fake: FakeUpstream, kind: str, stream: bool) -> None:
    fake.fail_next(kind)
    with pytest.raises(TimeoutError):
        post(fake, CHAT, chat_body(stream=stream), timeout=0.2).read()
    fake.wait_idle()
    (call,) = fake.billed
    assert call.outcome == "client_left"
    assert call.completion_tokens == (0 if kind == "hang" else 2 if stream else 4)


@pytest.mark.parametrize("stream", [False, True])
def test_it_trickles(fake: FakeUpstream, stream: bool) -> None:
    fake.set(slow_interval_ms=5)
    fake.fail_next("slow")
    start = time.monotonic()
    assert b"hello" in post(fake, CHAT, chat_body(stream=stream)).read()
    assert time.monotonic() - start > 0.03
    assert fake.billed[0].completion_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_it_sends_broken_json(fake: FakeUpstream, stream: bool) -> None:
    fake.fail_next("broken_json")
    raw = post(fake, CHAT, chat_body(stream=stream)).read()
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(events(raw)[-1] if stream else raw)
    assert fake.billed[0].completion_tokens == 4


def test_it_sends_no_choices_no_usage_and_html(fake: FakeUpstream) -> None:
    for kind in ("empty_choices", "no_usage", "wrong_type"):
        fake.fail_next(kind)
    assert json.load(post(fake, CHAT, chat_body()))["choices"] == []
    assert "usage" not in json.load(post(fake, CHAT, chat_body()))
    page = post(fake, CHAT, chat_body())
    assert (page.status, page.getheader("Content-Type")) == (200, "text/html")
    assert [call.completion_tokens for call in fake.billed] == [0, 4, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_it_filters_content(fake: FakeUpstream, stream: bool) -> None:
    fake.fail_next("content_filter")
    raw = post(fake, CHAT, chat_body(stream=stream)).read()
    assert b'"finish_reason": "content_filter"' in raw
    assert fake.billed[0].completion_tokens == 2


def test_it_sends_an_error_in_mid_stream(fake: FakeUpstream) -> None:
    client = openai.OpenAI(base_url=fake.base_url, api_key="any", max_retries=0)
    fake.fail_next("error_event", times=2)
    with pytest.raises(openai.APIError, match=LEAK_MARKER):
        list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    received = post(fake, "/v1/responses", {"model": "m", "input": "hello there", "stream": True}).read()
    assert b"event: error\n" in received
    assert [call.completion_tokens for call in fake.billed] == [2, 2]


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
@pytest.mark.parametrize(
    ("fault", "stream", "billed"),
    [
        ("error_event", False, (0, 0)),
        ("error_first", False, (0, 0)),
        ("error_first", True, (0, 0)),
        ("error_usage", False, (2, 2)),
        ("error_usage", True, (2, 2)),
    ],
)
def test_it_bills_of_an_error_in_a_200_what_that_tells(
    fake: FakeUpstream, path: str, fault: str, stream: bool, billed: tuple[int, int]
) -> None:
    fake.fail_next(fault)
    body = {"model": "m", "input": "hello there", "stream": stream} if path != CHAT else chat_body(stream=stream)
    answer = post(fake, path, body)
    assert answer.status == 200
    told = answer.read()
    assert LEAK_MARKER in told.decode()
    assert (b"usage" in told.rpartition(b"data: ")[2]) is (fault == "error_usage")
    assert [(call.prompt_tokens, call.completion_tokens) for call in fake.billed] == [billed]


def test_it_fails_by_chance_the_same_way_for_the_same_seed() -> None:
    def outcomes() -> list[str | None]:
        with FakeUpstream(seed=5, faults={"http_500": 0.3, "http_429": 0.2}) as fake:
            for _ in range(40):
                post(fake, CHAT, chat_body()).read()
            return [call.fault for call in fake.billed]

    first = outcomes()
    assert first == outcomes()
    assert set(first) == {None, "http_500", "http_429"}


def test_it_knows_its_faults_and_settings_by_name(fake: FakeUpstream) -> None:
    with pytest.raises(ValueError, match="broken_json"):
        fake.fail_next("no such fault")
    with pytest.raises(ValueError, match="unknown settings: speed"):
        fake.set(speed=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fake.set(faults={"http_500": 2})
    assert all(FAULTS.values())


# Pace, leavers, many at once


def test_it_waits_as_it_is_told() -> None:
    with FakeUpstream(latency_ms=50, first_token_ms=50, chunk_interval_ms=10, tokens=5, cached_ratio=0.5) as fake:
        start = time.monotonic()
        answer = post(fake, CHAT, chat_body(stream=True))
        assert 0.04 < time.monotonic() - start < 0.5
        assert json.loads(events(answer.read())[-2])["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
        assert time.monotonic() - start > 0.15
        assert (fake.billed[0].cached_tokens, fake.billed[0].completion_tokens) == (1, 5)


def test_it_bills_a_leaver_what_was_made_until_then() -> None:
    with FakeUpstream(chunk_interval_ms=20, tokens=1000) as fake:
        answer = post(fake, CHAT, chat_body(stream=True), headers={"Connection": "close"})
        seen = answer.read(1500).count(b"content")
        assert fake.totals()["running"] == 1
        answer.close()
        fake.wait_idle(1)
        (call,) = fake.billed
        assert call.outcome == "client_left"
        assert seen - 2 <= call.completion_tokens <= seen + 10


def test_it_holds_a_thousand_streams() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with FakeUpstream(first_token_ms=300, chunk_interval_ms=20, tokens=5) as fake:
        body = json.dumps(chat_body(stream=True)).encode()
        head = b"POST %b HTTP/1.1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (CHAT.encode(), len(body))
        sockets = [socket.create_connection(("127.0.0.1", fake.port)) for _ in range(1000)]
        for each in sockets:
            each.sendall(head + body)
        for each in sockets:
            assert each.makefile("rb").read().endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
            each.close()
        assert fake.totals()["completion_tokens"] == 5000


def test_it_reads_pipelined_and_chunked_requests(fake: FakeUpstream) -> None:
    body = json.dumps(chat_body()).encode()
    sized = b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    chunked = b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", fake.port)) as raw:
        for byte in sized + sized + chunked % (CHAT.encode(), len(body), body):
            raw.send(bytes([byte]))
        assert raw.makefile("rb").read().count(b"HTTP/1.1 200 OK") == 3


def test_it_hangs_up_on_what_is_no_http(fake: FakeUpstream) -> None:
    with socket.create_connection(("127.0.0.1", fake.port)) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 400")


# Driven from another process


def control(fake: FakeUpstream, method: str, path: str, body: Any = None) -> Any:
    connection = connect(fake)
    connection.request(method, f"/_fake/{path}", json.dumps(body))
    return json.load(connection.getresponse())


def test_it_is_driven_over_http(fake: FakeUpstream) -> None:
    assert control(fake, "POST", "settings", {"tokens": 7, "fail_next": {"kind": "http_500"}}) == {"set": True}
    assert "unknown settings" in control(fake, "POST", "settings", {"nothing": 7})["error"]
    assert "refuse_ms" in control(fake, "POST", "settings", {"fail_next": {"kind": "refuse"}})["error"]
    assert [post(fake, CHAT, chat_body()).status for _ in range(2)] == [500, 200]
    ledger = control(fake, "GET", "ledger")
    assert ledger["totals"] == control(fake, "GET", "ledger?calls=0")["totals"] == fake.totals()
    assert [call["completion_tokens"] for call in ledger["calls"]] == [0, 7]
    assert [each["body"]["model"] for each in control(fake, "GET", "requests")] == ["m", "m"]
    control(fake, "POST", "reset")
    assert (fake.totals()["calls"], fake.requests, fake.settings.tokens) == (0, [], None)


def takes_connections(fake: FakeUpstream) -> bool:
    try:
        connect(fake, 1).connect()
    except ConnectionError:
        return False
    return True


def test_it_refuses_for_a_while(fake: FakeUpstream) -> None:
    control(fake, "POST", "settings", {"refuse_ms": 200})
    for state in (False, True):
        end = time.monotonic() + 5
        while takes_connections(fake) is not state and time.monotonic() < end:
            time.sleep(0.01)
        assert takes_connections(fake) is state
    assert post(fake, CHAT, chat_body()).status == 200


def test_it_runs_as_a_command_until_it_is_told_to_end() -> None:
    command = [sys.executable, "manage.py", "fake_upstream", "--tokens", "3", "--fault", "http_503:1"]
    with subprocess.Popen(command, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)/v1\n", process.stdout.readline())
        assert found is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=5)
        connection.request("POST", CHAT, json.dumps(chat_body()))
        assert connection.getresponse().status == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
