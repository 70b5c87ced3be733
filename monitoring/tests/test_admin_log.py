"""The request log's page: histogram, quick filters, chips, ids by prefix, live rows, and its size."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.tests.factories import Cast
from monitoring import admin_log
from monitoring.admin_log import Histogram
from monitoring.models import RequestRecord
from monitoring.tests.samples import micros, recorded

pytestmark = pytest.mark.django_db
LOG = "/admin/monitoring/requestrecord/"


def ago(**parts: float) -> int:
    """Return a time before now as records have it."""
    return micros(timezone.now() - timedelta(**parts))


@pytest.fixture
def log(cast: Cast) -> None:
    """Have requests of two accounts in the last two days."""
    recorded(cast.owner, label="fine", admitted_at=ago(hours=1))
    recorded(
        cast.owner, label="limited", status=429, error_code="rate_limited", cache="", count=7, admitted_at=ago(hours=3)
    )
    recorded(cast.stranger, label="failed", status=502, latency_ms=5000.0, admitted_at=ago(hours=3), cache="bypass")
    recorded(cast.stranger, label="old", admitted_at=ago(hours=40))


def context_of(site: Client, query: str = "") -> Any:
    """Open the list and return the context of its templates."""
    response = site.get(f"{LOG}?{query}")
    assert response.status_code == 200
    return response.context


def histogram_of(site: Client, query: str = "") -> Histogram:
    """Open the list and return its histogram."""
    shown = context_of(site, query)["histogram"]
    assert isinstance(shown, Histogram)
    return shown


@pytest.mark.usefixtures("log")
class TestHistogram:
    @pytest.mark.parametrize(
        ("query", "counts"),
        [
            ("", {"ok": 1, "limited": 7, "failed": 1}),
            ("from=-7d", {"ok": 2, "limited": 7, "failed": 1}),
            ("from=-7d&account=globex", {"ok": 1, "failed": 1}),
            ("from=-7d&key=owner", {"ok": 1, "limited": 7}),
            ("from=-7d&model=gpt-3.5-turbo&endpoint=chat", {"ok": 2, "limited": 7, "failed": 1}),
            ("from=-7d&status=failed", {"ok": 2, "limited": 7, "failed": 1}),
            ("from=-7d&cache=bypass", {"failed": 1}),
            ("from=-7d&slower=1000", {"failed": 1}),
            ("from=-7d&account=nobody", {}),
            ("from=-2h", {"ok": 1}),
            ("from=-200d", {"ok": 2, "limited": 7, "failed": 1}),
            ("cache=bypass", {"failed": 1}),
            ("status=502", {}),
            ("from=-2h&status=failed", {}),
        ],
    )
    def test_it_counts_what_the_filters_select(self, site: Client, query: str, counts: dict[str, int]) -> None:
        assert {name: number for name, number in histogram_of(site, query).counts.items() if number} == counts

    def test_it_reads_no_record_where_the_rollups_have_the_answer(self, site: Client) -> None:
        with CaptureQueriesContext(connection) as asked:
            site.get(f"{LOG}?from=-24h&account=acme&status=failed")
        of_log = [query["sql"] for query in asked if 'FROM "monitoring_requestrecord"' in query["sql"]]
        assert len([sql for sql in of_log if "SUM(" in sql]) == 0

    def test_it_shows_the_chosen_outcome_and_links_each_bar_to_its_time(self, site: Client) -> None:
        shown = histogram_of(site, "from=-24h&status=failed")
        (bar,) = shown.bars
        assert [name for name, *_ in bar.parts] == ["failed"]
        assert "1 5xx" in bar.text
        assert "status=failed" in bar.url
        (record,) = context_of(site, bar.url.removeprefix("?"))["rows"]
        assert record.record.label == "failed"

    def test_it_has_no_bar_outside_its_span(self, site: Client) -> None:
        for query in ("status=200", "cache=miss", "from=-1h&model=gpt-3.5-turbo"):
            shown = histogram_of(site, query)
            assert all(0 <= bar.place < shown.number for bar in shown.bars), query

    def test_it_counts_the_newest_only_where_the_log_is_long(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admin_log, "COUNTED", 3)
        for _ in range(5):
            recorded(cast.owner)
        shown = histogram_of(site, "from=-1h")
        assert shown.counts["ok"] == 3
        assert shown.note.startswith("Only the newest were counted, back to")

    @pytest.mark.parametrize(
        "query", ["from=2026-01-01&until=2025-01-01", "until=1960-01-01", "from=9990-01-01", "q=fine"]
    )
    def test_it_is_not_shown_where_nothing_can_be(self, site: Client, query: str) -> None:
        context = context_of(site, query)
        assert context["histogram"] is None or not context["histogram"].bars


@pytest.mark.usefixtures("log")
class TestFilters:
    def test_it_shows_each_filter_as_a_chip_that_removes_it(self, site: Client) -> None:
        chips = context_of(site, "account=acme&from=-24h&status=failed&q=abc")["chips"]
        assert [(name, value) for name, value, *_ in chips] == [
            ("outcome", "failed"),
            ("account", "acme"),
            ("time", "Last 24 hours"),
            ("search", "abc"),
        ]
        assert "account" not in chips[1][2]
        assert "from" not in chips[2][2]
        assert [is_shown for *_, is_shown in chips] == [True, False, True, False]

    @pytest.mark.parametrize(
        ("query", "shown"),
        [
            ("from=2025-11-30T02:00Z&until=2025-12-01T02:00Z", "30 Nov 2025 02:00 \N{EN DASH} 1 Dec 2025 02:00 UTC"),
            ("from=2025-11-30T02:00%2B02:00", "from 30 Nov 2025 00:00 UTC"),
            ("until=2025-12-01", "until 1 Dec 2025 00:00 UTC"),
        ],
    )
    def test_it_shows_a_span_as_people_read_it(self, site: Client, query: str, shown: str) -> None:
        ((_, value, _, _),) = context_of(site, query)["chips"]
        assert value == shown

    def test_it_numbers_only_the_requests_of_a_chosen_time(self, site: Client) -> None:
        assert "Last 24 hours: requests per 30 min (peak " in site.get(LOG).content.decode()
        assert [text for _, text, *_ in context_of(site)["quick_filters"]][:2] == ["5xx", "429"]
        assert "Requests per " in site.get(f"{LOG}?from=-7d").content.decode()

    def test_it_sets_and_removes_quick_filters_with_their_numbers(self, site: Client) -> None:
        offered = {
            text: (url, is_set) for _, text, url, is_set in context_of(site, "from=-24h&status=failed")["quick_filters"]
        }
        assert offered["5xx 1"] == ("?from=-24h", True)
        assert offered["429 7"] == ("?from=-24h&status=limited", False)
        assert offered["slow (2 s or more)"] == ("?from=-24h&slower=2000&status=failed", False)
        numbers = [text for _, text, *_ in context_of(site, "from=-24h&status=502&cache=bypass")["quick_filters"]]
        assert numbers[0] == "5xx"  # what other outcomes have is not known

    def test_it_finds_an_id_by_its_beginning(self, site: Client) -> None:
        pk = str(RequestRecord.objects.get(label="old").pk)
        for term in (pk[:13], pk[:11].upper(), pk.replace("-", "")[:10], pk):
            assert "old" in [row.record.label for row in context_of(site, f"q={term}")["rows"]], term
        for term in ("01", "zzzz", pk + "0", "%"):
            assert not context_of(site, f"q={term}")["rows"], term


@pytest.mark.usefixtures("log")
class TestRows:
    def test_it_shows_one_line_a_record_with_exact_figures_on_hover(self, site: Client) -> None:
        html = " ".join(site.get(LOG).content.decode().split())
        assert re.search(r'<time title="\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC">\d+ \w{3} \d\d:\d\d:\d\d</time>', html)
        assert "rate_limited (7 times)" in html

    def test_it_gives_the_rows_alone_to_the_live_list(self, site: Client) -> None:
        html = site.get(f"{LOG}?tail=1&account=globex").content.decode()
        assert 'id="log-rows"' in html
        assert "<html" not in html
        assert "globex" in html
        assert "acme" not in html
        assert site.get(f"{LOG}?tail=1&slower=soon").status_code == 302

    def test_it_never_shows_an_unknown_cost_as_zero(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, cost=None)
        assert context_of(site)["rows"][0].cost == "unknown"

    def test_it_is_light(self, site: Client, cast: Cast) -> None:
        for _ in range(60):
            recorded(cast.owner, status=502, error_code="upstream_failed")
        assert len(context_of(site)["rows"]) == 50
        assert len(site.get(f"{LOG}?account=acme&from=-30d").content) < 150_000

    def test_it_says_what_to_do_when_nothing_is_there(self, site: Client) -> None:
        assert "Clear all filters" in site.get(f"{LOG}?account=nobody").content.decode()
        RequestRecord.objects.all().delete()
        assert "curl -sS http://testserver/v1/chat/completions" in site.get(LOG).content.decode()
