"""The request log in the admin: read-only, filtered, page by page without counting."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
import uuid6
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.exceptions import UpstreamTimeout
from accounts.tests.factories import Cast, IssuedKey, make_admin, make_staff
from monitoring.ids import first_id
from monitoring.models import RequestRecord
from monitoring.tests.samples import now_micros, recorded

pytestmark = pytest.mark.django_db

LOG = "/admin/monitoring/requestrecord/"
HOUR = 3600 * 1_000_000  # in µs


@pytest.fixture
def site() -> Client:
    """Return a browser that is logged in as a superuser."""
    client = Client()
    client.force_login(make_admin())
    return client


def labels(site: Client, query: str = "") -> list[str]:
    """List the labels of the records on a page."""
    response = site.get(f"{LOG}?{query}")
    assert response.status_code == 200, response.headers
    return [record.label for record in response.context["cl"].result_list]


def at(hours_ago: float) -> dict[str, Any]:
    """Return id and time of a record that was made so many hours ago."""
    micros = now_micros() - int(hours_ago * HOUR)
    milliseconds = micros // 1000
    return {"id": uuid.UUID(int=(milliseconds << 80) | uuid6.uuid7().int & ((1 << 80) - 1)).hex, "admitted_at": micros}


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
            ("cache__exact=hit", {"hit"}),
            ("from=-1h", {"fine", "hit", "limited", "invalid"}),
            ("until=-1h", {"failed"}),
            ("from=-24h&status=failed&account=globex", {"failed"}),
            ("q=limited", {"limited"}),
            ("q=limite", set()),
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


def test_it_never_counts_and_asks_the_same_few_times(site: Client, cast: Cast) -> None:
    many(cast.owner, 60)
    with CaptureQueriesContext(connection) as queries:
        site.get(f"{LOG}?account=acme&status=ok&from=-24h")
    sent = " ".join(query["sql"] for query in queries).upper()
    assert "COUNT(" not in sent
    assert "OFFSET" not in sent
    assert len(queries) <= 4


def test_it_uses_an_index_for_spans_of_time(cast: Cast) -> None:
    moment = timezone.now()
    recorded(cast.owner)
    record = RequestRecord.objects.get()
    assert first_id(moment - timedelta(seconds=1)) <= record.pk < first_id(moment + timedelta(seconds=60))


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
        pages[code] = site.get(f"{LOG}{uuid.UUID(record['id'])}/change/").content.decode()
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
    client = Client()
    client.force_login(make_staff(name="a"))
    assert client.get(LOG).status_code == 403
    client.force_login(make_staff("monitoring.view_requestrecord", name="b"))
    assert client.get(LOG).status_code == 200
