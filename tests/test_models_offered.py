"""/v1/models lists what can answer, and the playground offers each endpoint the models of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import chromium
from tests.pages import watch
from tests.running import Platform, Served, completion, running_platform, scripted_provider

__all__ = ["chromium"]

ANSWERING = ["beta-chat", "delta-chat", "gamma-embedder"]
#: Models that can't answer, by what they lack.
SILENT = ["without-deployment", "with-deployment-off", "with-provider-off"]


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run the platform with models of both kinds, some of which have nobody to answer."""
    with scripted_provider() as provider:
        for model in ANSWERING:
            provider.script(model, completion(f"Hello from {model}"))
        off = "http://127.0.0.1:9/v1"
        served = [
            Served("beta-chat", [off, provider.base_url], provider={"is_enabled": True}),
            Served("delta-chat", [provider.base_url]),
            Served("gamma-embedder", [provider.base_url], kind="embedding"),
            Served("without-deployment", []),
            Served("with-deployment-off", [provider.base_url], deployment={"is_enabled": False}),
            Served("with-provider-off", ["http://127.0.0.1:7/v1"], provider={"is_enabled": False}),
        ]
        with running_platform(prepared(), served, models=[*ANSWERING, *SILENT]) as running:
            yield running


def listed(platform: Platform, key: str | None = None) -> list[str]:
    """List the models that a key is told of."""
    return [model["id"] for model in platform.ask("/v1/models", key=key).json()["data"]]


def test_it_lists_only_what_can_answer(platform: Platform) -> None:
    assert listed(platform) == ANSWERING


def test_it_lists_only_what_the_tier_allows(platform: Platform) -> None:
    narrow = platform.add([], account="narrow", models=["delta-chat", "with-deployment-off"])
    assert listed(platform, narrow) == ["delta-chat"]


@pytest.mark.parametrize("name", [*ANSWERING, *SILENT])
def test_it_shows_one_model_if_it_lists_it(platform: Platform, name: str) -> None:
    shown = platform.ask(f"/v1/models/{name}")
    if name in ANSWERING:
        assert (shown.status, shown.json()["id"]) == (200, name)
    else:
        assert (shown.status, shown.error["code"]) == (404, "model_not_found")


def offered(page: Page) -> list[str]:
    """List the models that the form offers."""
    return [text for text in page.locator("#model option").all_inner_texts() if text != "Default"]


def test_it_offers_each_endpoint_its_kind_of_model(platform: Platform, page: Page) -> None:
    watched = watch(page)
    page.goto(f"{platform.service.base_url}/playground/")
    page.fill("#key", platform.key)
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("2 models to choose from")
    for endpoint in page.locator("#endpoint option").all_inner_texts():
        page.select_option("#endpoint", endpoint)
        assert offered(page) == ["beta-chat", "delta-chat"], endpoint
    assert not watched.complaints


def test_it_keeps_the_chosen_model_from_one_endpoint_to_the_next(platform: Platform, page: Page) -> None:
    page.goto(f"{platform.service.base_url}/playground/")
    page.fill("#key", platform.key)
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("to choose from")
    page.select_option("#model", "delta-chat")
    for endpoint in ("/v1/chat/completions", "/summarize", "/chat"):
        page.select_option("#endpoint", endpoint)
        assert page.input_value("#model") == "delta-chat"
    page.uncheck("#stream")
    page.click("#send")
    expect(page.locator("#answer")).to_contain_text("Hello from delta-chat")
