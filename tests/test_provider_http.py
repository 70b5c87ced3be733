"""What a provider answers over HTTP, in any coding, of any size: what the caller sees of it, and what is billed."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import brotli
import pytest

from tests.running import (
    Answered,
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    chat,
    completion,
    event,
    running_platform,
    scripted_provider,
)

CHAT = "/v1/chat/completions"
#: The largest plain answer that this platform takes.
LARGEST = 1024 * 1024
HOST = "gpu-7.internal.example"
SECRET = "sk-proj-aB3dE5gH7jK9mN1pQ3sT5vX7"
#: How a body may be packed, and under which label it comes.
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": lambda body: zlib.compress(body, wbits=-15),
    "br": brotli.compress,
    "gzip, br": lambda body: brotli.compress(gzip.compress(body)),
    "identity": bytes,
    # packed by nobody, whatever the label says
    "GZIP": bytes,
    "DEFLATE": bytes,
    "BR": bytes,
}
_numbers = count()


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    env = {**prepared(), "MAX_ANSWER_BYTES": str(LARGEST)}
    served = [Served(f"m{number}", [provider.base_url]) for number in range(140)]
    served.append(Served("embedder", [provider.base_url], kind="embedding"))
    with running_platform(env, served) as running:
        yield running


@pytest.fixture
def model() -> str:
    """Name a model that no other test asks, since breakers remember."""
    return f"m{next(_numbers)}"


def rejection(message: str, *, status: int = 400, **fields: Any) -> Reply:
    """Make a provider's error as OpenAI writes it."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}
    return Reply(status, body=json.dumps({"error": error}).encode())


def packed(reply: Reply, label: str) -> Reply:
    """Pack the body of a reply as its label says."""
    body = (
        reply.body
        if isinstance(reply.body, bytes)
        else b"".join(each for each in reply.body if isinstance(each, bytes))
    )
    content = CODINGS[label](body)
    return Reply(
        reply.status,
        {**reply.headers, "content-ENCODING": label},
        content if isinstance(reply.body, bytes) else [content[:9], content[9:40], content[40:]],
    )


def streamed(text: str) -> Reply:
    """Make a sound stream of chat completions."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    events = [
        {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**chunk, "choices": [], "usage": usage},
        "[DONE]",
    ]
    return Reply(body=[b"".join(map(event, events))])


def padded(size: int) -> bytes:
    """Make a sound answer of so many bytes, most of them blanks."""
    body = completion("Hello").body
    assert isinstance(body, bytes)
    return body.ljust(size)


@pytest.mark.parametrize("label", CODINGS)
def test_it_reads_an_answer_in_any_coding(
    platform: Platform, provider: ScriptedProvider, model: str, label: str
) -> None:
    provider.script(model, packed(completion("Hello"), label), packed(streamed("Hello"), label))
    plain = platform.ask(CHAT, chat(model))
    assert (plain.status, plain.json()["choices"][0]["message"]["content"]) == (200, "Hello")
    stream = platform.ask(CHAT, chat(model, stream=True))
    assert [each["choices"][0]["delta"] for each in stream.events()[:1]] == [{"role": "assistant", "content": "Hello"}]
    assert stream.events()[-1] == "[DONE]"
    for answer in (plain, stream):
        record = platform.record(answer)
        assert (record.status, record.usage_source, record.input_tokens, record.output_tokens) == (
            200, "provider", 5, 2,
        )  # fmt: skip
    assert {call.headers["accept-encoding"] for call in provider.calls_of(model)} == {"identity"}


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("label", CODINGS)
def test_it_reads_an_error_in_any_coding(
    platform: Platform, provider: ScriptedProvider, model: str, label: str, is_stream: bool
) -> None:
    too_long = rejection("Too long.", param="messages", code="context_length_exceeded")
    busy = Reply(429, {"Retry-After": "17"}, b'{"error": {"message": "slow down"}}')
    provider.script(model, *[packed(too_long, label)] * 6, packed(busy, label), completion("Hello"))
    for _ in range(6):  # more than open a breaker
        rejected = platform.ask(CHAT, chat(model, stream=is_stream))
        assert (rejected.status, rejected.error["code"], rejected.error["param"]) == (
            400, "context_length_exceeded", "messages",
        )  # fmt: skip
    refused = platform.ask(CHAT, chat(model, stream=is_stream))
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "upstream_busy", "17")
    for answer in (rejected, refused):
        record = platform.record(answer)
        assert (record.cost, record.input_tokens + record.output_tokens) == (0, 0)
    assert platform.ask(CHAT, chat(model)).status == 200


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "unreadable",
    [
        Reply(400, {"Content-Encoding": "gzip"}, gzip.compress(b'{"error": {}}')[:-9]),
        Reply(400, {"Content-Encoding": "br"}, b"\x83\xff\x00 no brotli"),
        Reply(400, {"Content-Encoding": "gzip"}, gzip.compress(b"no JSON")),
        Reply(400, body=b'{"error": {"message": "cut', breaks_off=True),
        Reply(400, body=[b'{"error": {', 30]),
        Reply(400, body=b'{"error": {"message": "' + b"x" * LARGEST + b'"}}'),
        Reply(400, body=b'{"error": ' + b"[" * 60_000),
        Reply(400, {"Content-Type": "text/html; charset=klingon"}, b"\xff\xfe<html>"),
    ],
    ids=["half a gzip", "no brotli", "no JSON", "cut", "endless", "huge", "nested", "no text"],
)
def test_it_takes_an_error_for_what_its_status_says_whatever_its_body_is(
    platform: Platform, provider: ScriptedProvider, model: str, unreadable: Reply, is_stream: bool
) -> None:
    provider.script(model, unreadable)
    began = time.monotonic()
    answer = platform.ask(CHAT, chat(model, stream=is_stream))
    assert (answer.status, answer.error["code"]) == (400, "upstream_rejected")
    assert time.monotonic() - began < 20
    record = platform.record(answer)
    assert (record.status, record.cost, record.output_tokens) == (400, 0, 0)


@pytest.mark.parametrize("label", ["identity", "gzip", "br"])
def test_it_reads_a_plain_answer_up_to_a_bound(
    platform: Platform, provider: ScriptedProvider, model: str, label: str
) -> None:
    provider.script(model, *[packed(Reply(body=padded(LARGEST + more)), label) for more in (0, 1)])
    assert platform.ask(CHAT, chat(model)).status == 200
    too_large = platform.ask(CHAT, chat(model))
    assert (too_large.status, too_large.error["code"]) == (502, "upstream_failed")
    assert platform.record(too_large).usage_source == "bound"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/embeddings", {"input": "hi", "model": "embedder"}),
        ("/chat", {"message": "hi"}),
        ("/summarize", {"text": "so much to say"}),
    ],
)
def test_it_takes_a_larger_answer_for_none_on_every_endpoint(
    platform: Platform, provider: ScriptedProvider, model: str, path: str, body: dict[str, Any]
) -> None:
    large = {"choices": [{"message": {"content": "x" * LARGEST}, "text": "x"}], "output": [{}], "data": [{}]}
    asked = {"model": model, **body}
    provider.script(asked["model"], Reply(body=json.dumps(large).encode()))
    assert platform.ask(path, asked).status == 502


def test_a_small_body_that_unpacks_to_a_huge_one_holds_nobody_up(
    platform: Platform, provider: ScriptedProvider, model: str
) -> None:
    bomb = gzip.compress(b'{"choices": ["') + gzip.compress(b"x" * 10_000_000) * 100
    provider.script(model, *[Reply(status, {"Content-Encoding": "gzip"}, bomb) for status in (200, 400, 200)])
    began = time.monotonic()
    assert [platform.ask(CHAT, chat(model)).status for _ in range(2)] == [502, 400]
    assert platform.ask(CHAT, chat(model, stream=True)).status == 502
    assert time.monotonic() - began < 3


TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
ENDPOINTS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.7},
    "/v1/responses": {"input": "hi", "temperature": 0.7},
    "/v1/completions": {"prompt": "hi", "temperature": 0.7},
    "/v1/embeddings": {"model": "embedder", "input": "hi"},
    "/chat": {"message": "hi", "temperature": 0.7},
    "/summarize": {"text": "so much to say"},
}


def message_of(answer: Answered) -> str:
    """Return what an error says, in either shape."""
    body = answer.json()
    return str(body["error"]["message"] if "error" in body else body["detail"])


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_it_passes_on_what_a_provider_says_of_the_caller_s_parameters(
    platform: Platform, provider: ScriptedProvider, model: str, path: str, status: int, is_stream: bool
) -> None:
    body = {"model": model, **ENDPOINTS[path]}
    if is_stream:
        if path in ("/v1/embeddings", "/summarize"):
            return
        body["stream"] = True
    said = "Unsupported value: 'temperature' does not support 0.7 with this model."
    provider.script(
        body["model"],
        rejection(said, status=status, param="temperature", code="unsupported_value"),
        rejection(TOO_LONG, status=status, code="context_length_exceeded"),
    )
    for expected, code in ((said, "unsupported_value"), (TOO_LONG, "context_length_exceeded")):
        answer = platform.ask(path, body)
        assert (answer.status, message_of(answer)) == (400, expected)
        assert platform.record(answer).error_code == code


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"message": "Our database is full.", "code": "database_full"}, None),
        ({"message": "Out of memory."}, None),
        ({"message": 7, "param": "messages"}, None),
        ({"message": {"text": "no"}, "param": "messages"}, None),
        ({"message": "<html><body>no", "param": "messages"}, None),
        ({"message": f"http://{HOST}/v1", "param": "messages"}, None),
        ({"message": f"Too long. See https://{HOST}/docs?key={SECRET}.\n  File '/app/x.py'", "param": "messages"},
         "Too long. See [...]"),
        ({"message": f"Too long for {HOST}:8000 at 10.1.2.3 with {SECRET} of org-9f8e7d6c5b4a", "param": "messages"},
         "Too long for [...] at [...] with [...] of [...]"),
        ({"message": "\n\n\x1b[31mToo\tlong.\u202e\r\nIgnore this", "param": "messages"}, "[31mToo long."),
        ({"message": "Too long. " * 1000, "param": "messages"}, ...),
    ],
)  # fmt: skip
def test_it_passes_on_nothing_else(
    platform: Platform, provider: ScriptedProvider, model: str, error: dict[str, Any], message: Any
) -> None:
    reply = Reply(400, body=json.dumps({"error": error}).encode())
    provider.script(model, reply)
    for is_stream in (False, True):
        answer = platform.ask(CHAT, chat(model, stream=is_stream))
        assert answer.status == 400
        said = message_of(answer)
        if message is ...:
            assert said.startswith("Too long. Too long.")
            assert len(said) <= 300
        else:
            assert said == (message or "The model provider rejected the request.")
        for part in (HOST, SECRET, "127.0.0.1", str(provider.base_url)):
            assert part not in answer.body.decode()
            assert part not in platform.log[-10_000:]


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        (CHAT, "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
        ("/chat", "max_tokens"),
        ("/summarize", "max_tokens"),
    ],
)
def test_a_parameter_that_the_caller_did_not_send_is_none_of_his_faults(
    platform: Platform, provider: ScriptedProvider, model: str, path: str, parameter: str
) -> None:
    body = {**ENDPOINTS[path], "model": model}
    said = f"{parameter} is too large: 16384. This model supports at most 4096."
    provider.script(model, rejection(said, param=parameter, code="invalid_value"))
    answer = platform.ask(path, body)
    assert (answer.status, platform.record(answer).error_code) == (502, "upstream_failed")
    assert "4096" not in answer.body.decode()
    if path.startswith("/v1"):
        asked = platform.ask(path, {**body, parameter: 100})
        assert (asked.status, message_of(asked)) == (400, said)


def in_seconds(seconds: float, form: str = "%a, %d %b %Y %H:%M:%S GMT") -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime(form)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "17"}, 17),
        ({"retry-after": "16.2"}, 17),
        ({"Retry-After": "86400"}, 86400),
        ({"retry-after-ms": "16500"}, 17),
        ({"Retry-After-Ms": "100", "Retry-After": "17"}, 17),
        ({"Retry-After": in_seconds(36000)}, 36000),
        ({"Retry-After": in_seconds(36000, "%A, %d-%b-%y %H:%M:%S GMT")}, 36000),
    ],
)
def test_it_tells_callers_when_the_provider_wants_to_be_asked_again(
    platform: Platform, provider: ScriptedProvider, model: str, status: int, headers: dict[str, str], seconds: int
) -> None:
    provider.script(model, Reply(status, headers, b"{}"))
    answers = [
        platform.ask(CHAT, chat(model)),
        platform.ask(CHAT, chat(model, stream=True)),
        platform.ask("/chat", {"message": "hi", "model": model}),
    ]
    assert [answer.status for answer in answers] == [503] * 3
    for answer in answers:
        said = int(answer.headers["retry-after"])
        assert said == seconds or (seconds == 36000 and 30000 < said < seconds)  # the date was made some time ago
    assert len(provider.calls_of(model)) == 3


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{"Retry-After": "0.7"}, {"retry-after-ms": "700"}])
def test_it_waits_itself_where_that_takes_not_long(
    platform: Platform, provider: ScriptedProvider, model: str, status: int, headers: dict[str, str]
) -> None:
    provider.script(model, Reply(status, headers, b"{}"), completion("Hello"))
    began = time.monotonic()
    assert platform.ask(CHAT, chat(model)).status == 200
    assert time.monotonic() - began > 0.7


@pytest.mark.parametrize(("path", "least"), [("/v1/responses", 16), (CHAT, 1)], ids=["responses", "chat"])
def test_it_refuses_what_a_limit_leaves_less_for_than_providers_take(
    platform: Platform, provider: ScriptedProvider, model: str, path: str, least: int
) -> None:
    """The longest answer of a call that names none is cut to what a limit leaves, which gets less call by call."""
    key = platform.add([], account=f"near-{model}", tokens_per_minute=500)
    text = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}]
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello"},
        "finish_reason": "stop",
    }
    answer = {"id": "r", "status": "completed", "output": text, "choices": [choice], "usage": usage}
    provider.script(model, Reply(body=json.dumps(answer).encode()))
    asked = {"input": "hi"} if path == "/v1/responses" else chat(model)
    answers = [platform.ask(path, {**asked, "model": model}, key=key)]
    while answers[-1].status == 200:
        answers.append(platform.ask(path, {**asked, "model": model}, key=key))
    assert (answers[-1].status, "tokens" in answers[-1].error["type"]) == (429, True)
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    sent = [int(call.payload[name]) for call in provider.calls_of(model)]
    assert least <= sent[-1] < least + 7 * 2
    assert len(sent) == len(answers) - 1
