"""The landing page, the models, the guides and the API docs in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.catalogue import make
from tests.pages import grave_faults, watch
from tests.servers import Service

PAGES = ("/", "/models/", "/docs/quickstart/", "/docs/api/", "/docs")


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    """Make a key."""
    return make(service, [], ("reader", {}, {"key": {}}))[0].plain["key"]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 360)])
def test_it_has_no_grave_fault_in_any_width_and_light(
    chromium: Browser, service: Service, path: str, scheme: str, width: int
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    watched = watch(context.new_page())
    watched.page.goto(service.base_url + path)
    if path == "/docs":
        watched.page.locator(".opblock").first.wait_for(timeout=20_000)
    watched.page.wait_for_load_state("networkidle")
    assert watched.excess_width() <= 0
    assert watched.page.get_by_role("main").count() == 1
    assert grave_faults(watched.page) == []
    assert watched.hosts() == {f"127.0.0.1:{service.port}"}
    assert not watched.complaints
    context.close()


def test_it_shows_the_models_of_a_key_and_how_to_use_each(page: Page, service: Service, key: str) -> None:
    watched = watch(page)
    answer = {"model": "gpt-3.5-turbo", "status": 200, "first_token_ms": None}
    hit, own = {**answer, "cache": "hit", "latency_ms": 2}, {**answer, "cache": "miss", "latency_ms": 512}
    page.route("**/requests?*", lambda route: route.fulfill(json={"requests": [hit, hit, own], "next": None}))
    page.goto(f"{service.base_url}/models/")
    page.fill("#key", key)
    page.click("#use-key")
    expect(page.locator("#status")).to_have_text("1 model for this key.")
    expect(page.locator("#models tbody tr")).to_contain_text("gpt-3.5-turbo")
    expect(page.locator("#models tbody tr")).to_contain_text("512 ms")
    expect(page.locator("#code-text")).to_contain_text("/v1/chat/completions")
    page.get_by_role("link", name="Try gpt-3.5-turbo").click()
    page.wait_for_url("**/playground/**")  # and for its scripts
    page.fill("#key", key)
    page.click("#use-key")
    expect(page.locator("#model")).to_have_value("gpt-3.5-turbo")
    assert page.input_value("#endpoint") == "/v1/chat/completions"
    assert not watched.complaints
    assert watched.keeps(key) == []


def test_it_copies_the_code_of_a_guide_and_of_the_landing_page(page: Page, service: Service) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{service.base_url}/docs/quickstart/")
    page.get_by_role("button", name="Copy").nth(1).click()
    assert f"{service.base_url}/v1/chat/completions" in page.evaluate("navigator.clipboard.readText()")
    page.goto(service.base_url)
    page.click("#tab-python")
    page.click("#copy")
    assert f'base_url="{service.base_url}/v1"' in page.evaluate("navigator.clipboard.readText()")


def test_a_phone_shows_each_models_price_and_the_first_request(page: Page, service: Service) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(service.base_url)
    expect(page.locator("#code-text")).to_be_in_viewport()
    page.goto(f"{service.base_url}/models/")
    for shown in (
        page.get_by_role("link", name="Try gpt-3.5-turbo"),
        page.locator(".models tbody td:nth-child(5)").first,
    ):
        box = shown.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 390
