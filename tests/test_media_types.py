"""Header names and media types have no case, and a provider's stream is known by what it is, not by its label."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.running import (
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

MODEL = "labelled"
CHAT = "/v1/chat/completions"
NO_STORE = {"Cache-Control": "no-store"}
CHUNK = event({"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]})


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run the platform."""
    with running_platform(prepared(), [Served(MODEL, [provider.base_url])]) as running:
        yield running


@pytest.mark.parametrize(
    "label", ["Text/Event-Stream; Charset=UTF-8", "text/plain", "application/octet-stream", "application/json", ""]
)
@pytest.mark.parametrize("path", [CHAT, "/chat"])
def test_it_knows_a_stream_by_its_events(platform: Platform, provider: ScriptedProvider, label: str, path: str) -> None:
    provider.script(MODEL, Reply(headers={"CONTENT-TYPE": label}, body=[b": working\n\n", CHUNK, event("[DONE]")]))
    body = chat(MODEL, stream=True) if path == CHAT else {"message": "hello", "model": MODEL, "stream": True}
    answer = platform.ask(path, body, headers=NO_STORE)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert b"Hello" in answer.body
    assert platform.record(answer).status == 200


@pytest.mark.parametrize("page", [b"<html>\n<body>Bad gateway</body>\n\n", b"Bad gateway\n\n"])
def test_it_takes_no_page_for_a_stream_whatever_its_label(
    platform: Platform, provider: ScriptedProvider, page: bytes
) -> None:
    provider.script(MODEL, Reply(headers={"Content-Type": "text/event-stream"}, body=[page]))
    assert platform.ask(CHAT, chat(MODEL, stream=True), headers=NO_STORE).status == 502


@pytest.mark.parametrize("label", ["Application/JSON", "text/plain", ""])
def test_it_reads_a_plain_answer_under_any_label(platform: Platform, provider: ScriptedProvider, label: str) -> None:
    sound = completion("Hello")
    provider.script(MODEL, Reply(headers={"content-TYPE": label}, body=sound.body))
    answer = platform.ask(CHAT, chat(MODEL), headers=NO_STORE)
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "Hello")


@pytest.mark.parametrize("label", ["APPLICATION/JSON", "Application/Json; Charset=UTF-8"])
def test_it_takes_a_caller_s_media_type_in_any_case(platform: Platform, provider: ScriptedProvider, label: str) -> None:
    provider.script(MODEL, completion("Hello"))
    body = json.dumps({"message": "hello", "model": MODEL}).encode()
    assert platform.ask("/chat", body, headers={"Content-Type": label, **NO_STORE}).status == 200


def test_it_streams_to_one_who_accepts_events_in_any_case(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, Reply(body=[CHUNK, event("[DONE]")]))
    headers = {"ACCEPT": "Text/Event-Stream", **NO_STORE}
    answer = platform.ask("/chat", {"message": "hello", "model": MODEL}, headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")


def test_it_shows_a_page_to_a_browser_in_any_case(platform: Platform) -> None:
    assert platform.ask("/", headers={"Accept": "Text/HTML"}).headers["content-type"].startswith("text/html")


def test_it_honours_a_provider_s_headers_in_any_case(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, Reply(429, {"RETRY-AFTER": "17"}, b"{}"))
    answer = platform.ask(CHAT, chat(MODEL), headers=NO_STORE)
    assert (answer.status, answer.headers["retry-after"]) == (503, "17")
