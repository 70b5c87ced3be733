"""The root, the documentation and the pages for a key's holder: what they load, their policy, size and explanations."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from django.conf import LazySettings
from django.contrib.staticfiles import finders

from aiapi.guides import GUIDES
from aiapi.pages import explained_errors
from core.errors import ApiError, LimitExceeded
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import Api
from inference.tests.samples import serve

KEYED = ["/playground/", "/account/", "/models/"]
OWN = ["/", "/docs/quickstart/", *KEYED]
PAGES = ["/docs", "/redoc", *OWN]
#: Bytes that a page may be, scripts and styles included, as a server in production sends them (two seconds over 3G).
LARGEST = 150_000
IMPORT = re.compile(r'^import [^"]*"\./([\w.]+)";$', re.MULTILINE)
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
#: Whatever a page loads by itself; links that a reader follows are none of these.
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|embed)\b[^>]*?\bsrc=["']([^"']+)|<link\b[^>]*?\bhref=["']([^"']+)"""
)


def page(api: Api, path: str) -> str:
    """Return the page that a browser gets."""
    answer = api.get(path, key=None, headers=HTML)
    assert (answer.status_code, answer["Content-Type"]) == (200, "text/html; charset=utf-8")
    return answer.content.decode()


def policy(api: Api, path: str) -> set[str]:
    """Return the directives of a page's policy."""
    return set(api.get(path, key=None, headers=HTML)["Content-Security-Policy"].split("; "))


def loaded(html: str) -> list[str]:
    """Return the addresses that a page loads, data: ones apart."""
    found = [first or second for first, second in LOADS.findall(html)]
    return [address for address in found if not address.startswith("data:")]


def files(html: str) -> set[Path]:
    """Find the scripts and styles of a page, and all that its modules import."""
    names = set(re.findall(r'(?:src|href)="/static/([^"]+)"', html))
    waiting = [found for name in names if (found := finders.find(name))]
    assert len(waiting) == len(names)
    seen: set[Path] = set()
    while waiting:
        path = Path(str(waiting.pop()))
        if path not in seen:
            seen.add(path)
            waiting += [str(path.parent / name) for name in IMPORT.findall(path.read_text())]
    return seen


def tree(root: type[ApiError]) -> Iterator[type[ApiError]]:
    """Yield an error and all that derive from it."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def test_it_says_what_it_is_to_all_but_browsers(api: Api) -> None:
    for accept in ("*/*", "application/json", "application/json, text/plain, */*", "image/png", ";;;", ""):
        answer = api.get("/", key=None, headers={"Accept": accept})
        assert answer.json() == {
            "name": "AI API",
            "version": "1.0.0",
            "description": "Production-ready AI API with authentication and rate limiting",
            "docs": "/docs",
            "health": "/health",
        }
        assert "Accept" in answer["Vary"]
    html = page(api, "/")
    assert "<h1>AI API" in html
    assert {"/docs", "/redoc", "/health", "/admin/", *KEYED} <= set(re.findall(r'href="([^"]+)"', html))


@pytest.mark.parametrize("path", PAGES)
def test_it_loads_nothing_from_elsewhere_and_needs_no_inline_script(api: Api, path: str) -> None:
    html = page(api, path)
    addresses = loaded(html)
    assert addresses
    for address in addresses:
        assert re.match(r"/(?!/)|/?docs", address)
        assert api.get(address, key=None).status_code == 200, address
    assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", html) == []
    assert re.findall(r"\son\w+=", html) == []
    directives = policy(api, path)
    assert {"script-src 'self'", "default-src 'none'"} <= directives
    assert not re.search(r"https?:", str(directives))


@pytest.mark.parametrize("path", OWN)
def test_it_is_small_and_forbids_everything_that_it_does_not_need(api: Api, path: str) -> None:
    html = page(api, path)
    assert len(html.encode()) + sum(len(gzip.compress(file.read_bytes())) for file in files(html)) < LARGEST
    own = [file for file in files(html) if file.name not in ("chart.js", "marked.js")]
    assert len(html.encode()) + sum(file.stat().st_size for file in own) < LARGEST, "unpacked but for what others made"
    assert ("chart.js" in html) == (path == "/account/")
    assert policy(api, path) == {
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    }
    assert not re.search(r"<style|\sstyle=|javascript:", html)


@pytest.mark.parametrize("path", OWN)
def test_it_names_a_demo_key_where_there_is_one_only(api: Api, settings: LazySettings, path: str) -> None:
    assert "dev_key_123" in page(api, path)
    settings.ALLOW_PLAIN_KEYS = False
    assert "dev_key_123" not in page(api, path)


@pytest.mark.parametrize("path", KEYED)
def test_it_takes_a_key_in_a_field_that_no_form_can_send_and_explains_every_limit(api: Api, path: str) -> None:
    html = page(api, path)
    (field,) = re.findall(r'<input id="key"[^>]*>', html)
    assert 'type="password"' in field
    assert 'autocomplete="off"' in field
    assert "name=" not in field
    assert set(tree(LimitExceeded)) - {LimitExceeded} <= set(explained_errors())
    for error in explained_errors():
        assert f'id="code-{error.code}"' in html
        assert error.cause.replace("'", "&#x27;") in html
    assert api.post(path, key=None).status_code == 405
    bare = api.get(path.rstrip("/"), key=None)
    assert (bare.status_code, bare["Location"]) == (301, path)


def test_it_styles_pages_without_addresses_of_elsewhere() -> None:
    assert re.findall(r"url\(|@import", Path(str(finders.find("site/site.css"))).read_text()) == []


def test_it_shows_models_and_prices_to_visitors_only_where_the_operator_wants_that(
    api: Api, upstream: FakeUpstream, settings: LazySettings
) -> None:
    serve("large", input=2, output=8, aliases=["big"], context_size=200_000)
    for path in ("/", "/models/"):
        settings.PUBLIC_MODELS = True
        for shown in ("large", "also big", "200 K", "$2.00", "$8.00", "#endpoint=/v1/chat/completions&amp;model=large"):
            assert shown in page(api, path)
        settings.PUBLIC_MODELS = False
        assert "<code>large" not in page(api, path)
    assert '"model": "MODEL"' in unescape(page(api, "/"))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("", "Ask the operator of this service for a key"),
        ("keys@acme.test", '<a href="mailto:keys@acme.test">keys@acme.test</a>'),
        ("https://acme.test/keys", '<a href="https://acme.test/keys">https://acme.test/keys</a>'),
        ("javascript:alert(1)", "Ask javascript:alert(1) for a key"),
    ],
)
def test_it_says_whom_to_ask_for_a_key(api: Api, settings: LazySettings, given: str, shown: str) -> None:
    settings.CONTACT = given
    assert shown in page(api, "/")


@pytest.mark.parametrize("name", GUIDES)
def test_it_renders_each_guide_with_its_own_address_and_links_that_exist(api: Api, name: str) -> None:
    html = page(api, f"/docs/{name}/")
    assert "localhost:8000" not in html
    for link in set(re.findall(r'href="(/docs/[^"]*)"', html)):
        path, _, anchor = link.partition("#")
        assert not anchor or f'id="{anchor}"' in page(api, path), link
    assert ".md" not in "".join(re.findall(r'href="([^"]*)"', html))
    assert api.get("/docs/secrets/", key=None, headers=HTML).status_code == 404


def test_it_tells_the_documentation_where_the_schema_is(api: Api) -> None:
    (script,) = [file for file in files(page(api, "/docs")) if file.name == "docs.js"]
    assert 'url: "/openapi.json"' in script.read_text()
    html = page(api, "/redoc")
    assert 'spec-url="/openapi.json"' in html
    assert "fonts.googleapis" not in html
