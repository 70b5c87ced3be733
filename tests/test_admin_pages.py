"""Every page of the admin in a real browser, with the sample data: accessible, without complaints, on a phone too.

The pages are found as a user finds them: the sidebar's entries and their tabs, the first object of each list, its
history, and the form that adds one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from inference.fake_provider import FakeUpstream
from tests.conftest import settings_of
from tests.pages import Watched, grave_faults, watch
from tests.servers import Service, aiapi_server

NAME, PASSWORD = "operator", "a password for the tests"
SIDEBAR, TABS = "#nav-sidebar-apps a", "#tabs-items a[href^='/']"
ROW, HISTORY = "#result_list a[href*='/change/']", "a[href*='/history/']"
FEWEST_PAGES = 30


@pytest.fixture(scope="module")
def sampled(fake: FakeUpstream) -> Iterator[Service]:
    """Run a platform with the sample data and an administrator."""
    with aiapi_server({**settings_of(fake), "ADMIN_USERNAME": NAME, "ADMIN_PASSWORD": PASSWORD}) as server:
        server.manage("demo")
        yield server


@pytest.fixture(params=[(1440, "light"), (390, "dark")], ids=["desk, light", "phone, dark"])
def admin(request: pytest.FixtureRequest, chromium: Browser, sampled: Service) -> Iterator[Watched]:
    """Log in with a window of that width and colour scheme."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    watched = watch(context.new_page())
    watched.page.goto(f"{sampled.base_url}/admin/")
    watched.page.fill("[name=username]", NAME)
    watched.page.fill("[name=password]", PASSWORD)
    watched.page.click("[type=submit]")
    expect(watched.page.locator("#nav-sidebar-apps")).to_be_attached()
    yield watched
    context.close()


def links(page: Page, selector: str) -> list[str]:
    """Return the paths of the links that a selector finds, each once."""
    found: list[str] = page.eval_on_selector_all(selector, "links => links.map(link => link.pathname)")
    return list(dict.fromkeys(found))


def pages_of(page: Page, base_url: str) -> Iterator[str]:
    """Open one page after the other, and yield its path while it is open."""
    wanted, seen = links(page, SIDEBAR), set[str]()
    while wanted:
        path = wanted.pop(0)
        if path in seen:
            continue
        seen.add(path)
        page.goto(f"{base_url}{path}")
        yield path
        wanted += [*links(page, TABS), *links(page, ROW)[:1], *links(page, HISTORY)[:1]]
        wanted += [add for add in links(page, "a[href$='/add/']") if "_popup" not in add]


def faults(watched: Watched) -> Iterator[str]:
    """Yield what is wrong with the page that is open."""
    page = watched.page
    yield from grave_faults(page)
    yield from watched.complaints
    watched.complaints.clear()
    if page.locator("main, [role=main]").count() != 1:
        yield "it has not one main landmark"
    if watched.excess_width() > 0:
        yield f"it is {watched.excess_width()} pixels too wide"


def test_it_shows_every_page_to_everybody(admin: Watched, sampled: Service) -> None:
    found = {path: list(faults(admin)) for path in pages_of(admin.page, sampled.base_url)}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}
    assert len(found) >= FEWEST_PAGES
    assert admin.hosts() == {sampled.base_url.removeprefix("http://")}
