"""What a provider is sent: the address, the secret and the headers of its settings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference.catalog import Route
from inference.fake_provider import FakeUpstream
from inference.prices import Rates
from inference.upstream.client import Upstream
from inference.upstream.errors import AttemptFailed


@pytest.fixture
def route(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> Route:
    """Lead to the fake provider."""
    fake.reset()
    monkeypatch.setenv("BLUE_API_KEY", "blue-secret")
    return Route(
        deployment_id=1,
        name="blue/small",
        provider="blue",
        base_url=fake.base_url,
        api_key_variable="BLUE_API_KEY",
        extra_headers=(("OpenAI-Project", "green"), ("Connection", "close"), ("User-Agent", "ours")),
        upstream_name="small",
        output_parameter="max_completion_tokens",
        order=0,
        weight=1,
        rates=Rates(),
    )


def sent(fake: FakeUpstream, route: Route) -> dict[str, str]:
    """Ask once, and return the headers that arrived."""
    Upstream().call(route, "/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, seconds=5)
    (request,) = fake.requests
    return {name.lower(): text for name, text in request.headers.items()}


def test_it_sends_the_secret_and_the_headers_of_the_settings(fake: FakeUpstream, route: Route) -> None:
    headers = sent(fake, route)
    assert headers["authorization"] == "Bearer blue-secret"
    assert (headers["content-type"], headers["openai-project"], headers["user-agent"]) == (
        "application/json",
        "green",
        "ours",
    )
    assert headers.get("connection") != "close"


def test_it_sends_no_authorization_without_a_secret(fake: FakeUpstream, route: Route) -> None:
    assert "authorization" not in sent(fake, replace(route, api_key_variable=""))


def test_a_line_break_in_a_secret_is_a_failure_of_ours(route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUE_API_KEY", "blue\r\nx-other: 1")
    with pytest.raises(AttemptFailed):
        Upstream().models(route, seconds=5)


def test_it_encodes_hosts_and_paths(route: Route) -> None:
    prepared = Upstream()._prepared(replace(route, base_url="https://bücher.example:8443/größe/v1/"), "/models", "get")
    assert prepared.url == "https://xn--bcher-kva.example:8443/gr%C3%B6%C3%9Fe/v1/models"
