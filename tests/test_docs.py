"""The documentation agrees with the code: every error, every link, every endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiapi.urls import urlpatterns
from core.errors import ApiError
from tests.servers import ROOT

API = ROOT / "docs" / "api.md"
SECURITY = ROOT / "SECURITY.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", SECURITY, *sorted((ROOT / "docs").glob("**/*.md"))]
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
NAMED_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
ERROR_ROW = re.compile(r"^\| (\d{3}) \| `(\w+)` \| (.+) \| (.+) \|$", re.MULTILINE)


def tree(root: type[ApiError]) -> Iterator[type[ApiError]]:
    """Yield an error and all that derive from it."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def test_it_lists_every_error_with_its_status_once() -> None:
    listed = sorted((code, int(status)) for status, code, _, _ in ERROR_ROW.findall(API.read_text()))
    assert listed == sorted({(error.code, error.status) for error in tree(ApiError)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_links_to_what_exists(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link and not link.startswith("/")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", API], ids=lambda page: page.name)
def test_it_names_every_endpoint(page: Path) -> None:
    told = page.read_text()
    patterns: list[Any] = urlpatterns
    paths = {f"/{str(pattern.pattern).lstrip('^').split('(')[0].rstrip('/?$')}" for pattern in patterns}
    paths = {path.replace("\\", "") for path in paths if not path.startswith("/admin")} - {"/"}
    assert len(paths) > 10
    assert [path for path in sorted(paths) if path not in told] == []


def test_it_names_tests_that_exist_for_what_protects() -> None:
    named = NAMED_TEST.findall(SECURITY.read_text())
    assert len(named) > 20
    missing = [(file, name) for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_it_maps_every_folder() -> None:
    told = (ROOT / "README.md").read_text()
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*") if path.is_file()}
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    kept = {name for name in folders if not name.startswith(".")} - ignored - {"__pycache__"}
    assert [name for name in sorted(kept) if f"`{name}/`" not in told] == []
