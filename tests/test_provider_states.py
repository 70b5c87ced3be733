"""Providers that fail: what a call's record says of one that was not asked, and what operators are shown of it.

An alert and the table of breakers never contradict each other on one page. What nobody calls is probed, without a model
call, until it is well again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from launch.environment import free_port
from tests.running import (
    Answer,
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    chat,
    completion,
    running_platform,
    scripted_provider,
    wait_until,
)

CHAT = "/v1/chat/completions"
FAILED = Reply(500, body=b'{"error": {"message": "no"}}')
#: Models whose provider is not there, each at a port of its own.
AWAY = ("away-0", "away-1", "away-2", "away-3", "away-spare", "away-unasked")
#: Models of providers of their own.
OWN = ("default-model", "busy", "full", "broken", "idle", "only-calls-fail", "locked")
FURTHER: dict[str, dict[str, Any]] = {
    "full": {"requests_per_minute": 1},
    "locked": {"api_key_variable": "NOWHERE_API_KEY"},
}


@dataclass
class Scene:
    """A platform, the keys of two accounts, and the providers or their ports by model."""

    platform: Platform
    other: str
    providers: dict[str, ScriptedProvider] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def ask(self, model: str, *, path: str = CHAT, stream: bool = False, key: str | None = None) -> Answer:
        body = {"model": model, "message": "hello"} if path == "/chat" else chat(model)
        return self.platform.ask(path, {**body, **({"stream": True} if stream else {})}, key=key)

    def failures(self, answer: Answer) -> str:
        """Return what the record of a request says of failures."""
        return self.platform.record(answer).failures

    def row(self, model: str) -> str:
        """Return what the dashboard's table shows of a model's deployment."""
        (found,) = [row for row in self.platform.admin.page("/admin/").rows if row.startswith(f"{model} provider-")]
        return found

    def has_alert(self, told: str) -> bool:
        """Say whether the dashboard shows an open alert with these words above its form."""
        return told in self.platform.admin.page("/admin/").words.partition("Auto-refresh")[0]

    def shown_in_list(self, model: str) -> str:
        """Return what the admin's list of deployments shows of a model's."""
        _, found = self.platform.admin.page(f"/admin/inference/deployment/?q={model}").rows
        return found

    def open_breaker(self, model: str) -> None:
        """Let calls of two accounts fail until no call goes to a model's one deployment."""
        self.providers[model].script(model, FAILED)
        for key in (None, self.other) * 2:
            if self.ask(model, key=key).status == 503:
                return
        assert self.ask(model).status == 503

    def put_aside(self, model: str) -> None:
        """Let a call find out that nobody is there."""
        assert self.ask(model).status == 502
        assert self.ask(model).status == 503


@pytest.fixture(scope="module")
def scene(prepared: Callable[[], dict[str, str]]) -> Iterator[Scene]:
    """Run a platform that makes one call to a provider at once."""
    own = {"OPENAI_MODEL": "default-model", "UPSTREAM_CONCURRENCY": "1", "UPSTREAM_QUEUE_SECONDS": "0.2"}
    ports = {model: free_port() for model in AWAY}
    with ExitStack() as stack:
        providers = {model: stack.enter_context(scripted_provider()) for model in OWN}
        for model, provider in providers.items():
            provider.script(model, completion("Hello"))
        urls = {model: [f"http://127.0.0.1:{port}/v1"] for model, port in ports.items()}
        urls["away-spare"].append(providers["broken"].base_url)
        urls.update({model: [provider.base_url] for model, provider in providers.items()})
        served = [Served(model, each, provider=FURTHER.get(model, {})) for model, each in urls.items()]
        served.append(Served("nowhere", []))
        platform = stack.enter_context(running_platform({**prepared(), **own}, served))
        scene = Scene(platform, platform.add([], account="other"), providers, ports)
        scene.open_breaker("only-calls-fail")  # which is not probed for a quarter of a minute
        yield scene


@pytest.mark.parametrize(
    ("model", "path", "stream"),
    [("away-0", CHAT, False), ("away-1", CHAT, True), ("away-2", "/chat", False), ("away-3", "/chat", True)],
)
def test_it_says_since_when_a_provider_is_not_asked_and_why(scene: Scene, model: str, path: str, stream: bool) -> None:
    assert scene.ask(model).status == 502
    refused = scene.ask(model, path=path, stream=stream)
    assert refused.status == 503
    record = scene.platform.record(refused)
    assert (record.status, record.error_code, record.attempts) == (503, "upstream_busy", 0)
    told = rf"provider provider-0-{scene.ports[model]} is not asked since \d\d:\d\d UTC: connection refused"
    assert re.fullmatch(told, record.failures)


def test_it_says_since_when_a_deployment_is_not_asked_and_why(scene: Scene) -> None:
    scene.open_breaker("broken")
    told = r"deployment provider-0-\d+/broken is not asked since \d\d:\d\d UTC: http 500"
    assert re.fullmatch(told, scene.failures(scene.ask("broken")))


def test_it_says_so_beside_the_failure_of_another(scene: Scene) -> None:
    not_asked = rf"provider provider-0-{scene.ports['away-spare']} is not asked since \d\d:\d\d UTC: connection refused"
    scene.providers["broken"].script("away-spare", completion("Hello"))
    assert scene.ask("away-spare").status == 200
    assert re.fullmatch(not_asked, scene.failures(scene.ask("away-spare")))
    scene.providers["broken"].script("away-spare", Reply(401, body=b"{}"))
    assert re.fullmatch(rf"{not_asked}; provider-1-\d+/away-spare: http 401", scene.failures(scene.ask("away-spare")))


def test_it_says_that_a_provider_has_no_room(scene: Scene) -> None:
    assert scene.ask("full").status == 200
    told = r"provider provider-0-\d+ has no room: requests_per_minute"
    assert re.fullmatch(told, scene.failures(scene.ask("full")))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_it_says_that_a_model_has_no_deployment(scene: Scene, stream: bool) -> None:
    record = scene.platform.record(scene.ask("nowhere", stream=stream))
    assert (record.status, record.error_code, record.model) == (502, "upstream_failed", "nowhere")
    assert record.failures == "no deployment of the model is enabled, at a provider that is"


def test_it_says_that_the_process_is_full(scene: Scene) -> None:
    scene.providers["busy"].script("busy", Reply(body=[1.5, b"{}"]))
    slow = threading.Thread(target=scene.ask, args=["busy"])
    slow.start()
    wait_until(lambda: bool(scene.providers["busy"].calls), "a call to take the place")
    refused = scene.ask("default-model")
    slow.join()
    assert scene.failures(refused) == "this process makes 1 calls at once (UPSTREAM_CONCURRENCY)"


def test_it_probes_what_nobody_calls_until_it_is_there(scene: Scene) -> None:
    model, port = "away-unasked", scene.ports["away-unasked"]
    told = f"provider-0-{port} is down for {model}"
    scene.put_aside(model)
    assert re.search(r"Down: no calls since [\d: -]+ UTC: connection refused", scene.row(model))
    wait_until(
        lambda: bool(scene.platform.manage("worker", "--once", "watch")) and scene.has_alert(told), "an alert", 30
    )
    assert "OK" not in scene.row(model)
    with scripted_provider(port) as back:
        back.listing = FAILED
        wait_until(lambda: "Trying" in scene.row(model), "a connection to be made", 60)
        assert scene.has_alert(told)
        back.listing = None
        wait_until(lambda: "✓ OK" in scene.row(model), "it to be well again", 60)
        assert not scene.has_alert(told), "before the watch has looked again"
        assert back.calls == []
        back.script(model, completion("Hello"))
        assert scene.ask(model).status == 200


def test_it_probes_a_deployment_that_failed(scene: Scene) -> None:
    model, provider = "idle", scene.providers["idle"]
    provider.listing = FAILED
    scene.open_breaker(model)
    number = len(provider.calls)
    assert "Down: no calls" in scene.row(model)
    assert "HTTP 500" in scene.row(model)
    scene.platform.manage("worker", "--once", "watch")
    assert scene.has_alert(f"is down for {model}")
    wait_until(lambda: provider.listings > 0, "a probe", 20)
    wait_until(lambda: "Trying" in scene.row(model), "the dashboard to say so")
    provider.listing = None
    wait_until(lambda: "✓ OK" in scene.row(model), "it to be well again", 40)
    assert len(provider.calls) == number, "no model was called for it"
    assert not scene.has_alert(f"is down for {model}")
    assert "OK" in scene.shown_in_list(model)


def test_it_takes_a_list_of_models_for_no_proof_where_only_calls_fail(scene: Scene) -> None:
    model, provider = "only-calls-fail", scene.providers["only-calls-fail"]
    wait_until(lambda: provider.listings > 0, "a probe", 20)
    wait_until(lambda: "Trying" in scene.row(model), "the dashboard to say so")
    assert "Trying" in scene.shown_in_list(model)
    provider.script(model, completion("Hello"))
    wait_until(lambda: scene.ask(model).status == 200, "a trial", 20)
    assert "✓ OK" in scene.row(model)


def test_it_shows_a_provider_whose_list_of_models_does_not_come(scene: Scene) -> None:
    model, provider, told = "default-model", scene.providers["default-model"], "The default model's provider does not"
    assert "✓ OK" in scene.row(model)
    provider.listing = FAILED
    scene.platform.manage("worker", "--once", "watch")
    provider.listing = None
    assert scene.has_alert(told)
    assert "does not return its list of models" in scene.row(model)
    assert "OK" not in scene.row(model)
    scene.platform.manage("worker", "--once", "watch")
    assert not scene.has_alert(told)
    assert "✓ OK" in scene.row(model)


def test_it_shows_a_provider_without_its_secret(scene: Scene) -> None:
    assert "NOWHERE_API_KEY is not set" in scene.row("locked")
    assert "OK" not in scene.row("locked")
    assert "Secret missing" in scene.shown_in_list("locked")
    assert "missing" in scene.platform.admin.page("/admin/inference/provider/?q=provider-0").words
