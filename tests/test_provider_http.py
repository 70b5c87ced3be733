"""What a provider answers over HTTP, in any coding, of any size: what the caller sees of it, and what is billed."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import brotli
import pytest

from tests.running import (
    CHAT,
    ENDPOINTS,
    LARGEST,
    STREAMING,
    Answer,
    Model,
    Platform,
    Reply,
    answered,
    completion,
    event,
)

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


def padded(size: int) -> bytes:
    """Make a sound answer of so many bytes, most of them blanks."""
    body = completion("Hello").body
    assert isinstance(body, bytes)
    return body.ljust(size)


@pytest.mark.parametrize("label", CODINGS)
def test_it_reads_an_answer_in_any_coding(model: Model, label: str) -> None:
    model.script(packed(completion("Hello"), label), packed(answered(is_stream=True), label))
    plain = model.ask()
    assert (plain.status, plain.json()["choices"][0]["message"]["content"]) == (200, "Hello")
    stream = model.ask(stream=True)
    assert [each["choices"][0]["delta"] for each in stream.events()[:1]] == [{"role": "assistant", "content": "Hello"}]
    assert stream.events()[-1] == "[DONE]"
    for answer in (plain, stream):
        record = model.record(answer)
        assert (record.status, record.usage_source, record.input_tokens, record.output_tokens) == (
            200, "provider", 5, 2,
        )  # fmt: skip
    assert {call.headers["accept-encoding"] for call in model.calls()} == {"identity"}


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("label", CODINGS)
def test_it_reads_an_error_in_any_coding(model: Model, label: str, is_stream: bool) -> None:
    too_long = rejection("Too long.", param="messages", code="context_length_exceeded")
    busy = Reply(429, {"Retry-After": "17"}, b'{"error": {"message": "slow down"}}')
    model.script(*[packed(too_long, label)] * 6, packed(busy, label), completion("Hello"))
    for _ in range(6):  # more than open a breaker
        rejected = model.ask(stream=is_stream)
        assert (rejected.status, rejected.error["code"], rejected.error["param"]) == (
            400, "context_length_exceeded", "messages",
        )  # fmt: skip
    refused = model.ask(stream=is_stream)
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "upstream_busy", "17")
    for answer in (rejected, refused):
        record = model.record(answer)
        assert (record.cost, record.input_tokens + record.output_tokens) == (0, 0)
    assert model.ask().status == 200


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
    model: Model, unreadable: Reply, is_stream: bool
) -> None:
    model.script(unreadable)
    began = time.monotonic()
    answer = model.ask(stream=is_stream)
    assert (answer.status, answer.error["code"]) == (400, "upstream_rejected")
    assert time.monotonic() - began < 20
    record = model.record(answer)
    assert (record.status, record.cost, record.output_tokens) == (400, 0, 0)


@pytest.mark.parametrize("label", ["identity", "gzip", "br"])
def test_it_reads_a_plain_answer_up_to_a_bound(model: Model, label: str) -> None:
    model.script(*[packed(Reply(body=padded(LARGEST + more)), label) for more in (0, 1)])
    assert model.ask().status == 200
    too_large = model.ask()
    assert (too_large.status, too_large.error["code"]) == (502, "upstream_failed")
    assert model.record(too_large).usage_source == "bound"


@pytest.mark.parametrize("path", [path for path in ENDPOINTS if path != CHAT])
def test_it_takes_a_larger_answer_for_none_on_every_endpoint(make_model: Callable[..., Model], path: str) -> None:
    model = make_model(path)
    large = {"choices": [{"message": {"content": "x" * LARGEST}, "text": "x"}], "output": [{}], "data": [{}]}
    model.script(Reply(body=json.dumps(large).encode()))
    assert model.ask(path).status == 502


def test_a_small_body_that_unpacks_to_a_huge_one_holds_nobody_up(model: Model) -> None:
    bomb = gzip.compress(b'{"choices": ["') + gzip.compress(b"x" * 10_000_000) * 100
    model.script(*[Reply(status, {"Content-Encoding": "gzip"}, bomb) for status in (200, 400, 200)])
    began = time.monotonic()
    assert [model.ask().status for _ in range(2)] == [502, 400]
    assert model.ask(stream=True).status == 502
    assert time.monotonic() - began < 3


TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


def message_of(answer: Answer) -> str:
    """Return what an error says, in either shape."""
    body = answer.json()
    return str(body["error"]["message"] if "error" in body else body["detail"])


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_it_passes_on_what_a_provider_says_of_the_caller_s_parameters(
    make_model: Callable[..., Model], path: str, status: int, is_stream: bool
) -> None:
    if is_stream and path not in STREAMING:
        return
    model, more = make_model(path), dict[str, Any](stream=True) if is_stream else {}
    if path in STREAMING:
        more["temperature"] = 0.7
    said = "Unsupported value: 'temperature' does not support 0.7 with this model."
    model.script(
        rejection(said, status=status, param="temperature", code="unsupported_value"),
        rejection(TOO_LONG, status=status, code="context_length_exceeded"),
    )
    for expected, code in ((said, "unsupported_value"), (TOO_LONG, "context_length_exceeded")):
        answer = model.ask(path, **more)
        assert (answer.status, message_of(answer)) == (400, expected)
        assert model.record(answer).error_code == code


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
def test_it_passes_on_nothing_else(model: Model, error: dict[str, Any], message: Any) -> None:
    reply = Reply(400, body=json.dumps({"error": error}).encode())
    model.script(reply)
    for is_stream in (False, True):
        answer = model.ask(stream=is_stream)
        assert answer.status == 400
        said = message_of(answer)
        if message is ...:
            assert said.startswith("Too long. Too long.")
            assert len(said) <= 300
        else:
            assert said == (message or "The model provider rejected the request.")
        for part in (HOST, SECRET, "127.0.0.1", model.provider.base_url):
            assert part not in answer.body.decode()
            assert part not in model.platform.log[-10_000:]


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
    model: Model, path: str, parameter: str
) -> None:
    said = f"{parameter} is too large: 16384. This model supports at most 4096."
    model.script(rejection(said, param=parameter, code="invalid_value"))
    answer = model.ask(path)
    assert (answer.status, model.record(answer).error_code) == (502, "upstream_failed")
    assert "4096" not in answer.body.decode()
    if path.startswith("/v1"):
        asked = model.ask(path, **{parameter: 100})
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
    model: Model, status: int, headers: dict[str, str], seconds: int
) -> None:
    model.script(Reply(status, headers, b"{}"))
    answers = [model.ask(), model.ask(stream=True), model.ask("/chat")]
    assert [answer.status for answer in answers] == [503] * 3
    for answer in answers:
        said = int(answer.headers["retry-after"])
        assert said == seconds or (seconds == 36000 and 30000 < said < seconds)  # the date was made some time ago
    assert len(model.calls()) == 3


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{"Retry-After": "0.7"}, {"retry-after-ms": "700"}])
def test_it_waits_itself_where_that_takes_not_long(model: Model, status: int, headers: dict[str, str]) -> None:
    model.script(Reply(status, headers, b"{}"), completion("Hello"))
    began = time.monotonic()
    assert model.ask().status == 200
    assert time.monotonic() - began > 0.7


@pytest.mark.parametrize(("path", "least"), [("/v1/responses", 16), (CHAT, 1)], ids=["responses", "chat"])
def test_it_refuses_what_a_limit_leaves_less_for_than_providers_take(model: Model, path: str, least: int) -> None:
    """The longest answer of a call that names none is cut to what a limit leaves, which gets less call by call."""
    key = model.platform.add([], account=f"near-{model.name}", tokens_per_minute=500)
    model.script(answered(path))
    answers = [model.platform.ask(path, model.body(path), key=key)]
    while answers[-1].status == 200:
        answers.append(model.platform.ask(path, model.body(path), key=key))
    assert (answers[-1].status, "tokens" in answers[-1].error["type"]) == (429, True)
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    sent = [int(call.payload[name]) for call in model.calls()]
    assert least <= sent[-1] < least + 7 * 2
    assert len(sent) == len(answers) - 1


# Header names and media types have no case, and a stream is known by what it is, not by its label.

CHUNK = event({"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]})


@pytest.mark.parametrize(
    "label", ["Text/Event-Stream; Charset=UTF-8", "text/plain", "application/octet-stream", "application/json", ""]
)
@pytest.mark.parametrize("path", [CHAT, "/chat"])
def test_it_knows_a_stream_by_its_events(model: Model, label: str, path: str) -> None:
    model.script(Reply(headers={"CONTENT-TYPE": label}, body=[b": working\n\n", CHUNK, event("[DONE]")]))
    answer = model.ask(path, stream=True)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert b"Hello" in answer.body
    assert model.record(answer).status == 200


@pytest.mark.parametrize("page", [b"<html>\n<body>Bad gateway</body>\n\n", b"Bad gateway\n\n"])
def test_it_takes_no_page_for_a_stream_whatever_its_label(model: Model, page: bytes) -> None:
    model.script(Reply(headers={"Content-Type": "text/event-stream"}, body=[page]))
    assert model.ask(stream=True).status == 502


@pytest.mark.parametrize("label", ["Application/JSON", "text/plain", ""])
def test_it_reads_a_plain_answer_under_any_label(model: Model, label: str) -> None:
    model.script(Reply(headers={"content-TYPE": label}, body=completion("Hello").body))
    answer = model.ask()
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "Hello")


@pytest.mark.parametrize("label", ["APPLICATION/JSON", "Application/Json; Charset=UTF-8"])
def test_it_takes_a_caller_s_media_type_in_any_case(model: Model, label: str) -> None:
    model.script(completion("Hello"))
    assert model.ask("/chat", headers={"Content-Type": label}).status == 200


def test_it_streams_to_one_who_accepts_events_in_any_case(model: Model) -> None:
    model.script(Reply(body=[CHUNK, event("[DONE]")]))
    answer = model.ask("/chat", headers={"ACCEPT": "Text/Event-Stream"})
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")


def test_it_shows_a_page_to_a_browser_in_any_case(platform: Platform) -> None:
    assert platform.ask("/", headers={"Accept": "Text/HTML"}).headers["content-type"].startswith("text/html")


def test_it_honours_a_provider_s_headers_in_any_case(model: Model) -> None:
    model.script(Reply(429, {"RETRY-AFTER": "17"}, b"{}"))
    answer = model.ask()
    assert (answer.status, answer.headers["retry-after"]) == (503, "17")


# A provider whose credit is used up: the next deployment answers, operators are told, and it is left alone.

LEFT_ALONE = 300
EMPTY = {
    "402": Reply(402, body=b"Payment required"),
    "quota": rejection("No quota.", status=429, type="insufficient_quota", code="insufficient_quota"),
    "type": rejection("No quota.", status=429, type="insufficient_quota"),
    "billing": rejection("No quota.", status=429, type=None, code="billing_not_active"),
    "limit": rejection("No quota.", type=None, code="billing_hard_limit_reached"),
}


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("kind", EMPTY)
def test_it_asks_the_next_deployment_and_leaves_the_empty_one_alone(model: Model, kind: str, is_stream: bool) -> None:
    model.script(EMPTY[kind])
    model.spare.script(model.spared, answered(is_stream=True) if is_stream else completion("Hello"))
    answers = [model.ask(stream=is_stream, spared=True) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert (len(model.calls(spared=True)), len(model.spare.calls_of(model.spared))) == (1, 3)
    assert [model.record(answer).attempts for answer in answers] == [2, 1, 1]


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("kind", EMPTY)
def test_it_tells_callers_at_once_where_there_is_no_other_and_operators_why(
    model: Model, kind: str, is_stream: bool
) -> None:
    """It is no business of callers whose credit is used up; a pause as for a busy provider would not help."""
    model.script(EMPTY[kind])
    failed, refused = (model.ask(stream=is_stream) for _ in range(2))
    assert (failed.status, failed.error["code"]) == (502, "upstream_failed")
    assert (refused.status, refused.error["code"]) == (503, "upstream_busy")
    assert LEFT_ALONE - 60 < int(refused.headers["retry-after"]) <= LEFT_ALONE
    assert len(model.calls()) == 1
    record = model.record(failed)
    assert (record.status, record.cost, record.input_tokens) == (502, 0, 0)
    assert "quota" not in (failed.body + refused.body).decode()
    if (kind, is_stream) == ("quota", False):
        model.platform.manage("worker", "--once", "watch")
        alerts = model.platform.rows("SELECT title, text FROM monitoring_alert WHERE ended_at IS NULL")
        assert [each for each in alerts if model.name in each["text"] and "has no credit left" in each["title"]]
