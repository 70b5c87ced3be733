"""Azure's style: a path for each deployment, a version, and a key header of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from openai.lib.azure import _deployments_endpoints

from inference.catalog import Route
from inference.fake_provider import FakeUpstream
from inference.prices import Rates
from inference.protocols.chat import chat_protocol
from inference.upstream.client import DEPLOYMENT_PATHS, Upstream

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


ANSWERS: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"prompt": "hi"},
    "/embeddings": {"input": "hi"},
    "/responses": {"input": "hi"},
}
DATED = {
    "/chat/completions": "/openai/deployments/mine/chat/completions",
    "/completions": "/openai/deployments/mine/completions",
    "/embeddings": "/openai/deployments/mine/embeddings",
    "/responses": "/openai/responses",
}


@pytest.mark.parametrize("path", ANSWERS)
def test_it_calls_each_endpoint_where_azure_has_it(fake: FakeUpstream, route: Route, path: str) -> None:
    """The fake answers 404 elsewhere, and to a call without api-version."""
    Upstream().call(route, path, ANSWERS[path], seconds=5)
    (request,) = fake.requests
    assert (request.path, request.body["model"]) == (DATED[path], "mine")
    assert request.headers["api-key"] == SECRET
    assert "authorization" not in request.headers


def test_it_goes_where_the_sdk_goes(route: Route) -> None:
    assert {path for path in ANSWERS if path in _deployments_endpoints} == DEPLOYMENT_PATHS


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize(
    ("base", "version"), [("", "v1"), ("", "preview"), ("/openai/v1", "v1"), ("/openai/v1/", "2024-10-21")]
)
def test_it_calls_the_v1_api_at_openai_s_own_paths(
    fake: FakeUpstream, route: Route, path: str, base: str, version: str
) -> None:
    route = replace(route, base_url=route.base_url + base, api_version=version)
    Upstream().call(route, path, ANSWERS[path], seconds=5)
    assert fake.requests[0].path == f"/openai/v1{path}"
    assert fake.requests[0].body["model"] == "mine"


def test_it_sends_no_day_to_the_v1_api(fake: FakeUpstream, route: Route) -> None:
    client, path = Upstream(), "/responses"
    dated = replace(route, base_url=route.base_url + "/openai/v1")
    assert "api-version" not in client._prepared(dated, path).url
    assert client._prepared(replace(dated, api_version="preview"), path).url.endswith("?api-version=preview")


def test_it_asks_for_the_models_of_the_resource(fake: FakeUpstream, route: Route) -> None:
    for version, path in (("2024-10-21", "/openai/models"), ("v1", "/openai/v1/models")):
        fake.reset()
        assert Upstream().list_models(replace(route, api_version=version), seconds=5) is None
        assert fake.requests[0].path == path


def test_it_writes_a_deployment_s_name_as_a_path_may_hold_it(fake: FakeUpstream, route: Route) -> None:
    Upstream().call(replace(route, upstream_name="a/b c"), "/completions", {"prompt": "hi"}, seconds=5)
    assert fake.requests[0].body["model"] == "a/b c"
    assert "/openai/deployments/a%2Fb%20c/completions" in fake.requests[0].path


def test_it_streams(fake: FakeUpstream, route: Route) -> None:
    payload = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    stream = Upstream().open_stream(route, "/chat/completions", payload, seconds=5, opens=chat_protocol.opens_stream)
    assert b"[DONE]" in stream.first + b"".join(stream)
    assert fake.requests[0].path == "/openai/deployments/mine/chat/completions"
