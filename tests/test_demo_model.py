"""The small model that answers where no provider is configured: how it is asked, and what it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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

LOCAL, OTHER = "smollm2-135m-instruct", "other"
SUMMARY = {"text": "The honey bee lives in colonies of up to sixty thousand insects. Most of them are workers."}


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run what serves the local model, and another."""
    with scripted_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def platform(provider: ScriptedProvider, prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run the platform as bin/run does where no provider is configured."""
    env = {**prepared(), "OPENAI_BASE_URL": "", "OPENAI_API_KEY": "", "LOCAL_MODEL_URL": provider.base_url}
    with running_platform(env, []) as platform:
        platform.manage("bootstrap")
        platform.add([Served(OTHER, [provider.base_url])], account="other")
        yield platform


@pytest.fixture
def sent(platform: Platform, provider: ScriptedProvider) -> Callable[..., Any]:
    """Return what sends a request and returns the temperature that a model got."""

    def send(path: str, body: dict[str, Any]) -> Any:
        model = body.get("model", LOCAL)
        chunk = event({"choices": [{"index": 0, "delta": {"content": "Hello."}, "finish_reason": "stop"}]})
        provider.script(model, Reply(body=[chunk, event("[DONE]")]) if body.get("stream") else completion("Hello."))
        before = len(provider.calls_of(model))
        answer = platform.ask(path, body, headers={"Cache-Control": "no-store"})
        assert answer.status == 200, answer.body
        (call,) = provider.calls_of(model)[before:]
        return call.payload.get("temperature")

    return send


@pytest.mark.parametrize("more", [{}, {"model": LOCAL}, {"stream": True}])
def test_it_asks_the_local_model_at_a_low_temperature_where_none_is_given(
    sent: Callable[..., Any], more: dict[str, Any]
) -> None:
    assert sent("/chat", {"message": "hello", **more}) <= 0.2
    if "stream" not in more:
        assert sent("/summarize", {**SUMMARY, **more}) <= 0.2


def test_it_leaves_the_temperature_of_v1_to_the_local_model(sent: Callable[..., Any]) -> None:
    assert sent("/v1/chat/completions", chat(LOCAL)) is None


@pytest.mark.parametrize("temperature", [0, 0.7, 2])
def test_it_sends_the_temperature_that_is_given(sent: Callable[..., Any], temperature: float) -> None:
    assert sent("/chat", {"message": "hello", "temperature": temperature}) == temperature
    assert sent("/v1/chat/completions", chat(LOCAL, temperature=temperature)) == temperature


def test_it_asks_other_models_as_ever(sent: Callable[..., Any]) -> None:
    assert sent("/chat", {"message": "hello", "model": OTHER}) == 0.7
    assert sent("/summarize", {**SUMMARY, "model": OTHER}) == 0.3


@pytest.mark.parametrize("path", ["/", "/playground/"])
def test_pages_call_it_a_small_demo_model(platform: Platform, path: str) -> None:
    page = platform.ask(path, headers={"Accept": "text/html"}).body.decode()
    assert LOCAL in page
    assert "small demo model" in page
