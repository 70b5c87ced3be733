"""Usage as a file from the admin: what it holds, who may take it, and what it asks for."""

from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from django.http import StreamingHttpResponse
from django.test import Client

from accounts.models import AuditEntry
from accounts.tests.factories import Cast, logged_in, make_staff
from monitoring.export import usage_columns
from monitoring.tests.samples import micros_at, recorded

pytestmark = pytest.mark.django_db
LOG = "/admin/monitoring/requestrecord/"
PAGE = f"{LOG}usage/export/"
WANTED = {"first": "2026-11-01", "last": "2026-11-30", "unit": "day", "by": "account", "file_format": "csv"}


@pytest.fixture
def used(cast: Cast) -> None:
    """Have two accounts use something in November."""
    for issued, day, hour in ((cast.owner, 1, 3), (cast.owner, 2, 4), (cast.colleague, 2, 5), (cast.stranger, 2, 23)):
        recorded(issued, admitted_at=micros_at(11, day, hour), cost=2_000_000)


def asked(site: Client, **changes: str) -> Any:
    """Send the form."""
    return site.post(PAGE, WANTED | changes)


def body_of(response: Any) -> bytes:
    """Read a streamed answer."""
    assert isinstance(response, StreamingHttpResponse), response.content.decode()
    return b"".join(response)


def lines_of(response: Any) -> list[dict[str, Any]]:
    """Read an answer in JSON Lines."""
    return [json.loads(line) for line in body_of(response).splitlines()]


@pytest.mark.usefixtures("used")
class TestFile:
    def test_it_gives_the_sums_as_csv(self, site: Client) -> None:
        response = asked(site)
        assert response["Content-Type"] == "text/csv; charset=utf-8"
        assert response["Content-Disposition"].startswith('attachment; filename="usage-by-day-and-account-2')
        head, *rows = csv.reader(io.StringIO(body_of(response).decode(), newline=""))
        assert tuple(head) == usage_columns("account")
        assert [(row[0], row[1], row[3]) for row in rows] == [
            ("2026-11-01T00:00:00Z", "acme", "1"),
            ("2026-11-02T00:00:00Z", "acme", "2"),
            ("2026-11-02T00:00:00Z", "globex", "1"),
        ]

    def test_it_gives_them_as_json_lines_split_as_asked(self, site: Client) -> None:
        response = asked(site, unit="month", by="key", account="acme", file_format="jsonl")
        assert response["Content-Type"] == "application/x-ndjson"
        assert sorted((line["key"], line["cost"]) for line in lines_of(response)) == [
            ("colleague", "0.002000000"),
            ("owner", "0.004000000"),
        ]

    def test_it_packs_them(self, site: Client) -> None:
        response = asked(site, is_packed="on")
        assert response["Content-Type"] == "application/gzip"
        assert response["Content-Disposition"].endswith('.csv.gz"')
        assert gzip.decompress(body_of(response)).count(b"\r\n") == 4

    def test_it_takes_one_day_by_the_hour(self, site: Client) -> None:
        span = {"first": "2026-11-02", "last": "2026-11-02"}
        starts = [line["start"] for line in lines_of(asked(site, unit="hour", file_format="jsonl", **span))]
        assert starts == [f"2026-11-02T{hour:02}:00:00Z" for hour in (4, 5, 23)]

    def test_it_leaves_an_entry_of_what_was_taken(self, site: Client) -> None:
        body_of(asked(site, account="acme"))
        entry = AuditEntry.objects.latest("pk")
        assert (entry.actor, entry.action, entry.target) == ("admin:root", "exported", "usage rows")
        assert entry.after == {
            "begin": "2026-11-01 00:00:00+00:00",
            "end": "2026-12-01 00:00:00+00:00",
            "unit": "day",
            "by": "account",
            "account": "acme",
            "format": "csv",
            "gzip": False,
        }


class TestForm:
    def test_it_gives_this_month_where_no_span_is_named(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner)
        recorded(cast.owner, admitted_at=int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000)
        (line,) = lines_of(asked(site, first="", last="", unit="month", file_format="jsonl"))
        assert line["requests"] == 1

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"account": "nobody"}, "No account has this name."),
            ({"first": "yesterday"}, "Enter a valid date."),
            ({"first": "2026-12-01"}, "It ends before it begins."),
            ({"unit": "week"}, "Select a valid choice."),
            ({"by": "password"}, "Select a valid choice."),
            ({"file_format": "xml"}, "Select a valid choice."),
        ],
    )
    def test_it_says_what_it_can_t_give(self, site: Client, changes: dict[str, str], told: str) -> None:
        response = asked(site, **changes)
        assert response.status_code == 200
        assert told in response.content.decode()
        assert not AuditEntry.objects.filter(action="exported").exists()

    def test_it_begins_with_the_days_and_the_account_of_the_report(self, site: Client, cast: Cast) -> None:
        query = "period=custom&amp;first=2026-11-03&amp;last=2026-11-09&amp;account=acme"
        report = site.get(f"{LOG}usage/?{unescape(query)}").content.decode()
        assert f'href="{PAGE}?{query}"' in report
        html = site.get(f"{PAGE}?{unescape(query)}").content.decode()
        assert all(f'value="{value}"' in html for value in ("2026-11-03", "2026-11-09", "acme"))
        assert f'href="{LOG}usage/?{query}">Usage report</a>' in html
        assert f'<option value="{cast.stranger.key.account.name}">' in html
        assert 'value="a&lt;b"' in site.get(f"{PAGE}?account=a<b").content.decode()

    def test_it_serves_those_who_may_look_and_export(self, cast: Cast) -> None:
        may = {"looker": ["view"], "blind": ["export"], "both": ["view", "export"]}
        sites = {
            name: logged_in(make_staff(*(f"monitoring.{verb}_requestrecord" for verb in verbs), name=name))
            for name, verbs in may.items()
        }
        for name in ("looker", "blind"):
            assert sites[name].get(PAGE).status_code == asked(sites[name]).status_code == 403
        assert PAGE not in sites["looker"].get(LOG).content.decode()
        assert asked(Client()).status_code == 302
        assert not AuditEntry.objects.filter(action="exported").exists()
        assert body_of(asked(sites["both"])).startswith(b"start,account,")
