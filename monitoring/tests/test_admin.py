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

from accounts.tests.factories import Cast, IssuedKey, logged_in, make_admin, make_staff
from core.errors import UpstreamTimeout
from monitoring.admin import SEARCHED, RequestRecordAdmin
from monitoring.models import RequestRecord
from monitoring.tests.samples import now_micros, recorded

pytestmark = pytest.mark.django_db

LOG = "/admin/monitoring/requestrecord/"
HOUR = 3600 * 1_000_000  # in µs


@pytest.fixture
def site() -> Client:
    """Return a browser that is logged in as a superuser."""
    return logged_in(make_admin())


def labels(site: Client, query: str = "") -> list[str]:
    """List the labels of the records on a page."""
    response = site.get(f"{LOG}?{query}")
    assert response.status_code == 200, response.headers
    return [record.label for record in response.context["cl"].result_list]


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
        recorded(cast.owner, label="fine")
        recorded(cast.owner, label="hit", cache="hit", model="other")
        recorded(cast.colleague, label="limited", status=429, error_code="rate_limited", cache="", count=1234)
        recorded(cast.stranger, label="invalid", status=400, error_code="invalid_request", cache="")
        recorded(cast.stranger, label="failed", status=502, error_code="upstream_failed", **at(5))

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("", {"fine", "hit", "limited", "invalid", "failed"}),
            ("account=acme", {"fine", "hit", "limited"}),
            ("account=globex", {"invalid", "failed"}),
            ("account=nobody", set()),
            ("key=owner", {"fine", "hit"}),
            ("model=other", {"hit"}),
            ("status=ok", {"fine", "hit"}),
            ("status=limited", {"limited"}),
            ("status=refused", {"invalid"}),
            ("status=failed", {"failed"}),
            ("status=502", {"failed"}),
            ("error_code=rate_limited", {"limited"}),
            ("cache=hit", {"hit"}),
            ("from=-1h", {"fine", "hit", "limited", "invalid"}),
            ("until=-1h", {"failed"}),
            ("from=-24h&status=failed&account=globex", {"failed"}),
            ("q=limited", {"limited"}),
            ("q=limite", set()),
            ("slower=" + "9" * 400, set()),
            ("account=acm%00e&cache=hi%00t&q=", {"hit"}),
        ],
    )
    def test_it_finds(self, site: Client, query: str, found: set[str]) -> None:
        assert set(labels(site, query)) == found

    def test_it_tells_how_many_refusals_a_record_stands_for(self, site: Client) -> None:
        assert "429 rate_limited (1,234 times)" in site.get(LOG, {"status": "limited"}).content.decode()

    def test_it_finds_by_the_key_s_prefix(self, site: Client, cast: Cast) -> None:
        assert set(labels(site, f"key={cast.stranger.key.prefix}")) == {"invalid", "failed"}

    def test_it_finds_by_the_record_s_id(self, site: Client) -> None:
        record = RequestRecord.objects.get(label="limited")
        assert labels(site, f"q={record.pk}") == ["limited"]

    def test_it_finds_by_absolute_moments_in_utc(self, site: Client) -> None:
        begin = (timezone.now() - timedelta(hours=6)).strftime("%Y-%m-%d %H:%M")
        end = (timezone.now() - timedelta(hours=4)).strftime("%Y-%m-%dT%H:%M")
        assert labels(site, f"from={begin}&until={end}") == ["failed"]

    def test_it_keeps_finding_records_of_an_account_that_was_renamed(self, site: Client, cast: Cast) -> None:
        cast.stranger.key.account.name = "initech"
        cast.stranger.key.account.save()
        assert set(labels(site, "account=initech")) == {"invalid", "failed"}


def test_it_goes_from_the_newest_to_the_oldest_and_back(site: Client, cast: Cast) -> None:
    many(cast.owner, 110)
    first = site.get(LOG).context["cl"]
    second = site.get(LOG + first.older_url).context["cl"]
    third = site.get(LOG + second.older_url).context["cl"]
    seen = [record.label for page in (first, second, third) for record in page.result_list]
    assert seen == [f"n{number}" for number in reversed(range(110))]
    assert not third.older_url
    back = site.get(LOG + third.newer_url).context["cl"]
    assert [record.label for record in back.result_list] == [record.label for record in second.result_list]


def test_it_shows_no_record_twice_when_new_ones_come_in(site: Client, cast: Cast) -> None:
    many(cast.owner, 60)
    first = site.get(LOG).context["cl"]
    many(cast.owner, 10)
    second = site.get(LOG + first.older_url).context["cl"]
    assert [record.label for record in second.result_list] == [f"n{number}" for number in reversed(range(10))]


@pytest.mark.parametrize(
    ("query", "number", "offset"), [("account=acme&from=-24h", 4, False), ("account=acme&status=ok&from=-24h", 6, True)]
)
def test_it_never_counts_and_asks_the_same_few_times(
    site: Client, cast: Cast, query: str, number: int, offset: bool
) -> None:
    many(cast.owner, 60)
    with CaptureQueriesContext(connection) as queries:
        site.get(f"{LOG}?{query}")
    sent = " ".join(query["sql"] for query in queries).upper()
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
        pages = [site.get(f"{LOG}?cache=replay").context["cl"]]
        while pages[-1].older_url:
            pages.append(site.get(LOG + pages[-1].older_url).context["cl"])
        found = [[record.label for record in page.result_list] for page in pages]
        assert found == [[], [], ["n11", "n9"], [], ["n0"]]
        assert [page.searched is not None for page in pages] == [True] * 4 + [False]
        back = [site.get(LOG + pages[-1].newer_url).context["cl"]]
        while back[-1].newer_url:
            back.append(site.get(LOG + back[-1].newer_url).context["cl"])
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

    @pytest.mark.parametrize(
        "query", ["model=rare", "status=failed", "status=502", "q=n0", "model=rare&from=-1h", "key=owner&account="]
    )
    def test_it_finds_at_once_what_has_an_index(self, site: Client, log: None, query: str) -> None:
        page = site.get(f"{LOG}?{query}").context["cl"]
        assert page.result_list[-1].label == "n0"
        assert page.searched is None

    @pytest.mark.parametrize("query", ["status=ok", "status=refused", "status=200", "endpoint=nothing", "stream=1"])
    def test_it_searches_for_what_has_none(self, site: Client, log: None, query: str) -> None:
        assert site.get(f"{LOG}?{query}").context["cl"].searched.rows == 5

    def test_it_searches_among_those_that_an_index_has(self, site: Client, cast: Cast) -> None:
        recorded(cast.stranger, label="wanted", cache="replay")
        many(cast.owner, 9)
        for _ in range(4):
            recorded(cast.stranger)
        found = site.get(f"{LOG}?account=globex&cache=replay").context["cl"]
        assert [record.label for record in found.result_list] == ["wanted"]
        assert found.searched is None

    def test_it_searches_no_further_than_the_time_that_is_asked_for(self, site: Client, cast: Cast) -> None:
        for _ in range(9):
            recorded(cast.owner, **at(5))
        many(cast.owner, 5)
        assert site.get(f"{LOG}?cache=replay").context["cl"].searched is not None
        assert site.get(f"{LOG}?cache=replay&from=-1h").context["cl"].searched is None


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
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
            cursor.execute("SET LOCAL enable_sort = off")
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{asked[-1]['sql']}")
        plan = str(cursor.fetchall())
    if connection.vendor == "sqlite":  # PostgreSQL goes by what is in the table: of few records by any index
        assert index in plan
    assert "sort" not in plan.lower()
    assert "temp" not in plan.lower()


def test_it_shows_one_record(site: Client, cast: Cast) -> None:
    recorded(cast.owner, status=502, error_code="upstream_failed")
    RequestRecord.objects.update(is_overrun=True)
    record = RequestRecord.objects.get()
    page = site.get(f"{LOG}{record.pk}/change/").content.decode()
    assert "upstream_failed" in page
    assert "the provider billed more than the bound" in page
    assert f"/admin/accounts/apikey/{cast.owner.key.pk}/change/" in page


def test_it_says_why_a_request_failed_and_links_to_what_to_do(site: Client, cast: Cast) -> None:
    pages = {}
    for code in ("upstream_timeout", "client_left"):
        record = recorded(cast.owner, status=504, error_code=code)
        pages[code] = site.get(f"{LOG}{uuid.UUID(record.id)}/change/").content.decode()
    assert f"upstream_timeout: {UpstreamTimeout.message}" in pages["upstream_timeout"]
    assert 'href="/playground/#code-upstream_timeout"' in pages["upstream_timeout"]
    assert "The client closed the connection" in pages["client_left"]
    assert "#code-" not in pages["client_left"]


def test_it_changes_nothing(site: Client, cast: Cast) -> None:
    recorded(cast.owner)
    record = RequestRecord.objects.get()
    assert site.post(f"{LOG}add/", {}).status_code == 403
    assert site.post(f"{LOG}{record.pk}/change/", {"status": "500"}).status_code == 403
    assert site.post(f"{LOG}{record.pk}/delete/", {"post": "yes"}).status_code == 403
    site.post(LOG, {"action": "delete_selected", "_selected_action": [str(record.pk)], "post": "yes"})
    assert RequestRecord.objects.get().status == 200


def test_it_lets_staff_see_it_by_permission() -> None:
    client = logged_in(make_staff(name="a"))
    assert client.get(LOG).status_code == 403
    client.force_login(make_staff("monitoring.view_requestrecord", name="b"))
    assert client.get(LOG).status_code == 200
