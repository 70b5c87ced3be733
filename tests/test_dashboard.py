"""The dashboard in a real browser, against a real server, with two days of requests and with none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, StorageState, ViewportSize, expect

from tests.pages import Watched, grave_faults, watch
from tests.servers import Service

Opener = Callable[..., Watched]
Scheme = Literal["light", "dark"]

NAME, PASSWORD = "dashboard-operator", "a password for the tests"
SETUP = f"""
from accounts.tests.factories import make_admin
make_admin("{NAME}", password="{PASSWORD}")
"""


@pytest.fixture(scope="module")
def filled(service: Service) -> Iterator[Service]:
    """Return the platform with an administrator and the product's sample data."""
    service.manage("shell", "-c", SETUP)
    service.manage("demo")
    yield service
    service.manage("demo", "--remove")


@pytest.fixture(scope="module")
def session(chromium: Browser, filled: Service) -> StorageState:
    """Log in once for all tests."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{filled.base_url}/admin/")
    page.fill("[name=username]", NAME)
    page.fill("[name=password]", PASSWORD)
    page.click("[type=submit]")
    expect(page.locator("#dashboard")).to_be_visible()
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def open_dashboard(chromium: Browser, filled: Service, session: StorageState) -> Iterator[Opener]:
    """Return a function that opens the dashboard in a window of its own; all are closed in the end."""
    contexts = []

    def opener(query: str = "", *, width: int = 1440, scheme: Scheme = "light") -> Watched:
        size: ViewportSize = {"width": width, "height": 900}
        context = chromium.new_context(viewport=size, color_scheme=scheme, storage_state=session)
        contexts.append(context)
        watched = watch(context.new_page())
        watched.page.goto(f"{filled.base_url}/admin/{query}")
        expect(watched.page.locator("#dash-health")).to_contain_text("Database")
        return watched

    yield opener
    for context in contexts:
        context.close()


def requests_shown(page: Page) -> int:
    """Read the first figure."""
    return int((page.locator(".dash-value").first.get_attribute("title") or "").replace(",", ""))


def assert_flawless(watched: Watched, service: Service) -> None:
    """Fail on complaints of the browser, other hosts, sideways scrolling and grave faults of accessibility."""
    assert watched.complaints == []
    assert watched.hosts() == {service.base_url.removeprefix("http://")}
    assert watched.excess_width() <= 0
    assert grave_faults(watched.page) == []


def test_it_says_what_to_do_where_there_is_nothing(open_dashboard: Opener, filled: Service) -> None:
    watched = open_dashboard("?range=custom&from=2020-01-01&to=2020-01-02", width=390)
    expect(watched.page.locator("#dash-head")).to_contain_text("No requests in this range")
    expect(watched.page.locator("#dash-charts")).to_be_hidden()
    assert_flawless(watched, filled)
    watched.page.click("text=Choose another range")
    expect(watched.page.locator("#dash-charts canvas")).to_have_count(6)


@pytest.mark.parametrize(
    ("width", "scheme", "name"),
    [(1440, "light", "30d"), (1440, "dark", "1h"), (390, "light", "24h"), (390, "dark", "7d")],
)
def test_it_is_flawless(open_dashboard: Opener, filled: Service, width: int, scheme: Scheme, name: str) -> None:
    watched = open_dashboard(f"?range={name}&account=acme-corp", width=width, scheme=scheme)
    expect(watched.page.locator("#dash-charts canvas")).to_have_count(6)
    watched.page.locator("#dash-charts summary").first.click()
    expect(watched.page.locator("#dash-charts table").first).to_be_visible()
    assert_flawless(watched, filled)


def test_it_filters_by_a_form_and_leads_from_a_figure_to_its_records(open_dashboard: Opener, filled: Service) -> None:
    page = open_dashboard("?range=7d").page
    everything = requests_shown(page)
    page.click("#dash-custom")
    page.fill("#dash-form [name=account]", "acme-corp")
    page.click("#dash-form [type=submit]")
    expect(page).to_have_url(re.compile(r"/admin/\?range=7d&account=acme-corp$"))
    expect(page.locator(".dash-filters summary")).to_contain_text("account acme-corp")
    assert 0 < requests_shown(page) < everything
    page.click(".dash-tiles a:has-text('Failed')")
    expect(page).to_have_url(re.compile("account=acme-corp&status=failed"))
    expect(page.locator("#result_list")).to_contain_text("502 upstream_failed")


def test_it_tells_when_the_server_is_away_and_goes_on(open_dashboard: Opener, filled: Service) -> None:
    page = open_dashboard().page
    before = requests_shown(page)
    page.route("**/admin/dashboard/**", lambda route: route.abort())
    page.click("#dash-now")
    expect(page.locator("#dash-stale")).to_contain_text("The server did not answer. The figures are from")
    assert requests_shown(page) == before
    page.unroute("**/admin/dashboard/**")
    assert filled.request("POST", "/chat", {"message": "Once more!"}, key="prod_key_456").status == 200
    filled.await_records()
    page.click("#dash-now")
    expect(page.locator("#dash-stale")).to_be_hidden()
    expect(page.locator(".dash-value").first).to_have_attribute("title", f"{before + 1:,}")


def test_it_keeps_the_choice_not_to_refresh_and_tells_when_the_session_ends(open_dashboard: Opener) -> None:
    page = open_dashboard().page
    page.uncheck("#dash-auto")
    page.reload()
    expect(page.locator("#dash-auto")).not_to_be_checked()
    page.context.clear_cookies()
    page.click("#dash-now")
    expect(page.locator("#dash-stale")).to_contain_text("You are logged out")


def test_a_click_on_a_bar_opens_the_log_of_its_time(open_dashboard: Opener) -> None:
    page = open_dashboard("?range=7d&account=acme-corp").page
    page.locator("#dash-charts canvas").first.click()
    expect(page).to_have_url(re.compile(r"/requestrecord/\?from=[^&]+Z&until=[^&]+Z&account=acme-corp"))


def test_setup_is_dismissed_with_a_click(open_dashboard: Opener) -> None:
    page = open_dashboard().page
    page.click("text=/Setup: . of 8 done/")
    page.click("text=Mark as done")
    page.click("text=/Setup: . of 8 done/")
    expect(page.locator(".dash-setup")).to_contain_text("Backup: done")
    page.click("text=Dismiss")
    expect(page.locator("#dash-state")).to_be_visible()
    expect(page.locator(".dash-setup")).to_have_count(0)
