"""Azure's style: a path for each deployment, a version, and a key header of its own."""

from __future__ import annotations

import pytest

from inference.catalog import Rates, Route
from inference.surfaces.chat import chat_surface
from inference.upstream.client import Client
from inference.upstream.fake import FakeUpstream

SECRET = "azure-secret"


@pytest.fixture
def route(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> Route:
    """Lead to the fake provider in Azure's style."""
    fake.reset()
    monkeypatch.setenv("BLUE_API_KEY", SECRET)
    return Route(
        deployment_id=1,
        name="blue/mine",
        provider="blue",
        base_url=fake.base_url.removesuffix("/v1"),
        api_key_variable="BLUE_API_KEY",
        extra_headers=(),
        upstream_name="mine",
        output_parameter="max_completion_tokens",
        order=0,
        weight=1,
        rates=Rates(),
        is_azure=True,
        api_version="2024-10-21",
    )


def test_it_calls_the_deployments_own_path_with_the_version_and_the_key(fake: FakeUpstream, route: Route) -> None:
    body = Client().call(route, "/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, seconds=5)
    assert body["choices"]
    (request,) = fake.requests
    # The fake refuses a request of this style that has no api-version.
    assert request.path == "/openai/deployments/mine/chat/completions"
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["api-key"] == SECRET
    assert "authorization" not in headers


def test_it_streams(fake: FakeUpstream, route: Route) -> None:
    payload = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    stream = Client().open_stream(route, "/chat/completions", payload, seconds=5, opens=chat_surface.opens_stream)
    assert b"[DONE]" in stream.first + b"".join(stream)
    assert fake.requests[0].path == "/openai/deployments/mine/chat/completions"
