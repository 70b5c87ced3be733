"""The official Node.js client, unchanged, against the running platform."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.fake_provider import FakeUpstream
from tests.catalogue import Served, set_up
from tests.npm import npm_install, run_node
from tests.processes import wait_until
from tests.servers import aiapi_server, fake_upstream

MODEL, EMBEDDER = "node-chat", "node-embedder"


@pytest.fixture(scope="module")
def own_fake() -> Iterator[FakeUpstream]:
    """Run a provider of this module's own."""
    with fake_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def told(own_fake: FakeUpstream, prepared: Callable[[], dict[str, str]]) -> dict[str, Any]:
    """Run the client's program once, and return what it tells."""
    folder = npm_install("node")
    with aiapi_server(prepared(), prepare=False) as service:
        models = [Served(MODEL, [own_fake.base_url]), Served(EMBEDDER, [own_fake.base_url], kind="embedding")]
        key = set_up(service, models, requests_per_minute=1000)
        done = run_node("node", ["client.mjs", f"{service.base_url}/v1", key, MODEL, EMBEDDER], folder)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: not own_fake.totals()["running"], "the calls to end")
        said: dict[str, Any] = json.loads(done.stdout)
        return said


def test_it_answers(told: dict[str, Any]) -> None:
    assert told["plain"] == told["final"] == told["streamed"] == "You said: hello there"
    assert told["usage"] == told["streamedUsage"] == 6
    assert told["requestId"] is True
    assert told["remaining"] is True


def test_it_calls_tools_and_fills_schemas(told: dict[str, Any]) -> None:
    assert told["tool"] == {"name": "add", "arguments": '{"a": 0}'}
    assert told["parsed"] == {"answer": "hello there"}


def test_it_embeds(told: dict[str, Any]) -> None:
    assert told["vectors"] == [64, 64]


def test_it_makes_responses(told: dict[str, Any]) -> None:
    assert told["response"] == told["completion"] == "You said: hello there"
    assert told["events"][0] == "response.created"
    assert told["events"][-1] == "response.completed"


def test_it_lists_models(told: dict[str, Any]) -> None:
    assert {MODEL, EMBEDDER} <= set(told["models"])
    assert told["model"] == MODEL


def test_it_raises_the_client_s_own_errors(told: dict[str, Any]) -> None:
    errors = told["errors"]
    assert {name: (error["name"], error["status"]) for name, error in errors.items()} == {
        "key": ("AuthenticationError", 401),
        "model": ("NotFoundError", 404),
        "parameter": ("BadRequestError", 400),
        "path": ("NotFoundError", 404),
    }
    assert errors["key"]["code"] == "invalid_api_key"
    assert errors["model"]["code"] == "model_not_found"
    assert (errors["parameter"]["param"], errors["parameter"]["code"]) == ("temperature", "decimal_above_max_value")


def test_it_may_stop_listening(told: dict[str, Any]) -> None:
    assert told["aborted"] == 1
