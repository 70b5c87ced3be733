"""/v1/models lists what can answer, and the playground offers each endpoint the models of its kind."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import chromium
from tests.pages import watch
from tests.running import Platform, ScriptedProvider, Served, completion

__all__ = ["chromium"]

ANSWERING = ["beta-chat", "delta-chat", "gamma-embedder"]
#: Models that can't answer, by what they lack.
SILENT = ["without-deployment", "with-deployment-off", "with-provider-off"]


@pytest.fixture(scope="module")
def key(platform: Platform, provider: ScriptedProvider) -> str:
    """Serve models of both kinds, some of which have nobody to answer; return a key that may use them all."""
    for model in ANSWERING:
        provider.script(model, completion(f"Hello from {model}"))
    at = [provider.base_url]
    served = [
        Served("beta-chat", ["http://127.0.0.1:9/v1", *at], provider={"is_enabled": True}),
        Served("delta-chat", at),
        Served("gamma-embedder", at, kind="embedding"),
        Served("without-deployment", []),
        Served("with-deployment-off", at, deployment={"is_enabled": False}),
        Served("with-provider-off", ["http://127.0.0.1:7/v1"], provider={"is_enabled": False}),
    ]
    return platform.add(served, account="offered", models=[*ANSWERING, *SILENT])


def listed(platform: Platform, key: str) -> list[str]:
    """List the models that a key is told of."""
    return [model["id"] for model in platform.ask("/v1/models", key=key).json()["data"]]


def test_it_lists_only_what_can_answer_and_the_tier_allows(platform: Platform, key: str) -> None:
    assert listed(platform, key) == ANSWERING
    narrow = platform.add([], account="narrow-list", models=["delta-chat", "with-deployment-off"])
    assert listed(platform, narrow) == ["delta-chat"]


@pytest.mark.parametrize("name", [*ANSWERING, *SILENT])
def test_it_shows_one_model_if_it_lists_it(platform: Platform, key: str, name: str) -> None:
    shown = platform.ask(f"/v1/models/{name}", key=key)
    if name in ANSWERING:
        assert (shown.status, shown.json()["id"]) == (200, name)
    else:
        assert (shown.status, shown.error["code"]) == (404, "model_not_found")


def offered(page: Page) -> list[str]:
    """List the models that the form offers."""
    return [text for text in page.locator("#model option").all_inner_texts() if text != "Default model"]


def test_it_offers_each_endpoint_its_kind_of_model(platform: Platform, key: str, page: Page) -> None:
    watched = watch(page)
    page.goto(f"{platform.service.base_url}/playground/")
    page.click("#options summary")
    page.fill("#key", key)
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("2 models to choose from")
    for endpoint in page.locator("#endpoint option").all_inner_texts():
        page.select_option("#endpoint", endpoint)
        assert offered(page) == ["beta-chat", "delta-chat"], endpoint
    assert not watched.complaints


def test_it_keeps_the_chosen_model_from_one_endpoint_to_the_next(platform: Platform, key: str, page: Page) -> None:
    page.goto(f"{platform.service.base_url}/playground/")
    page.click("#options summary")
    page.fill("#key", key)
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("to choose from")
    page.select_option("#model", "delta-chat")
    for endpoint in ("/v1/chat/completions", "/summarize", "/chat"):
        page.select_option("#endpoint", endpoint)
        assert page.input_value("#model") == "delta-chat"
    page.uncheck("#stream")
    page.click("#send")
    expect(page.locator("#answer")).to_contain_text("Hello from delta-chat")
