"""After a clock has jumped forward and back: records go by their time of admission, whatever time their ids tell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

from tests.running import Platform, Served, chat, completion, running_platform, scripted_provider, wait_until

LOG = "/admin/monitoring/requestrecord/"
MODEL = "jumping"
#: Of these, each four were admitted at one time, and the border of a page (50) lies between such four.
RECORDS, TOGETHER = 60, 4
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


def admitted(group: int) -> datetime:
    """Return when a group of records was admitted: the first 15 days ago at noon, the others a day later each."""
    return NOON - timedelta(days=RECORDS // TOGETHER - group)


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def platform(request: pytest.FixtureRequest, prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run a platform with records whose ids are all of now, in another order than their times of admission."""
    with ExitStack() as stack:
        provider = stack.enter_context(scripted_provider())
        provider.script(MODEL, completion("Hello"))
        env = {} if request.param == "SQLite" else prepared()
        running = stack.enter_context(running_platform(env, [Served(MODEL, [provider.base_url])]))
        for number in range(RECORDS):
            assert running.ask("/v1/chat/completions", chat(MODEL, f"Question {number}")).status == 200
        wait_until(lambda: len(admissions(running)) == RECORDS, "the records")
        for number, identifier in enumerate(admissions(running)):
            moment = admitted(number * 7 % RECORDS // TOGETHER)
            running.rows(
                f"UPDATE monitoring_requestrecord SET admitted_at = '{moment:%Y-%m-%d %H:%M:%S}' "  # noqa: S608
                f"WHERE id = '{identifier}' RETURNING id"
            )
        yield running


def admissions(platform: Platform) -> list[str]:
    """List the ids of the records as the database has them, in order of admission."""
    rows = platform.rows("SELECT id FROM monitoring_requestrecord ORDER BY admitted_at, id")
    return [str(row["id"]) for row in rows]


def plain(identifiers: list[str]) -> list[str]:
    """Write ids without hyphens, as SQLite has them."""
    return [identifier.replace("-", "") for identifier in identifiers]


def pages(platform: Platform, direction: str, query: str = "") -> Iterator[list[str]]:
    """Read the pages of the admin's list, from one to the next by its links; yield the ids on each."""
    while True:
        status, html = platform.admin.get(f"{LOG}{query}")
        assert status == 200
        yield plain(list(dict.fromkeys(re.findall(rf"{LOG}([0-9a-f-]{{36}})/change/", html))))
        links = [link.replace("&amp;", "&") for link in re.findall(r'href="(\?[^"]*)"', html)]
        query = next((link for link in links if f"{direction}=" in link), "")
        if not query:
            return


def test_an_export_of_some_days_has_exactly_their_records(platform: Platform) -> None:
    begin, end = admitted(3), admitted(9)
    span = ("--from", begin.isoformat(), "--to", end.isoformat())
    lines = [json.loads(line) for line in platform.manage("export_log", "--format", "jsonl", *span).splitlines()
             if line.startswith("{")]  # fmt: skip
    assert plain([line["id"] for line in lines]) == plain(admissions(platform))[3 * TOGETHER : 9 * TOGETHER]
    assert all(begin <= datetime.fromisoformat(line["admitted_at"]) < end for line in lines)


def test_the_admin_exports_and_lists_the_same_of_a_span(platform: Platform) -> None:
    span = f"from={admitted(3):%Y-%m-%dT%H:%M}&until={admitted(9):%Y-%m-%dT%H:%M}"
    wanted = plain(admissions(platform))[3 * TOGETHER : 9 * TOGETHER]
    status, text = platform.admin.get(f"{LOG}export/?format=jsonl&{span}")
    assert status == 200
    assert plain([json.loads(line)["id"] for line in text.splitlines()]) == wanted
    assert next(pages(platform, "older", f"?{span}")) == wanted[::-1]


def test_pages_have_each_record_once_in_order_of_admission(platform: Platform) -> None:
    wanted = plain(admissions(platform))[::-1]
    older = list(pages(platform, "older"))
    assert [len(page) for page in older] == [50, 10]
    assert [identifier for page in older for identifier in page] == wanted
    _, html = platform.admin.get(LOG)
    last = next(link for link in re.findall(r'href="(\?[^"]*)"', html) if "older=" in link)
    back = list(pages(platform, "newer", last.replace("&amp;", "&")))
    assert [identifier for page in reversed(back) for identifier in page] == wanted


@pytest.mark.parametrize("place", ["nonsense", "01a2b3c4-0000-7000-8000-000000000000", "2026-11-01T00:00:00~x"])
def test_a_page_after_what_is_no_place_is_refused(platform: Platform, place: str) -> None:
    assert platform.admin.get(f"{LOG}?older={place}") == (302, f"{LOG}?e=1")


def test_pruning_takes_exactly_what_is_old(platform: Platform) -> None:
    groups = RECORDS // TOGETHER
    young = sum(admitted(group) >= datetime.now(UTC) - timedelta(days=7) for group in range(groups)) * TOGETHER
    wanted = admissions(platform)[-young:]
    said = platform.manage("prune_logs", "--days", "7", "--dry-run")
    assert f"Would prune {RECORDS - young} records" in said
    assert f"Pruned {RECORDS - young} records" in platform.manage("prune_logs", "--days", "7")
    assert admissions(platform) == wanted
