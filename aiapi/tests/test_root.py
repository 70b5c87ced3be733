"""GET / and the pages of the documentation: what they say, and that they load nothing from elsewhere."""

from __future__ import annotations

import re

import pytest
from django.contrib.staticfiles import finders

from inference.tests.fixtures import Api

#: Whatever a page loads by itself; links that a reader follows are none of these.
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|embed)\b[^>]*?\bsrc=["']([^"']+)|<link\b[^>]*?\bhref=["']([^"']+)"""
)
PAGES = ["/docs", "/redoc", "/", "/playground/", "/account/"]


def page(api: Api, path: str) -> str:
    """Return the page that a browser gets."""
    answer = api.get(path, key=None, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.status_code == 200
    assert answer["Content-Type"] == "text/html; charset=utf-8"
    return answer.content.decode()


def loaded(html: str) -> list[str]:
    """Return the addresses that a page loads, data: ones apart."""
    found = [first or second for first, second in LOADS.findall(html)]
    return [address for address in found if not address.startswith("data:")]


def test_it_says_what_it_is(api: Api) -> None:
    answer = api.get("/", key=None)
    assert answer.json() == {
        "name": "AI API",
        "version": "1.0.0",
        "description": "Production-ready AI API with authentication and rate limiting",
        "docs": "/docs",
        "health": "/health",
    }
    assert "Accept" in answer["Vary"]


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/json, text/plain, */*", "image/png", ";;;", ""]
)
def test_it_answers_json_to_all_but_browsers(api: Api, accept: str) -> None:
    answer = api.get("/", key=None, headers={"Accept": accept})
    assert answer["Content-Type"] == "application/json"


def test_it_shows_browsers_a_page(api: Api) -> None:
    html = page(api, "/")
    assert "<h1>AI API" in html
    assert {"/docs", "/redoc", "/health", "/admin/", "/playground/", "/account/"} <= set(
        re.findall(r'href="([^"]+)"', html)
    )


@pytest.mark.parametrize("path", PAGES)
def test_it_loads_nothing_from_elsewhere(api: Api, path: str) -> None:
    addresses = loaded(page(api, path))
    assert addresses
    assert [address for address in addresses if not re.match(r"/(?!/)|/?docs", address)] == []


@pytest.mark.parametrize("path", PAGES)
def test_it_serves_all_that_its_pages_load(api: Api, path: str) -> None:
    for address in loaded(page(api, path)):
        assert api.get(address, key=None).status_code == 200, address


@pytest.mark.parametrize("path", PAGES)
def test_it_needs_no_inline_script(api: Api, path: str) -> None:
    html = page(api, path)
    assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", html) == []
    assert re.findall(r"\son\w+=", html) == []
    policy = api.get(path, key=None, headers={"Accept": "text/html"})["Content-Security-Policy"]
    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert directives["script-src"] == "'self'"
    assert directives["default-src"] == "'none'"
    assert not re.search(r"https?:", policy)


def test_it_styles_pages_without_addresses_of_elsewhere() -> None:
    path = finders.find("site/site.css")
    assert path
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  (finders give a text)
        assert re.findall(r"url\(|@import", file.read()) == []


def test_it_tells_swagger_where_the_schema_is(api: Api) -> None:
    (script,) = [address for address in loaded(page(api, "/docs")) if "script" in address]
    answer = api.get(script, key=None)
    assert "javascript" in answer["Content-Type"]
    assert "/openapi.json" in answer.content.decode()
    assert re.findall(r"""["'](?:https?:)?//(?!testserver)""", answer.content.decode()) == []


def test_it_tells_redoc_where_the_schema_is(api: Api) -> None:
    html = page(api, "/redoc")
    assert 'spec-url="/openapi.json"' in html
    assert "fonts.googleapis" not in html
