"""What a provider says inside an answer of status 200: its errors, its failed responses, ends that are none."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from inference.protocols.base import count_tokens
from tests.answers import said
from tests.running import (
    CHAT,
    ENDPOINTS,
    MESSAGES,
    SHORT,
    STREAMING,
    Answer,
    Model,
    Platform,
    Reply,
    Served,
    answered,
    event,
    running_platform,
    scripted_provider,
    wait_until,
)

#: What makes a model of an endpoint.
Make = Callable[..., Model]
SECRET = "sk-internal-of-the-provider"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
#: Of what a provider tells in the two ways of OpenAI's endpoints: 1,000 tokens in, 500 out.
CHAT_USAGE = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
RESPONSE_USAGE = {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500}


def stream(*events: bytes | float, **more: Any) -> Reply:
    return Reply(body=list(events), **more)


def plain(body: Any) -> Reply:
    return Reply(body=json.dumps(body).encode())


def chunk(text: str, path: str = CHAT, reason: str | None = None, **more: Any) -> bytes:
    """Write a chunk of a chat completion or a completion."""
    said = {"text": text} if path == COMPLETIONS else {"delta": {"content": text}}
    return event({"id": "c", "choices": [{"index": 0, **said, "finish_reason": reason}], **more})


def response(status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": status, "error": None, "model": "theirs",
        "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": None, **more,
    }  # fmt: skip


def numbered(*events: dict[str, Any]) -> list[bytes]:
    """Write the events of a response with their names and numbers."""
    return [event({**each, "sequence_number": n}, each["type"]) for n, each in enumerate(events)]


CREATED = {"type": "response.created", "response": response("in_progress")}
DELTA = {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0,
         "delta": "Hello there"}  # fmt: skip
SAID = [{"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Hello there", "annotations": []}]}]  # fmt: skip
COMPLETED = {"type": "response.completed", "response": response("completed", output=SAID, usage=RESPONSE_USAGE)}


def told(code: Any, **more: Any) -> dict[str, Any]:
    """Make a provider's error object, with a text that nobody may see."""
    return {"message": f"Failed at {SECRET}.", "type": "server_error", "param": None, "code": code, **more}


def failed(code: str, **more: Any) -> dict[str, Any]:
    """Make the event by which a provider ends a failed response."""
    error = {"code": code, "message": f"Failed at {SECRET}."}
    return {"type": "response.failed", "response": response("failed", error=error, **more)}


def first_error(path: str, code: Any, usage: bool = False) -> Reply:
    """Make a stream whose first event is an error."""
    if path == RESPONSES:
        return stream(*numbered(failed(code, usage=RESPONSE_USAGE if usage else None)))
    return stream(event({"error": told(code), **({"usage": CHAT_USAGE} if usage else {})}))


def error_body(path: str, code: Any, usage: bool = False) -> Reply:
    """Make a plain answer of status 200 that is an error."""
    if path == RESPONSES and usage:
        return plain(response("failed", error=told(code), usage=RESPONSE_USAGE))
    return plain({"error": told(code), **({"usage": CHAT_USAGE} if usage else {})})


def last_error(path: str, answer: Answer) -> dict[str, Any]:
    """Return the error that a stream ends with; of a response its event, which has to fit what came before."""
    events = answer.events()
    assert events[-1] != "[DONE]"
    if path == "/chat":
        return dict(events[-1])
    if path != RESPONSES:
        return dict(events[-1]["error"])
    end = events[-1]
    assert answer.body.decode().rstrip("\n").rpartition("\n\n")[2].startswith("event: response.failed\n")
    assert [each["type"] for each in events].count("response.failed") == 1
    assert not [each for each in events if each["type"] == "error"]
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert (end["type"], end["response"]["status"]) == ("response.failed", "failed")
    assert set(events[0]["response"]) <= set(end["response"])
    assert end["response"]["id"] == events[0]["response"]["id"]
    return dict(end["response"]["error"])


@pytest.fixture(scope="module")
def caching(platform: Platform) -> Platform:
    """Return the platform with a key whose answers are cached at any temperature."""
    return Platform(platform.service, platform.add([], account="caching", cache_any_temperature=True))


@pytest.fixture
def make(caching: Platform, make_model: Make) -> Make:
    """Return what makes a model that an endpoint takes, whose spare answers there soundly."""

    def made(path: str, *, streamed: bool = False) -> Model:
        model = replace(make_model(path), platform=caching)
        model.spare.script(model.spared, answered(path, "Hello there", is_stream=streamed))
        return model

    return made


# 1. An end that comes twice


def test_it_takes_a_done_after_the_end_of_a_response_for_nothing(make: Make) -> None:
    model = make(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA, COMPLETED), event("[DONE]")))
    headers = {"Idempotency-Key": model.name}
    body = model.body(RESPONSES, stream=True)
    answers = [model.platform.ask(RESPONSES, body, headers=headers) for _ in range(2)]
    answers.append(model.platform.ask(RESPONSES, body))
    for answer in answers:
        assert answer.status == 200
        assert [each["type"] for each in answer.events() if each != "[DONE]"] == [
            "response.created", "response.output_text.delta", "response.completed",
        ]  # fmt: skip
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", None]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "MISS", "HIT"]
    record = model.record(answers[0])
    assert (record.status, record.error_code, record.usage_source, record.is_partial) == (200, "", "provider", False)
    assert (record.input_tokens, record.output_tokens, len(model.calls())) == (1000, 500, 1)


@pytest.mark.parametrize("after", [event("[DONE]"), b"<p>Bad gateway</p>\n\n", chunk(" and more"), 5.0])
def test_it_ends_a_stream_at_its_end_whatever_follows(make: Make, after: bytes | float) -> None:
    model = make(CHAT, streamed=True)
    model.script(stream(chunk("Hello"), chunk("", CHAT, "stop"), event("[DONE]"), after))
    answer = model.ask(CHAT, stream=True)
    assert answer.events()[-1] == "[DONE]"
    assert answer.body.count(b"[DONE]") == 1
    assert model.record(answer).status == 200


def test_it_takes_a_done_alone_for_no_end_of_a_response(make: Make) -> None:
    model = make(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA), event("[DONE]")))
    answer = model.ask(RESPONSES, stream=True)
    assert last_error(RESPONSES, answer)["code"] == "upstream_failed"
    assert model.record(answer).status == 502


# 2. Responses that fail, and streams that break off

FAILURES = {
    "response.failed": numbered(CREATED, DELTA, failed("server_error", usage=RESPONSE_USAGE)),
    "an error before it": numbered(
        CREATED, DELTA, {**told("server_error"), "type": "error"}, failed("server_error", usage=RESPONSE_USAGE)
    ),
    "an error in an object": numbered(
        CREATED, DELTA, {"type": "error", "error": told("server_error")}, failed("server_error", usage=RESPONSE_USAGE)
    ),
}


@pytest.mark.parametrize("way", FAILURES)
@pytest.mark.parametrize("is_one_piece", [True, False])
def test_it_passes_a_failed_response_on_and_bills_what_it_used(make: Make, way: str, is_one_piece: bool) -> None:
    model, events = make(RESPONSES, streamed=True), FAILURES[way]
    model.script(stream(b"".join(events)) if is_one_piece else stream(*events))
    answer = model.ask(RESPONSES, stream=True)
    assert last_error(RESPONSES, answer)["code"] == "server_error"
    assert "Hello there" in answer.body.decode()
    assert SECRET not in answer.body.decode()
    assert answer.events()[-1]["response"]["usage"] == RESPONSE_USAGE
    record = model.record(answer)
    assert (record.status, record.error_code, record.usage_source) == (502, "server_error", "provider")
    assert (record.input_tokens, record.output_tokens, record.attempts) == (1000, 500, 1)


def test_it_tells_what_a_response_had_done_until_it_broke_off(make: Make) -> None:
    model = make(RESPONSES, streamed=True)
    done = {"type": "response.output_item.done", "output_index": 0, "item": SAID[0]}
    model.script(stream(*numbered(CREATED, DELTA, done), breaks_off=True))
    answer = model.ask(RESPONSES, stream=True)
    assert last_error(RESPONSES, answer)["code"] == "upstream_failed"
    assert answer.events()[-1]["response"]["output"] == SAID


@pytest.mark.parametrize(
    ("code", "status", "seen"),
    [
        ("rate_limit_exceeded", 503, "rate_limit_exceeded"),
        ("context_length_exceeded", 400, "context_length_exceeded"),
        ("insufficient_quota", 503, ""),
        ("invalid_api_key", 502, "upstream_failed"),
        (f"a sentence with {SECRET}", 502, "upstream_failed"),
        (None, 502, "upstream_failed"),
    ],
)
def test_it_passes_the_codes_on_that_are_no_affair_of_the_platform_s_own(
    make: Make, code: Any, status: int, seen: str
) -> None:
    model = make(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA, failed(code, usage=RESPONSE_USAGE))))
    answer = model.ask(RESPONSES, stream=True)
    error = last_error(RESPONSES, answer)
    assert error["code"] == (seen or error["code"]) != "insufficient_quota"
    assert SECRET not in answer.body.decode()
    record = model.record(answer)
    assert record.error_code == error["code"]
    assert record.status == status or not seen
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (1000, 500, "provider")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, "/chat"])
@pytest.mark.parametrize("is_later", [False, True])
def test_it_bills_what_an_error_among_chunks_says_was_used(make: Make, path: str, is_later: bool) -> None:
    model = make(path, streamed=True)
    error, usage = {"error": told("server_error")}, {"usage": CHAT_USAGE}
    end = [event(error), event({"choices": [], **usage}), event("[DONE]")] if is_later else [event({**error, **usage})]
    model.script(stream(chunk("Hello", path), *end))
    answer = model.ask(path, stream=True)
    assert b"Hello" in answer.body
    assert SECRET not in answer.body.decode()
    assert last_error(path, answer)["code"] == "server_error"
    record = model.record(answer)
    assert (record.status, record.error_code, record.usage_source) == (502, "server_error", "provider")
    assert (record.input_tokens, record.output_tokens) == (1000, 500)


@pytest.mark.parametrize("path", STREAMING)
def test_it_counts_what_came_before_an_error_that_tells_no_usage(make: Make, path: str) -> None:
    model = make(path, streamed=True)
    error = {**told("server_error"), "type": "error"}
    said = (
        numbered(CREATED, DELTA, error) if path == RESPONSES else [chunk("Hello there", path), event({"error": error})]
    )
    model.script(stream(*said, 5.0))  # the provider forgets to hang up
    answer = model.ask(path, stream=True)
    assert last_error(path, answer)["code"] == "server_error"
    record = model.record(answer)
    assert (record.usage_source, record.is_partial, record.output_tokens) == ("estimated", True, 2)
    assert 0 < record.input_tokens < 50


@pytest.mark.parametrize("path", STREAMING)
def test_it_charges_nothing_for_an_error_before_any_text(make: Make, path: str) -> None:
    model = make(path, streamed=True)
    begin = numbered(CREATED, failed("server_error")) if path == RESPONSES else [
        event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "text": ""}]}),
        event({"error": told("server_error")}),
    ]  # fmt: skip
    model.script(stream(*begin))
    record = model.record(model.ask(path, stream=True))
    assert (record.status, record.cost, record.input_tokens, record.output_tokens) == (502, 0, 0, 0)


@pytest.mark.parametrize(
    ("way", "code"), [("cut", "upstream_failed"), ("silent", "upstream_timeout"), ("garbage", "upstream_failed")]
)
def test_it_ends_a_response_that_breaks_off_as_a_failed_one(make: Make, way: str, code: str) -> None:
    model = make(RESPONSES, streamed=True)
    ends: dict[str, list[bytes | float]] = {
        "cut": [], "silent": [16.0], "garbage": [b"<p>Bad gateway</p>\n\n"],
    }  # fmt: skip
    model.script(stream(*numbered(CREATED, DELTA), *ends[way], breaks_off=way == "cut"))
    answer = model.ask(RESPONSES, stream=True)
    assert last_error(RESPONSES, answer)["code"] == code
    record = model.record(answer)
    assert (record.error_code, record.usage_source, record.is_partial) == (code, "estimated", True)
    assert record.output_tokens == 2


def test_it_ends_a_response_of_which_nothing_came_as_a_failed_one(make: Make) -> None:
    model = make(RESPONSES, streamed=True)
    model.script(stream(3.5, *numbered(failed("invalid_prompt"))))
    answer = model.ask(RESPONSES, stream=True, instructions="Be brief.", metadata={"a": "b"})
    assert answer.status == 200
    assert last_error(RESPONSES, answer)["code"] == "invalid_prompt"
    whole = answer.events()[-1]["response"]
    assert (whole["model"], whole["instructions"], whole["metadata"]) == (model.name, "Be brief.", {"a": "b"})
    assert whole["output"] == []
    assert model.record(answer).cost == 0


@pytest.mark.parametrize("spared", [False, True])
def test_it_bills_what_a_plain_failed_response_used(make: Make, spared: bool) -> None:
    model = make(RESPONSES)
    model.script(error_body(RESPONSES, "server_error", usage=True))
    answer = model.ask(RESPONSES, spared=spared)
    record = model.record(answer)
    assert SECRET not in answer.body.decode()
    assert record.usage_source == "provider"
    if spared:
        assert (answer.status, record.attempts, record.input_tokens, record.output_tokens) == (200, 2, 1005, 502)
    else:
        assert (answer.status, answer.error["code"]) == (502, "server_error")
        assert (record.attempts, record.input_tokens, record.output_tokens) == (1, 1000, 500)


def test_it_counts_what_a_plain_failed_response_says(make: Make) -> None:
    model = make(RESPONSES)
    model.script(plain(response("failed", error=told("server_error"), output=SAID)))
    record = model.record(model.ask(RESPONSES))
    assert (record.status, record.usage_source) == (502, "estimated")
    assert 0 < record.output_tokens < 20


def test_it_ends_a_response_that_the_platform_stops_as_a_failed_one(prepared: Callable[[], dict[str, str]]) -> None:
    with (
        scripted_provider() as provider,
        running_platform(
            {**prepared(), **SHORT, "UPSTREAM_IDLE_TIMEOUT": "60", "GRACEFUL_TIMEOUT": "1"},
            [Served("m", [provider.base_url])],
        ) as running,
    ):
        provider.script("m", stream(*numbered(CREATED, DELTA), 30.0))
        answers: list[Answer] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                running.ask(RESPONSES, {"model": "m", "input": "hello there", "stream": True})
            )
        )
        asking.start()
        wait_until(lambda: bool(provider.calls_of("m")), "the provider to be asked")
        running.service.process.send_signal(signal.SIGTERM)
        asking.join(20)
        assert last_error(RESPONSES, answers[0])["code"] == "unavailable"
        assert running.record(answers[0]).status == 503


# 3. An error inside a 200: what it costs, who else is asked, and whose fault it is

#: Endpoints, plain and streamed.
EVERY_WAY = [(path, False) for path in ENDPOINTS] + [(path, True) for path in STREAMING]


@pytest.mark.parametrize(("path", "streamed"), EVERY_WAY)
@pytest.mark.parametrize("usage", [False, True])
def test_it_answers_a_caller_s_fault_with_a_400_and_asks_nobody_else(
    make: Make, path: str, streamed: bool, usage: bool
) -> None:
    model, code = make(path, streamed=streamed), "context_length_exceeded" if streamed else "invalid_prompt"
    model.script((first_error if streamed else error_body)(path, code, usage and path in STREAMING))
    answer = model.ask(path, spared=True, **({"stream": True} if streamed else {}))
    record = model.record(answer)
    assert (answer.status, record.status, record.error_code, record.attempts) == (400, 400, code, 1)
    assert (record.input_tokens, record.output_tokens) == ((1000, 500) if usage and path in STREAMING else (0, 0))
    assert SECRET not in answer.body.decode()
    assert (len(model.calls(spared=True)), model.spare.calls_of(model.spared)) == (1, [])


@pytest.mark.parametrize(
    ("path", "streamed", "usage"),
    [*((*way, False) for way in EVERY_WAY), *((*way, True) for way in EVERY_WAY if way[0] in STREAMING)],
)
def test_it_charges_what_an_error_inside_a_200_says_was_used(
    make: Make, path: str, streamed: bool, usage: bool
) -> None:
    model, more = make(path, streamed=streamed), {"stream": True} if streamed else {}
    model.script((first_error if streamed else error_body)(path, "server_error", usage))
    answer = model.ask(path, **more)
    record, used = model.record(answer), (1000, 500) if usage else (0, 0)
    assert (answer.status, record.status, record.error_code) == (502, 502, "server_error")
    assert (answer.json() if path[1] != "v" else answer.error)["code"] == "server_error"
    assert SECRET not in answer.body.decode()
    assert (record.input_tokens, record.output_tokens, record.cost > 0) == (*used, usage)
    assert not usage or (record.usage_source, record.attempts) == ("provider", 1)
    spared = model.ask(path, spared=True, **more)
    record = model.record(spared)
    assert (spared.status, record.status, record.attempts, record.usage_source) == (200, 200, 2, "provider")
    assert (record.input_tokens, record.output_tokens) == (used[0] + 5, used[1] + 2)


def test_it_takes_an_error_in_json_for_one_where_a_stream_was_asked_for(make: Make) -> None:
    model = make(CHAT, streamed=True)
    model.script(error_body(CHAT, "server_error"))
    answer = model.ask(CHAT, stream=True)
    assert (answer.status, answer.error["code"]) == (502, "server_error")
    assert model.record(answer).cost == 0
    assert model.ask(CHAT, stream=True, spared=True).events()[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (told(429), 503, "upstream_busy"),
        (told("429"), 503, "upstream_busy"),
        (told(400), 400, "upstream_rejected"),
        (told(500), 502, "upstream_failed"),
        (told(None, type="invalid_request_error"), 400, "upstream_rejected"),
        (told("invalid_api_key", type="invalid_request_error"), 502, "upstream_failed"),
        (told("model_not_found", type="invalid_request_error"), 502, "upstream_failed"),
        (f"Failed at {SECRET}.", 502, "upstream_failed"),
    ],
)
def test_it_takes_an_error_inside_a_200_for_the_status_that_it_stands_for(
    make: Make, error: Any, status: int, code: str
) -> None:
    model = make(CHAT)
    model.script(plain({"error": error}))
    answer = model.ask(CHAT)
    record = model.record(answer)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert (record.error_code, record.cost) == (code, 0)
    assert SECRET not in answer.body.decode()


# Those who wait, and those who ask again


def test_it_gives_a_failed_response_to_those_who_wait_for_it(make: Make) -> None:
    model = make(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA), 0.8, *numbered(failed("server_error", usage=RESPONSE_USAGE))))
    answers: list[Answer] = []
    askers = [threading.Thread(target=lambda: answers.append(model.ask(RESPONSES, stream=True))) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(model.calls()) == 1
    costs = []
    for answer in answers:
        error = last_error(RESPONSES, answer) if answer.status == 200 else answer.error
        assert error["code"] == "server_error"
        costs.append(model.record(answer).cost)
    assert sorted(costs)[:2] == [0, 0]
    assert max(costs) > 0


@pytest.mark.parametrize("path", STREAMING)
def test_it_asks_again_for_a_retry_of_a_stream_that_failed(make: Make, path: str) -> None:
    model = make(path, streamed=True)
    events = FAILURES["response.failed"] if path == RESPONSES else [chunk("Hel", path), event({"error": told("x")})]
    model.script(stream(*events), answered(path, "Hello there", is_stream=True))
    answers = [
        model.platform.ask(path, model.body(path, stream=True), headers={"Idempotency-Key": model.name})
        for _ in range(3)
    ]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, None, "true"]
    assert len(model.calls()) == 2
    assert answers[1].body.replace(answers[1].label.encode(), b"") == answers[2].body.replace(
        answers[1].label.encode(), b""
    )


# 6. Answers that are not whole


def half(path: str, reason: str | None, *, streamed: bool = False) -> Reply:
    """Make an answer that breaks off: a choice ends by this reason, a response is not completed."""
    if path == RESPONSES:
        whole = response("in_progress", output=SAID, usage=RESPONSE_USAGE)
        end = {"type": "response.completed", "response": whole}
        return stream(*numbered(CREATED, DELTA, end)) if streamed else plain(whole)
    if streamed:
        return stream(chunk("Half a", path), chunk("", path, reason), event("[DONE]"))
    choice = {"index": 0, "text": "Half a", "message": {"content": "Half a"}, "finish_reason": reason}
    return plain({"choices": [choice], "usage": CHAT_USAGE})


@pytest.mark.parametrize(
    ("path", "reason", "streamed"),
    [
        *((path, reason, False) for path in (CHAT, COMPLETIONS) for reason in ("error", None)),
        *((path, None, False) for path in (RESPONSES, "/chat", "/summarize")),
        *((path, "error", True) for path in (CHAT, COMPLETIONS)),
        *((path, None, True) for path in (CHAT, RESPONSES, "/chat")),
    ],
)
def test_it_caches_no_answer_that_is_not_whole(make: Make, path: str, reason: str | None, streamed: bool) -> None:
    model = make(path, streamed=streamed)
    model.script(half(path, reason, streamed=streamed))
    answers = [model.ask(path, **({"stream": True} if streamed else {})) for _ in range(2)]
    assert [(answer.status, answer.headers["x-cache"]) for answer in answers] == [(200, "MISS")] * 2
    assert len(model.calls()) == 2
    if not streamed:
        record = model.record(answers[1])
        assert (record.input_tokens, record.output_tokens, record.usage_source) == (1000, 500, "provider")


@pytest.mark.parametrize("path", ["/chat", "/summarize"])
def test_it_answers_half_a_text_with_an_error(make: Make, path: str) -> None:
    model = make(path)
    model.script(half(path, "error"))
    answers = [model.ask(path) for _ in range(2)]
    assert [(answer.status, answer.json()["code"]) for answer in answers] == [(502, "upstream_failed")] * 2
    assert len(model.calls()) == 2
    record = model.record(answers[0])
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (1000, 500, "provider")


@pytest.mark.parametrize("is_one_piece", [True, False])
def test_it_ends_half_a_text_of_chat_with_an_error(make: Make, is_one_piece: bool) -> None:
    model = make("/chat", streamed=True)
    usage = event({"choices": [], "usage": CHAT_USAGE})
    events = [chunk("Half a"), chunk("", CHAT, "error"), usage, event("[DONE]")]
    model.script(stream(b"".join(events)) if is_one_piece else stream(*events))
    answer = model.ask("/chat", stream=True)
    assert answer.events()[0] == {"text": "Half a"}
    assert last_error("/chat", answer)["code"] == "upstream_failed"
    record = model.record(answer)
    assert (record.status, record.input_tokens, record.output_tokens) == (502, 1000, 500)


@pytest.mark.parametrize(("path", "streamed"), EVERY_WAY)
def test_it_caches_a_whole_answer(make: Make, path: str, streamed: bool) -> None:
    model, more = make(path, streamed=streamed), {"stream": True} if streamed else {}
    model.script(answered(path, "Hello there", is_stream=streamed))
    assert [model.ask(path, **more).headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]


# What is no answer is none, and no usage is told too early.

COMMENTS = b": processing\n\n" * 3
EARLY = {"prompt_tokens": 500, "completion_tokens": 1}
NO_ANSWER = {
    "page": f"<html>\n<body>{SECRET}</body>\n\n".encode(),
    "comments": COMMENTS,
    "late page": COMMENTS + f"Bad gateway: {SECRET}\n\n".encode(),
    "no JSON": COMMENTS + f"data: {SECRET}\n\n".encode(),
    "error": COMMENTS + event({"error": {"message": SECRET}}),
}


@pytest.mark.parametrize("name", NO_ANSWER)
def test_it_takes_what_is_no_event_for_a_provider_s_failure_and_asks_the_next(make: Make, name: str) -> None:
    model = make(CHAT, streamed=True)
    model.script(Reply(headers={"Content-Type": "text/event-stream"}, body=NO_ANSWER[name]))
    failed, answered = model.ask(CHAT, stream=True), model.ask(CHAT, stream=True, spared=True)
    assert (failed.status, failed.error["code"]) == (502, "upstream_failed")
    assert (answered.status, said(answered.body.decode()), answered.events()[-1]) == (200, "Hello there", "[DONE]")
    assert SECRET.encode() not in failed.body + answered.body
    first, second = (model.record(answer) for answer in (failed, answered))
    assert (first.status, first.usage_source) == (502, "" if name == "error" else "bound")
    assert (second.status, second.attempts) == (200, 2)
    assert second.usage_source == ("provider" if name == "error" else "bound")


def test_it_passes_no_garbage_on_in_the_middle(make: Make) -> None:
    model = make(CHAT)
    model.script(stream(chunk("Hello"), f"Bad gateway: {SECRET}\n\n".encode()))
    answer = model.ask(CHAT, stream=True)
    assert last_error(CHAT, answer)["code"] == "upstream_failed"
    assert (said(answer.body.decode()), SECRET.encode() in answer.body) == ("Hello", False)
    record = model.record(answer)
    assert (record.usage_source, record.is_partial) == ("estimated", True)


def test_it_charges_what_came_where_usage_was_told_too_early(make: Make) -> None:
    model = make(CHAT)
    model.script(stream(chunk("Hello ", usage=EARLY), chunk("there, who"), chunk(" goes by?")))
    answer = model.ask(CHAT, stream=True)
    record, text = model.record(answer), "Hello there, who goes by?"
    assert said(answer.body.decode()) == text
    assert (record.usage_source, record.is_partial) == ("estimated", True)
    assert record.input_tokens == EARLY["prompt_tokens"]
    assert record.output_tokens == count_tokens([text], model="m") > EARLY["completion_tokens"]


def test_it_waits_for_the_first_event_past_comments(make: Make) -> None:
    model = make(CHAT)
    model.script(stream(COMMENTS, chunk("Hello"), event("[DONE]")))
    answer = model.ask(CHAT, stream=True)
    assert (answer.status, said(answer.body.decode()), model.record(answer).status) == (200, "Hello", 200)
