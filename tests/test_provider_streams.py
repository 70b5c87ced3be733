"""What a provider says inside an answer of status 200: its errors, its failed responses, ends that are none."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

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
    wait_until,
)

SECRET = "sk-internal-of-the-provider"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
STREAMED = (CHAT, COMPLETIONS, RESPONSES, "/chat")
PLAIN = (*STREAMED, "/summarize", EMBEDDINGS)
IDLE_SECONDS = 2.0
SETTINGS = {
    "UPSTREAM_IDLE_TIMEOUT": str(IDLE_SECONDS),
    "UPSTREAM_TIMEOUT": "8",
    "STREAM_FIRST_BYTE_SECONDS": "1.5",
    "GRACEFUL_TIMEOUT": "1",
}
#: Of what a provider tells in the two ways of OpenAI's endpoints: 1,000 tokens in, 500 out.
CHAT_USAGE = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
RESPONSE_USAGE = {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500}
NO_STORE = {"Cache-Control": "no-store"}
#: So many models take turns: one whose provider failed is asked again once its breaker lets it be.
MODELS = {"chat": 8, "embedding": 2}


@dataclass
class Model:
    """A model that is one test's own for its time: alone, and with a sound spare. `text` is what no other test asks."""

    platform: Platform
    provider: ScriptedProvider
    spare: ScriptedProvider
    alone: str
    spared: str
    text: str

    def script(self, *replies: Reply) -> None:
        """Set what the provider answers; the spare answers soundly."""
        self.provider.script(self.alone, *replies)
        self.provider.script(self.spared, *replies)

    def ask(self, path: str, *, spared: bool = False, **more: Any) -> Answered:
        """Ask one endpoint."""
        return self.platform.ask(path, self.body(path, self.spared if spared else self.alone, **more))

    def body(self, path: str, model: str = "", **more: Any) -> dict[str, Any]:
        """Make a body that asks an endpoint for a short text."""
        bodies: dict[str, dict[str, Any]] = {
            CHAT: {"messages": [{"role": "user", "content": self.text}]},
            COMPLETIONS: {"prompt": self.text},
            RESPONSES: {"input": self.text},
            EMBEDDINGS: {"input": self.text},
            "/chat": {"message": self.text},
            "/summarize": {"text": self.text * 5},
        }
        return {"model": model or self.alone, **bodies[path], **more}

    def answers(self, path: str) -> bool:
        """Return whether the provider is asked, and answers, for both."""
        asked = [self.platform.ask(path, self.body(path, name), headers=NO_STORE) for name in (self.alone, self.spared)]
        return all((each.status, each.headers.get("x-fallback")) == (200, "false") for each in asked)

    def calls(self, *, spared: bool = False) -> int:
        """Count the calls of the provider, without the spare's."""
        return len(self.provider.calls_of(self.spared if spared else self.alone))


def stream(*events: bytes | float, **more: Any) -> Reply:
    """Make a reply of events."""
    return Reply(body=list(events), **more)


def plain(body: Any) -> Reply:
    """Make a reply of JSON."""
    return Reply(body=json.dumps(body).encode())


def chunk(text: str, path: str = CHAT, reason: str | None = None, **more: Any) -> bytes:
    """Write a chunk of a chat completion or a completion."""
    said = {"text": text} if path == COMPLETIONS else {"delta": {"content": text}}
    return event({"id": "c", "choices": [{"index": 0, **said, "finish_reason": reason}], **more})


def response(status: str, **more: Any) -> dict[str, Any]:
    """Make a response object."""
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


def sound(path: str, *, streamed: bool) -> Reply:
    """Make a sound answer: two words, as usage 5/2."""
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    if path == EMBEDDINGS:
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        return plain({"object": "list", "data": data, "model": "m", "usage": usage})
    if path == RESPONSES:
        whole = response("completed", output=SAID, usage={"input_tokens": 5, "output_tokens": 2})
        return (
            stream(*numbered(CREATED, {"type": "response.completed", "response": whole})) if streamed else plain(whole)
        )
    if not streamed and path == COMPLETIONS:
        return plain({"choices": [{"index": 0, "text": "Hello there", "finish_reason": "stop"}], "usage": usage})
    if not streamed:
        return completion("Hello there", usage=usage)
    last = event({"id": "c", "choices": [], "usage": usage})
    return stream(chunk("Hello there", path), chunk("", path, "stop"), last, event("[DONE]"))


def last_error(path: str, answer: Answered) -> dict[str, Any]:
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
def providers() -> Iterator[tuple[ScriptedProvider, ScriptedProvider]]:
    """Run a provider that does as each test says, and a spare."""
    with scripted_provider() as provider, scripted_provider() as spare:
        yield provider, spare


@pytest.fixture(scope="module")
def platform(
    prepared: Callable[[], dict[str, str]], providers: tuple[ScriptedProvider, ScriptedProvider]
) -> Iterator[Platform]:
    """Run the platform with short waits, and as many models as tests."""
    provider, spare = (each.base_url for each in providers)
    served = [
        Served(f"{kind}{number}{name}", urls, kind=kind)
        for kind, many in MODELS.items()
        for number in range(many)
        for name, urls in (("", [provider]), ("-spared", [provider, spare]))
    ]
    with running_platform({**prepared(), **SETTINGS}, served, cache_any_temperature=True) as running:
        yield running


NUMBERS = count()


@pytest.fixture
def make_model(platform: Platform, providers: tuple[ScriptedProvider, ScriptedProvider]) -> Callable[..., Model]:
    """Return what gives a model whose deployments can be called; its spare answers an endpoint soundly."""
    provider, spare = providers

    def make(path: str, *, streamed: bool = False) -> Model:
        kind, number = "embedding" if path == EMBEDDINGS else "chat", next(NUMBERS)
        alone = f"{kind}{number % MODELS[kind]}"
        model = Model(platform, provider, spare, alone, f"{alone}-spared", f"hello there, number {number}")
        asked = EMBEDDINGS if kind == "embedding" else CHAT
        model.script(sound(asked, streamed=False))
        wait_until(lambda: model.answers(asked), "the model to be asked again")
        for each in providers:
            each.calls.clear()
        spare.script(model.spared, sound(path, streamed=streamed))
        return model

    return make


# 1. An end that comes twice


def test_it_takes_a_done_after_the_end_of_a_response_for_nothing(make_model: Callable[..., Model]) -> None:
    model = make_model(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA, COMPLETED), event("[DONE]")))
    headers = {"Idempotency-Key": model.text.replace(" ", "-")}
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
    record = model.platform.record(answers[0])
    assert (record.status, record.error_code, record.usage_source, record.is_partial) == (200, "", "provider", False)
    assert (record.input_tokens, record.output_tokens, model.calls()) == (1000, 500, 1)


@pytest.mark.parametrize("after", [event("[DONE]"), b"<p>Bad gateway</p>\n\n", chunk(" and more"), 5.0])
def test_it_ends_a_stream_at_its_end_whatever_follows(make_model: Callable[..., Model], after: bytes | float) -> None:
    model = make_model(CHAT, streamed=True)
    model.script(stream(chunk("Hello"), chunk("", CHAT, "stop"), event("[DONE]"), after))
    answer = model.ask(CHAT, stream=True)
    assert answer.events()[-1] == "[DONE]"
    assert answer.body.count(b"[DONE]") == 1
    assert model.platform.record(answer).status == 200


def test_it_takes_a_done_alone_for_no_end_of_a_response(make_model: Callable[..., Model]) -> None:
    model = make_model(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA), event("[DONE]")))
    answer = model.ask(RESPONSES, stream=True)
    assert last_error(RESPONSES, answer)["code"] == "upstream_failed"
    assert model.platform.record(answer).status == 502


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
def test_it_passes_a_failed_response_on_and_bills_what_it_used(
    make_model: Callable[..., Model], way: str, is_one_piece: bool
) -> None:
    model, events = make_model(RESPONSES, streamed=True), FAILURES[way]
    model.script(stream(b"".join(events)) if is_one_piece else stream(*events))
    answer = model.ask(RESPONSES, stream=True)
    assert last_error(RESPONSES, answer)["code"] == "server_error"
    assert "Hello there" in answer.body.decode()
    assert SECRET not in answer.body.decode()
    assert answer.events()[-1]["response"]["usage"] == RESPONSE_USAGE
    record = model.platform.record(answer)
    assert (record.status, record.error_code, record.usage_source) == (502, "server_error", "provider")
    assert (record.input_tokens, record.output_tokens, record.attempts) == (1000, 500, 1)


def test_it_tells_what_a_response_had_done_until_it_broke_off(make_model: Callable[..., Model]) -> None:
    model = make_model(RESPONSES, streamed=True)
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
    make_model: Callable[..., Model], code: Any, status: int, seen: str
) -> None:
    model = make_model(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA, failed(code, usage=RESPONSE_USAGE))))
    answer = model.ask(RESPONSES, stream=True)
    error = last_error(RESPONSES, answer)
    assert error["code"] == (seen or error["code"]) != "insufficient_quota"
    assert SECRET not in answer.body.decode()
    record = model.platform.record(answer)
    assert record.error_code == error["code"]
    assert record.status == status or not seen
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (1000, 500, "provider")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/chat"])
@pytest.mark.parametrize("is_later", [False, True])
def test_it_bills_what_an_error_among_chunks_says_was_used(
    make_model: Callable[..., Model], path: str, is_later: bool
) -> None:
    model = make_model(path, streamed=True)
    error, usage = {"error": told("server_error")}, {"usage": CHAT_USAGE}
    end = [event(error), event({"choices": [], **usage}), event("[DONE]")] if is_later else [event({**error, **usage})]
    model.script(stream(chunk("Hello", path), *end))
    answer = model.ask(path, stream=True)
    assert b"Hello" in answer.body
    assert SECRET not in answer.body.decode()
    assert last_error(path, answer)["code"] == "server_error"
    record = model.platform.record(answer)
    assert (record.status, record.error_code, record.usage_source) == (502, "server_error", "provider")
    assert (record.input_tokens, record.output_tokens) == (1000, 500)


@pytest.mark.parametrize("path", STREAMED)
def test_it_counts_what_came_before_an_error_that_tells_no_usage(make_model: Callable[..., Model], path: str) -> None:
    model = make_model(path, streamed=True)
    error = {**told("server_error"), "type": "error"}
    said = (
        numbered(CREATED, DELTA, error) if path == RESPONSES else [chunk("Hello there", path), event({"error": error})]
    )
    model.script(stream(*said, 5.0))  # the provider forgets to hang up
    answer = model.ask(path, stream=True)
    assert last_error(path, answer)["code"] == "server_error"
    record = model.platform.record(answer)
    assert (record.usage_source, record.is_partial, record.output_tokens) == ("estimated", True, 2)
    assert 0 < record.input_tokens < 50


@pytest.mark.parametrize("path", STREAMED)
def test_it_charges_nothing_for_an_error_before_any_text(make_model: Callable[..., Model], path: str) -> None:
    model = make_model(path, streamed=True)
    begin = numbered(CREATED, failed("server_error")) if path == RESPONSES else [
        event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "text": ""}]}),
        event({"error": told("server_error")}),
    ]  # fmt: skip
    model.script(stream(*begin))
    record = model.platform.record(model.ask(path, stream=True))
    assert (record.status, record.cost, record.input_tokens, record.output_tokens) == (502, 0, 0, 0)


@pytest.mark.parametrize(
    ("way", "code"), [("cut", "upstream_failed"), ("silent", "upstream_timeout"), ("garbage", "upstream_failed")]
)
def test_it_ends_a_response_that_breaks_off_as_a_failed_one(
    make_model: Callable[..., Model], way: str, code: str
) -> None:
    model = make_model(RESPONSES, streamed=True)
    ends: dict[str, list[bytes | float]] = {
        "cut": [], "silent": [8 * IDLE_SECONDS], "garbage": [b"<p>Bad gateway</p>\n\n"],
    }  # fmt: skip
    model.script(stream(*numbered(CREATED, DELTA), *ends[way], breaks_off=way == "cut"))
    answer = model.ask(RESPONSES, stream=True)
    assert last_error(RESPONSES, answer)["code"] == code
    record = model.platform.record(answer)
    assert (record.error_code, record.usage_source, record.is_partial) == (code, "estimated", True)
    assert record.output_tokens == 2


def test_it_ends_a_response_of_which_nothing_came_as_a_failed_one(make_model: Callable[..., Model]) -> None:
    model = make_model(RESPONSES, streamed=True)
    model.script(stream(2.5, *numbered(failed("invalid_prompt"))))
    answer = model.ask(RESPONSES, stream=True, instructions="Be brief.", metadata={"a": "b"})
    assert answer.status == 200
    assert last_error(RESPONSES, answer)["code"] == "invalid_prompt"
    whole = answer.events()[-1]["response"]
    assert (whole["model"], whole["instructions"], whole["metadata"]) == (model.alone, "Be brief.", {"a": "b"})
    assert whole["output"] == []
    assert model.platform.record(answer).cost == 0


@pytest.mark.parametrize("spared", [False, True])
def test_it_bills_what_a_plain_failed_response_used(make_model: Callable[..., Model], spared: bool) -> None:
    model = make_model(RESPONSES)
    model.script(error_body(RESPONSES, "server_error", usage=True))
    answer = model.ask(RESPONSES, spared=spared)
    record = model.platform.record(answer)
    assert SECRET not in answer.body.decode()
    assert record.usage_source == "provider"
    if spared:
        assert (answer.status, record.attempts, record.input_tokens, record.output_tokens) == (200, 2, 1005, 502)
    else:
        assert (answer.status, answer.error["code"]) == (502, "server_error")
        assert (record.attempts, record.input_tokens, record.output_tokens) == (1, 1000, 500)


def test_it_counts_what_a_plain_failed_response_says(make_model: Callable[..., Model]) -> None:
    model = make_model(RESPONSES)
    model.script(plain(response("failed", error=told("server_error"), output=SAID)))
    record = model.platform.record(model.ask(RESPONSES))
    assert (record.status, record.usage_source) == (502, "estimated")
    assert 0 < record.output_tokens < 20


def test_it_ends_a_response_that_the_platform_stops_as_a_failed_one(
    prepared: Callable[[], dict[str, str]],
) -> None:
    with (
        scripted_provider() as provider,
        running_platform(
            {**prepared(), **SETTINGS, "UPSTREAM_IDLE_TIMEOUT": "60"}, [Served("m", [provider.base_url])]
        ) as running,
    ):
        provider.script("m", stream(*numbered(CREATED, DELTA), 30.0))
        answers: list[Answered] = []
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


# 2. and 3. What is the caller's own fault


@pytest.mark.parametrize("path", PLAIN)
def test_it_answers_a_caller_s_fault_with_a_400_and_asks_nobody_else(
    make_model: Callable[..., Model], path: str
) -> None:
    model, code = make_model(path), "invalid_prompt"
    model.script(error_body(path, code))
    answer = model.ask(path, spared=True)
    record = model.platform.record(answer)
    assert (answer.status, record.status, record.error_code) == (400, 400, code)
    assert SECRET not in answer.body.decode()
    assert (record.attempts, record.cost, model.calls(spared=True)) == (1, 0, 1)
    assert model.spare.calls_of(model.spared) == []


@pytest.mark.parametrize("path", STREAMED)
def test_it_answers_a_caller_s_fault_in_a_first_event_with_a_400(make_model: Callable[..., Model], path: str) -> None:
    model = make_model(path, streamed=True)
    model.script(first_error(path, "context_length_exceeded", usage=True))
    answer = model.ask(path, spared=True, stream=True)
    record = model.platform.record(answer)
    assert (answer.status, record.status, record.error_code) == (400, 400, "context_length_exceeded")
    assert (record.attempts, record.input_tokens, record.output_tokens) == (1, 1000, 500)
    assert model.spare.calls_of(model.spared) == []


# 3. An error inside a 200


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("streamed", [False, True])
def test_it_charges_nothing_for_an_error_inside_a_200(
    make_model: Callable[..., Model], path: str, streamed: bool
) -> None:
    if streamed and path not in STREAMED:
        return
    model, more = make_model(path, streamed=streamed), {"stream": True} if streamed else {}
    model.script(first_error(path, "server_error") if streamed else error_body(path, "server_error"))
    answer = model.ask(path, **more)
    record = model.platform.record(answer)
    assert (answer.status, record.status, record.error_code) == (502, 502, "server_error")
    assert (answer.json() if path[1] != "v" else answer.error)["code"] == "server_error"
    assert SECRET not in answer.body.decode()
    assert (record.cost, record.input_tokens, record.output_tokens) == (0, 0, 0)
    spared = model.ask(path, spared=True, **more)
    record = model.platform.record(spared)
    assert (spared.status, record.status, record.attempts, record.usage_source) == (200, 200, 2, "provider")
    assert (record.input_tokens, record.output_tokens) == (5, 2)


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize("streamed", [False, True])
def test_it_charges_what_an_error_inside_a_200_says_was_used(
    make_model: Callable[..., Model], path: str, streamed: bool
) -> None:
    model, more = make_model(path, streamed=streamed), {"stream": True} if streamed else {}
    model.script((first_error if streamed else error_body)(path, "server_error", usage=True))
    record = model.platform.record(model.ask(path, **more))
    assert (record.status, record.usage_source, record.attempts) == (502, "provider", 1)
    assert (record.input_tokens, record.output_tokens) == (1000, 500)
    record = model.platform.record(model.ask(path, spared=True, **more))
    assert (record.status, record.usage_source, record.attempts) == (200, "provider", 2)
    assert (record.input_tokens, record.output_tokens) == (1005, 502)


def test_it_takes_an_error_in_json_for_one_where_a_stream_was_asked_for(make_model: Callable[..., Model]) -> None:
    model = make_model(CHAT, streamed=True)
    model.script(error_body(CHAT, "server_error"))
    answer = model.ask(CHAT, stream=True)
    assert (answer.status, answer.error["code"]) == (502, "server_error")
    assert model.platform.record(answer).cost == 0
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
    make_model: Callable[..., Model], error: Any, status: int, code: str
) -> None:
    model = make_model(CHAT)
    model.script(plain({"error": error}))
    answer = model.ask(CHAT)
    record = model.platform.record(answer)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert (record.error_code, record.cost) == (code, 0)
    assert SECRET not in answer.body.decode()


def test_it_charges_a_large_prompt_nothing_for_an_error_inside_a_200(make_model: Callable[..., Model]) -> None:
    model = make_model(CHAT)
    model.script(error_body(CHAT, "server_error"))
    answer = model.platform.ask(CHAT, chat(model.alone, "word " * 20_000))
    assert (answer.status, model.platform.record(answer).cost) == (502, 0)


# Those who wait, and those who ask again


def test_it_gives_a_failed_response_to_those_who_wait_for_it(make_model: Callable[..., Model]) -> None:
    model = make_model(RESPONSES, streamed=True)
    model.script(stream(*numbered(CREATED, DELTA), 0.8, *numbered(failed("server_error", usage=RESPONSE_USAGE))))
    answers: list[Answered] = []
    askers = [threading.Thread(target=lambda: answers.append(model.ask(RESPONSES, stream=True))) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert model.calls() == 1
    costs = []
    for answer in answers:
        error = last_error(RESPONSES, answer) if answer.status == 200 else answer.error
        assert error["code"] == "server_error"
        costs.append(model.platform.record(answer).cost)
    assert sorted(costs)[:2] == [0, 0]
    assert max(costs) > 0


@pytest.mark.parametrize("path", STREAMED)
def test_it_asks_again_for_a_retry_of_a_stream_that_failed(make_model: Callable[..., Model], path: str) -> None:
    model = make_model(path, streamed=True)
    events = FAILURES["response.failed"] if path == RESPONSES else [chunk("Hel", path), event({"error": told("x")})]
    model.script(stream(*events), sound(path, streamed=True))
    answers = [
        model.platform.ask(
            path, model.body(path, stream=True), headers={"Idempotency-Key": model.text.replace(" ", "-")}
        )
        for _ in range(3)
    ]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, None, "true"]
    assert model.calls() == 2
    assert answers[1].body.replace(answers[1].label.encode(), b"") == answers[2].body.replace(
        answers[1].label.encode(), b""
    )


# 6. Answers that are not whole

NOT_WHOLE = {
    "error": lambda path: plain(
        {"choices": [{"index": 0, "text": "Half a", "message": {"content": "Half a"}, "finish_reason": "error"}],
         "usage": CHAT_USAGE}
    ),
    "null": lambda path: plain(
        {"choices": [{"index": 0, "text": "Half a", "message": {"content": "Half a"}, "finish_reason": None}],
         "usage": CHAT_USAGE}
    ),
    "in_progress": lambda path: plain(response("in_progress", output=SAID, usage=RESPONSE_USAGE)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "way"),
    [(CHAT, "error"), (CHAT, "null"), (COMPLETIONS, "error"), (COMPLETIONS, "null"), (RESPONSES, "in_progress"),
     ("/chat", "null"), ("/summarize", "null")],
)  # fmt: skip
def test_it_caches_no_answer_that_is_not_whole(make_model: Callable[..., Model], path: str, way: str) -> None:
    model = make_model(path)
    model.script(NOT_WHOLE[way](path))
    answers = [model.ask(path) for _ in range(2)]
    assert [(answer.status, answer.headers["x-cache"]) for answer in answers] == [(200, "MISS")] * 2
    assert model.calls() == 2
    record = model.platform.record(answers[1])
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (1000, 500, "provider")


@pytest.mark.parametrize(("path", "reason"), [(CHAT, "error"), (CHAT, None), (COMPLETIONS, "error"), ("/chat", None)])
def test_it_caches_no_stream_that_is_not_whole(make_model: Callable[..., Model], path: str, reason: str | None) -> None:
    model = make_model(path, streamed=True)
    model.script(stream(chunk("Half a", path), chunk("", path, reason), event("[DONE]")))
    answers = [model.ask(path, stream=True) for _ in range(2)]
    assert [(answer.status, answer.headers["x-cache"]) for answer in answers] == [(200, "MISS")] * 2
    assert model.calls() == 2


def test_it_caches_no_stream_of_a_response_that_is_not_whole(make_model: Callable[..., Model]) -> None:
    model = make_model(RESPONSES, streamed=True)
    end = {"type": "response.completed", "response": response("in_progress", usage=RESPONSE_USAGE)}
    model.script(stream(*numbered(CREATED, DELTA, end)))
    assert [model.ask(RESPONSES, stream=True).headers["x-cache"] for _ in range(2)] == ["MISS", "MISS"]


@pytest.mark.parametrize("path", ["/chat", "/summarize"])
def test_it_answers_half_a_text_with_an_error(make_model: Callable[..., Model], path: str) -> None:
    model = make_model(path)
    model.script(NOT_WHOLE["error"](path))
    answers = [model.ask(path) for _ in range(2)]
    assert [(answer.status, answer.json()["code"]) for answer in answers] == [(502, "upstream_failed")] * 2
    assert model.calls() == 2
    record = model.platform.record(answers[0])
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (1000, 500, "provider")


@pytest.mark.parametrize("is_one_piece", [True, False])
def test_it_ends_half_a_text_of_chat_with_an_error(make_model: Callable[..., Model], is_one_piece: bool) -> None:
    model = make_model("/chat", streamed=True)
    usage = event({"choices": [], "usage": CHAT_USAGE})
    events = [chunk("Half a"), chunk("", CHAT, "error"), usage, event("[DONE]")]
    model.script(stream(b"".join(events)) if is_one_piece else stream(*events))
    answer = model.ask("/chat", stream=True)
    assert answer.events()[0] == {"text": "Half a"}
    assert last_error("/chat", answer)["code"] == "upstream_failed"
    record = model.platform.record(answer)
    assert (record.status, record.input_tokens, record.output_tokens) == (502, 1000, 500)


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("streamed", [False, True])
def test_it_caches_a_whole_answer(make_model: Callable[..., Model], path: str, streamed: bool) -> None:
    if streamed and path not in STREAMED:
        return
    model, more = make_model(path, streamed=streamed), {"stream": True} if streamed else {}
    model.script(sound(path, streamed=streamed))
    assert [model.ask(path, **more).headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]
