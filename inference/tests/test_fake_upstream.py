"""The fake provider over real sockets: its answers, faults, pace and ledger, and how other processes drive it.

tests/test_openai_clients.py proves its formats with the official client, through the platform.
"""

import base64
import http.client
import json
import re
import resource
import signal
import socket
import struct
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

RESPONSES = "/v1/responses"


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.fixture
def client(fake: FakeUpstream) -> openai.OpenAI:
    return openai.OpenAI(base_url=fake.base_url, api_key="sk-any", max_retries=0, timeout=5)


# Answers


def test_it_answers_a_chat_with_the_tokens_that_it_bills(fake: FakeUpstream, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO)
    (call,) = fake.billed
    assert (call.id, call.prompt_tokens, call.completion_tokens, call.outcome) == (answer.id, 2, 4, "complete")
    body = chat_body(stream=True)
    del body["stream_options"]
    received = events(post(fake, CHAT, body).read())
    assert received[-1] == "[DONE]"
    assert not any("usage" in event for event in received)


def test_it_keeps_to_max_tokens_n_stop_and_logprobs(client: openai.OpenAI) -> None:
    short = client.chat.completions.create(model="m", messages=HELLO, max_completion_tokens=2, n=3, logprobs=True)
    assert [(each.message.content, each.finish_reason) for each in short.choices] == [("You said:", "length")] * 3
    assert short.usage is not None
    assert short.usage.completion_tokens == 6
    assert short.choices[0].logprobs is not None
    assert [each.token for each in short.choices[0].logprobs.content or []] == ["You", " said:"]
    stopped = client.chat.completions.create(model="m", messages=HELLO, stop=["there"])
    assert stopped.choices[0].message.content == "You said: hello"


@pytest.mark.parametrize("form", ["Summarize the following text in 1-2 sentences:\n\n{}", "{}\n\nSummarize the text."])
def test_it_summarizes_when_asked_to(client: openai.OpenAI, form: str) -> None:
    prompt = form.format("One two three four. " * 20)
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])
    assert answer.choices[0].message.content == "One two three four. " * 4 + "One two three four."


@pytest.mark.parametrize(
    ("given", "tokens", "count"), [("a b", 2, 1), (["a", "b c"], 3, 2), ([5, 6, 7], 3, 1), ([[5], [6, 7]], 3, 2)]
)
def test_it_embeds_texts_and_tokens_as_numbers_or_base64(
    fake: FakeUpstream, given: Any, tokens: int, count: int
) -> None:
    body = {"model": "m", "input": given, "dimensions": 8}
    numbers, packed = (
        json.load(post(fake, "/v1/embeddings", {**body, "encoding_format": form})) for form in ("float", "base64")
    )
    assert [len(each["embedding"]) for each in numbers["data"]] == [8] * count
    decoded = [base64.b64decode(each["embedding"]) for each in packed["data"]]
    assert [list(struct.unpack("<8f", each)) for each in decoded] == [each["embedding"] for each in numbers["data"]]
    assert numbers["usage"]["prompt_tokens"] == tokens
    assert (fake.totals()["prompt_tokens"], fake.totals()["completion_tokens"]) == (2 * tokens, 0)


def test_it_streams_the_events_of_a_response_in_order(client: openai.OpenAI) -> None:
    received = list(client.responses.create(model="m", input="hello", max_output_tokens=2, stream=True))
    kinds = [event.type.removeprefix("response.") for event in received]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert [event.sequence_number for event in received] == list(range(10))
    function = {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}, "days": {"minimum": 3}}}}
    tools: Any = [{"type": "function", **function}]
    stream = client.responses.create(model="m", input="hello", tools=tools, tool_choice="required", stream=True)
    (done,) = [event for event in stream if event.type == "response.function_call_arguments.done"]
    assert json.loads(done.arguments)["city"] == "hello"


def test_it_knows_its_models_and_key() -> None:
    with FakeUpstream(models=["one", "two"], api_key="right") as fake:
        client = openai.OpenAI(base_url=fake.base_url, api_key="right", max_retries=0)
        assert [model.id for model in client.models.list()] == ["one", "two"]
        assert client.models.retrieve("two").id == "two"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.models.retrieve("three")
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="three", messages=HELLO)
        assert post(fake, CHAT, chat_body()).status == 401
        assert post(fake, CHAT, chat_body(), headers={"Authorization": "Bearer wrong"}).status == 401
        assert fake.totals()["calls"] == 1


def test_it_answers_under_azures_paths() -> None:
    with FakeUpstream(api_key="azure-key") as fake:
        url = f"http://127.0.0.1:{fake.port}"
        client = openai.AzureOpenAI(azure_endpoint=url, api_key="azure-key", api_version="2024-10-21", max_retries=0)
        answer = client.chat.completions.create(model="my-deployment", messages=HELLO)
        assert answer.model == "my-deployment"
        assert fake.requests[0].path == "/openai/deployments/my-deployment/chat/completions"
        assert post(fake, fake.requests[0].path, chat_body(), headers={"api-key": "azure-key"}).status == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, "{", 400, None),
        (CHAT, "[]", 400, None),
        (CHAT, {"messages": HELLO}, 400, "model"),
        (CHAT, {"model": "m", "messages": []}, 400, "messages"),
        (CHAT, {"model": "m", "messages": HELLO, "n": 0.5}, 400, "n"),
        (CHAT, {"model": "m", "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"model": "m"}, 400, "prompt"),
        ("/v1/embeddings", {"model": "m"}, 400, "input"),
        (RESPONSES, {"model": "m"}, 400, "input"),
        ("/v1/files", {}, 404, None),
    ],
)
def test_it_refuses_as_openai_does(fake: FakeUpstream, path: str, body: Any, status: int, param: str | None) -> None:
    answer = post(fake, path, body)
    assert answer.status == status
    assert json.load(answer)["error"]["param"] == param
    assert fake.totals()["prompt_tokens"] == 0


# Faults


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


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize(
    ("fault", "stream", "told", "billed"),
    [
        ("broken_json", False, b'"choices": [{', (2, 4)),
        ("broken_json", True, b'"choices": [{\n\n', (2, 4)),
        ("wrong_type", False, b"<html>", (0, 0)),
        ("empty_choices", False, b": []", (2, 0)),
        ("no_usage", False, b"You said: hello there", (2, 4)),
        ("content_filter", False, b'"content_filter"', (2, 2)),
        ("content_filter", True, b'"content_filter"', (2, 2)),
        ("error_event", False, b'"error"', (0, 0)),
        ("error_event", True, b"error", (2, 2)),
        ("error_first", False, b'"error"', (0, 0)),
        ("error_first", True, b"error", (0, 0)),
        ("error_usage", False, b'"usage"', (2, 2)),
        ("error_usage", True, b'"usage"', (2, 2)),
        ("slow", False, b"You said: hello there", (2, 4)),
        ("slow", True, b" there", (2, 4)),
    ],
)
def test_it_answers_200_with_a_fault_and_bills_what_its_list_says(
    fake: FakeUpstream, path: str, fault: str, stream: bool, told: bytes, billed: tuple[int, int]
) -> None:
    fake.set(slow_interval_ms=5)
    fake.fail_next(fault)
    body = {"model": "m", "input": "hello there", "stream": stream} if path != CHAT else chat_body(stream=stream)
    start = time.monotonic()
    answer = post(fake, path, body)
    received = answer.read()
    assert (answer.status, told in received) == (200, True)
    assert time.monotonic() - start > (0.03 if fault == "slow" else 0)
    if "error" in fault or fault in ("broken_json", "wrong_type"):
        assert LEAK_MARKER in received.decode()
    if fault == "no_usage":
        assert not json.loads(received).get("usage")
    assert [(call.prompt_tokens, call.completion_tokens) for call in fake.billed] == [billed]


def test_it_refuses_and_resets_connections(fake: FakeUpstream) -> None:
    idle = connect(fake)
    idle.connect()
    fake.fail_next("refuse")
    with suppress(ConnectionResetError):
        assert idle.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        post(fake, CHAT, chat_body())
    fake.listen()
    assert post(fake, CHAT, chat_body()).status == 200
    fake.fail_next("reset")
    with pytest.raises(ConnectionError):
        post(fake, CHAT, chat_body())
    assert (fake.billed[-1].outcome, fake.billed[-1].prompt_tokens) == ("failed", 0)


@pytest.mark.parametrize(("stream", "half"), [(False, 4), (True, 2)])
def test_it_cuts_an_answer_or_falls_silent_and_bills_what_it_made(fake: FakeUpstream, stream: bool, half: int) -> None:
    for kind, error in (("cut", http.client.IncompleteRead), ("hang", TimeoutError), ("stall", TimeoutError)):
        fake.fail_next(kind)
        with pytest.raises(error):
            post(fake, CHAT, chat_body(stream=stream), timeout=0.2).read()
        fake.wait_idle()
    billed = [(call.outcome, call.completion_tokens) for call in fake.billed]
    assert billed == [("cut", half), ("client_left", 0), ("client_left", half)]


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


# Pace, leavers, many at once, odd requests


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


def test_it_reads_pipelined_and_chunked_requests_and_hangs_up_on_others(fake: FakeUpstream) -> None:
    body = json.dumps(chat_body()).encode()
    sized = b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    chunked = b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", fake.port)) as raw:
        for byte in sized + sized + chunked % (CHAT.encode(), len(body), body):
            raw.send(bytes([byte]))
        assert raw.makefile("rb").read().count(b"HTTP/1.1 200 OK") == 3
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
