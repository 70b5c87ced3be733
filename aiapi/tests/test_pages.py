"""The pages for a key's holder, as a server gives them out: their policy, their size, what they say of refusals."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import LazySettings
from django.contrib.staticfiles import finders

from aiapi.pages import explained_errors
from core.errors import ApiError, LimitExceeded
from inference.tests.fixtures import Api

PAGES = ["/", "/playground/", "/account/"]
KEYED = PAGES[1:]
#: Bytes that a page may be, scripts and styles included, as a server in production sends them (two seconds over 3G).
LARGEST = 150_000
IMPORT = re.compile(r'^import [^"]*"\./([\w.]+)";$', re.MULTILINE)
HTML = {"Accept": "text/html"}


def page(api: Api, path: str) -> str:
    """Return a page's HTML."""
    answer = api.get(path, key=None, headers=HTML)
    assert answer.status_code == 200
    return answer.content.decode()


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


@pytest.mark.parametrize("path", PAGES)
def test_it_is_small_as_it_is_sent(api: Api, path: str) -> None:
    html = page(api, path)
    assert len(html.encode()) + sum(len(gzip.compress(file.read_bytes())) for file in files(html)) < LARGEST


@pytest.mark.parametrize("path", PAGES)
def test_it_is_small_unpacked_but_for_the_charts(api: Api, path: str) -> None:
    html = page(api, path)
    own = [file for file in files(html) if file.name != "chart.js"]
    assert len(html.encode()) + sum(file.stat().st_size for file in own) < LARGEST
    assert ("chart.js" in html) == (path == "/account/")


@pytest.mark.parametrize("path", PAGES)
def test_it_forbids_everything_that_it_does_not_need(api: Api, path: str) -> None:
    policy = api.get(path, key=None, headers=HTML)["Content-Security-Policy"]
    assert set(policy.split("; ")) == {
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
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page(api, path))


@pytest.mark.parametrize("path", KEYED)
def test_it_takes_a_key_in_a_field_that_no_form_can_send(api: Api, path: str) -> None:
    (field,) = re.findall(r'<input id="key"[^>]*>', page(api, path))
    assert 'type="password"' in field
    assert 'autocomplete="off"' in field
    assert "name=" not in field


@pytest.mark.parametrize("path", PAGES)
def test_it_names_a_demo_key_where_there_is_one_only(api: Api, settings: LazySettings, path: str) -> None:
    assert "dev_key_123" in page(api, path)
    settings.ALLOW_PLAIN_KEYS = False
    assert "dev_key_123" not in page(api, path)


@pytest.mark.parametrize("path", ["/playground", "/account"])
def test_it_adds_the_slash(api: Api, path: str) -> None:
    answer = api.get(path, key=None)
    assert (answer.status_code, answer["Location"]) == (301, f"{path}/")


@pytest.mark.parametrize("path", KEYED)
def test_it_takes_no_posts(api: Api, path: str) -> None:
    assert api.post(path, key=None).status_code == 405


@pytest.mark.parametrize("path", KEYED)
def test_it_explains_every_limit_by_its_code(api: Api, path: str) -> None:
    assert set(tree(LimitExceeded)) - {LimitExceeded} <= set(explained_errors())
    html = page(api, path)
    for error in explained_errors():
        assert f'id="code-{error.code}"' in html
        assert error.cause.replace("'", "&#x27;") in html
