"""The request log in the admin: read-only, filtered, page by page without counting."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.tests.factories import Cast, IssuedKey, logged_in, make_staff
from core.errors import UpstreamTimeout
from monitoring.admin import RequestRecordAdmin
from monitoring.admin_log import SEARCHED
from monitoring.models import RequestRecord
from monitoring.tests.samples import now_micros, recorded

pytestmark = pytest.mark.django_db

LOG = "/admin/monitoring/requestrecord/"
HOUR = 3600 * 1_000_000  # in µs


def page_of(site: Client, query: str = "") -> Any:
    """Open a page of the list and return what it shows."""
    response = site.get(f"{LOG}?{query.removeprefix('?')}")
    assert response.status_code == 200, response.headers
    return response.context["cl"]


def labels(site: Client, query: str = "") -> list[str]:
    """List the labels of the records on a page."""
    return [record.label for record in page_of(site, query).result_list]


def at(hours_ago: float) -> dict[str, Any]:
    """Return the time of a record that was admitted so many hours ago."""
    return {"admitted_at": now_micros() - int(hours_ago * HOUR)}


def many(issued: IssuedKey, count: int) -> None:
    """Write so many records, the first labelled n0."""
    for number in range(count):
        recorded(issued, label=f"n{number}")


class TestFilters:
    @pytest.fixture(autouse=True)
    def _records(self, cast: Cast) -> None:
        recorded(cast.owner, label="fine", first_token_ms=3.0)
        recorded(cast.owner, label="hit", cache="hit", model="other", endpoint="summarize")
        recorded(cast.colleague, label="limited", status=429, error_code="rate_limited", cache="", count=1234)
        recorded(cast.stranger, label="invalid", status=400, error_code="invalid_request", cache="")
        recorded(cast.stranger, label="failed", status=502, error_code="upstream_failed", latency_ms=5000.0, **at(5))

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("", {"fine", "hit", "limited", "invalid", "failed"}),
            ("account=acme", {"fine", "hit", "limited"}),
            ("account=globex", {"invalid", "failed"}),
            ("account=nobody", set()),
            ("key=owner", {"fine", "hit"}),
            ("model=other", {"hit"}),
            ("endpoint=summarize", {"hit"}),
            ("status=ok", {"fine", "hit"}),
            ("status=limited", {"limited"}),
            ("status=refused", {"invalid"}),
            ("status=failed", {"failed"}),
            ("status=502", {"failed"}),
            ("status=nothing", {"fine", "hit", "limited", "invalid", "failed"}),
            ("error_code=rate_limited", {"limited"}),
            ("cache=hit", {"hit"}),
            ("cache=found", {"hit"}),
            ("cache=", {"limited", "invalid"}),
            ("from=-1h", {"fine", "hit", "limited", "invalid"}),
            ("until=-1h", {"failed"}),
            ("from=-24h&status=failed&account=globex", {"failed"}),
            ("q=limited", {"limited"}),
            ("q=limite", set()),
            ("slower=1000", {"failed"}),
            ("slower=" + "9" * 400, set()),
            ("stream=1", {"fine"}),
            ("stream=0&endpoint=summarize", {"hit"}),
            ("account=acm%00e&cache=hi%00t&q=", {"hit"}),
        ],
    )
    def test_it_finds(self, site: Client, query: str, found: set[str]) -> None:
        assert set(labels(site, query)) == found

    def test_it_finds_by_prefix_id_and_time_and_the_new_name_of_an_account(self, site: Client, cast: Cast) -> None:
        assert set(labels(site, f"key={cast.stranger.key.prefix}")) == {"invalid", "failed"}
        assert labels(site, f"q={RequestRecord.objects.get(label='limited').pk}") == ["limited"]
        begin = (timezone.now() - timedelta(hours=6)).strftime("%Y-%m-%d %H:%M")
        end = (timezone.now() - timedelta(hours=4)).strftime("%Y-%m-%dT%H:%M")
        assert labels(site, f"from={begin}&until={end}") == ["failed"]
        cast.stranger.key.account.name = "initech"
        cast.stranger.key.account.save()
        assert set(labels(site, "account=initech")) == {"invalid", "failed"}
        assert "rate_limited (1,234 times)" in site.get(LOG, {"status": "limited"}).content.decode()
        assert site.get(f"{LOG}?slower=soon").status_code == 302


def test_it_goes_from_the_newest_to_the_oldest_and_back_whatever_comes_in(site: Client, cast: Cast) -> None:
    many(cast.owner, 110)
    pages = [page_of(site)]
    recorded(cast.owner, label="new")
    for _ in range(2):
        pages.append(page_of(site, pages[-1].older_url))
    seen = [record.label for page in pages for record in page.result_list]
    assert seen == [f"n{number}" for number in reversed(range(110))]
    assert not pages[2].older_url
    assert labels(site, pages[2].newer_url) == [record.label for record in pages[1].result_list]


@pytest.mark.parametrize(
    ("query", "number", "offset"),
    [("account=acme&from=-24h", 8, False), ("account=acme&status=ok&from=-24h", 10, True)],
)
def test_it_never_counts_and_asks_the_same_few_times(
    site: Client, cast: Cast, query: str, number: int, offset: bool
) -> None:
    many(cast.owner, 60)
    with CaptureQueriesContext(connection) as queries:
        site.get(f"{LOG}?{query}")
    sent = " ".join(query["sql"] for query in queries if "monitoring_alert" not in query["sql"]).upper()
    assert "COUNT(" not in sent
    assert sent.count("OFFSET") == sent.count(f"OFFSET {SEARCHED - 1}") == int(offset)
    assert len(queries) <= number


class TestSearch:
    """Filters that no index answers: a page looks through so many records, and says so."""

    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RequestRecordAdmin, "search_rows", 5)

    @pytest.fixture
    def log(self, cast: Cast) -> None:
        """Write 23 records, of which three are different."""
        for number in range(23):
            changes = {"cache": "replay", "model": "rare", "status": 502} if number in (0, 9, 11) else {}
            recorded(cast.owner, label=f"n{number}", **changes)

    def test_it_goes_on_until_all_was_searched_and_back(self, site: Client, log: None) -> None:
        pages = [page_of(site, "cache=replay")]
        while pages[-1].older_url:
            pages.append(page_of(site, pages[-1].older_url))
        found = [[record.label for record in page.result_list] for page in pages]
        assert found == [[], [], ["n11", "n9"], [], ["n0"]]
        assert [page.searched is not None for page in pages] == [True] * 4 + [False]
        back = [page_of(site, pages[-1].newer_url)]
        while back[-1].newer_url:
            back.append(page_of(site, back[-1].newer_url))
        assert [record.label for page in back for record in page.result_list] == ["n9", "n11"]
        assert back[-1].searched is None

    def test_it_says_how_far_it_looked_and_goes_on_from_there(self, site: Client, log: None) -> None:
        page = site.get(f"{LOG}?slower=100000")
        url = page.context["cl"].older_url.replace("&", "&amp;")
        last = RequestRecord.objects.get(label="n18")
        text = " ".join(page.content.decode().split())
        assert f"5 entries were searched, back to {last.admitted_at:%Y-%m-%d %H:%M} UTC" in text
        assert str(last.pk) in url
        assert f'href="{url}">Search older ones' in text
        assert "entries were searched" not in site.get(LOG).content.decode()

    def test_it_finds_at_once_what_has_an_index_and_searches_for_what_has_none(self, site: Client, log: None) -> None:
        for query in ("model=rare", "status=failed", "status=502", "q=n0", "model=rare&from=-1h", "key=owner&account="):
            page = page_of(site, query)
            assert (page.result_list[-1].label, page.searched) == ("n0", None), query
        for query in ("status=ok", "status=refused", "status=200", "endpoint=nothing", "stream=1"):
            assert page_of(site, query).searched.rows == 5, query

    def test_it_searches_among_those_that_an_index_or_the_time_selects(self, site: Client, cast: Cast) -> None:
        for _ in range(9):
            recorded(cast.owner, **at(5))
        recorded(cast.stranger, label="wanted", cache="bypass")
        many(cast.owner, 5)
        for _ in range(4):
            recorded(cast.stranger)
        found = page_of(site, "account=globex&cache=bypass")
        assert [record.label for record in found.result_list] == ["wanted"]
        assert found.searched is None
        assert page_of(site, "cache=replay").searched is not None
        assert page_of(site, "cache=replay&account=acme&from=-1h").searched is None


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("", "record_by_time"),
        ("from=-2h&until=-1h", "record_by_time"),
        ("older=2026-11-01~01a2b3c4-0000-7000-8000-000000000000", "record_by_time"),
        ("account=acme&from=-1h", "record_account_by_time"),
        ("key=owner", "record_key_by_time"),
        ("model=nobody-uses-it", "record_model_by_time"),
        ("status=502", "record_status_by_time"),
        ("status=failed", "record_failed_by_time"),
    ],
)
def test_it_finds_a_page_by_an_index_without_sorting(site: Client, cast: Cast, query: str, index: str) -> None:
    many(cast.owner, 3)
    with CaptureQueriesContext(connection) as asked:
        site.get(f"{LOG}?{query}")
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            for way in ("seqscan", "bitmapscan", "sort"):
                cursor.execute(f"SET LOCAL enable_{way} = off")
        (page,) = (query["sql"] for query in asked if query["sql"].endswith("LIMIT 51"))
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{page}")
        plan = str(cursor.fetchall())
    if connection.vendor == "sqlite":  # PostgreSQL goes by what is in the table: of few records by any index
        assert index in plan
    assert "sort" not in plan.lower()
    assert "temp" not in plan.lower()


def test_it_shows_why_a_request_failed_and_what_an_operator_can_do(site: Client, cast: Cast) -> None:
    pages = {}
    for code in ("upstream_timeout", "client_left"):
        record = recorded(cast.owner, status=504, error_code=code, is_overrun=True)
        pages[code] = site.get(f"{LOG}{uuid.UUID(record.id)}/change/").content.decode()
    assert f"upstream_timeout: {UpstreamTimeout.message}" in pages["upstream_timeout"]
    assert "UPSTREAM_TIMEOUT" in pages["upstream_timeout"]
    assert "The client closed the connection" in pages["client_left"]
    assert "The caller hung up." in pages["client_left"]
    assert "the provider billed more than the bound" in pages["client_left"]
    assert f"/admin/accounts/apikey/{cast.owner.key.pk}/change/" in pages["client_left"]


def test_it_changes_nothing_and_is_shown_by_permission(site: Client, cast: Cast) -> None:
    recorded(cast.owner)
    record = RequestRecord.objects.get()
    assert site.post(f"{LOG}add/", {}).status_code == 403
    assert site.post(f"{LOG}{record.pk}/change/", {"status": "500"}).status_code == 403
    assert site.post(f"{LOG}{record.pk}/delete/", {"post": "yes"}).status_code == 403
    site.post(LOG, {"action": "delete_selected", "_selected_action": [str(record.pk)], "post": "yes"})
    assert RequestRecord.objects.get().status == 200
    assert logged_in(make_staff(name="a")).get(LOG).status_code == 403
    assert logged_in(make_staff("monitoring.view_requestrecord", name="b")).get(LOG).status_code == 200
