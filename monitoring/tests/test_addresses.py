"""Whatever moments an address, a form or a command names, the answer is a page, a message or a file: never a 500."""

from __future__ import annotations

import argparse
from datetime import UTC, date, datetime, timedelta, timezone
from io import StringIO
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.management import call_command
from django.test import Client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from accounts.tests.factories import logged_in, make_admin, make_key
from core.arguments import datetime_argument
from monitoring.models import RequestRecord
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db

RECORDS = "/admin/monitoring/requestrecord/"
OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.one_of(
    st.sampled_from(
        ["0001-01-01", "0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00", "9999-12-31T23:59Z", "1969-12-31T23:30",
         "1970-01-01", "1000-01-01", "", "-9999d", "-0h", "-1h", "abc", "\0", "2026-11-24T10:00\n", "2026-W48-5"]
    ),
    st.datetimes(timezones=st.none() | OFFSETS).map(datetime.isoformat),
    st.dates().map(str),
    st.text(max_size=30),
)  # fmt: skip
PLACES = st.tuples(MOMENTS, st.uuids() | st.integers() | st.text(max_size=40)).map(
    lambda place: f"{place[0]}~{place[1]}"
)
SPANS = st.one_of(
    st.tuples(MOMENTS, MOMENTS),
    st.tuples(st.dates(max_value=date(9980, 1, 1)), st.integers(0, 3660)).map(
        lambda span: (str(span[0]), str(span[0] + timedelta(days=span[1])))
    ),
)
fuzzed = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def site(db: None) -> Client:
    """Return a superuser's browser; there is a record to find."""
    recorded(make_key())
    return logged_in(make_admin())


def read(response: Any) -> bytes:
    """Read an answer to its end, a streamed one as well."""
    return b"".join(response.streaming_content) if response.streaming else response.content


@fuzzed
@given(SPANS)
@example(("1969-01-01", "1971-01-01"))
@example(("1000-01-01", "1005-01-01"))
@example(("0001-01-01", "0001-01-02"))
def test_it_shows_a_dashboard_for_any_span(site: Client, span: tuple[str, str]) -> None:
    query = urlencode({"range": "custom", "from": span[0], "to": span[1]})
    assert site.get(f"/admin/?{query}").status_code == 200
    assert site.get(f"/admin/dashboard/?{query}").status_code == 200


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("/admin/", ["range", "account", "key", "model", "endpoint", "seen"]),
        (RECORDS, ["status", "cache", "account", "key", "model", "slower", "stream", "older", "newer", "q"]),
        ("/admin/accounts/auditentry/", ["older", "newer"]),
    ],
)
@fuzzed
@given(st.data())
def test_it_shows_a_page_for_any_filter_and_place(
    site: Client, place: str, names: list[str], data: st.DataObject
) -> None:
    texts = st.text(max_size=40) | st.integers().map(str) | st.uuids().map(str) | PLACES
    asked = data.draw(st.dictionaries(st.sampled_from(names), texts))
    assert site.get(f"{place}?{urlencode(asked)}", follow=True).status_code == 200


@pytest.mark.parametrize("place", [RECORDS, f"{RECORDS}export/", "/admin/accounts/auditentry/"])
@fuzzed
@given(SPANS)
def test_it_lists_any_span(site: Client, place: str, span: tuple[str, str]) -> None:
    query = urlencode({"from": span[0], "until": span[1]})
    response = site.get(f"{place}?{query}", follow=True)
    assert response.status_code == 200
    assert read(response)


@fuzzed
@given(SPANS, st.sampled_from(["hour", "day", "month"]))
@example(("0001-01-01", "9999-12-31"), "hour")
def test_it_exports_the_usage_of_any_span(site: Client, span: tuple[str, str], unit: str) -> None:
    form = {"first": span[0][:10], "last": span[1][:10], "unit": unit, "by": "account", "file_format": "csv"}
    response = site.post(f"{RECORDS}usage/export/", form)
    assert response.status_code == 200
    assert read(response)


@given(MOMENTS)
def test_it_takes_any_text_on_the_command_line_or_says_that_it_is_no_moment(text: str) -> None:
    try:
        moment = datetime_argument(text)
    except argparse.ArgumentTypeError:
        return
    assert moment.tzinfo is UTC


def test_its_commands_take_times_before_all_ids(site: Client, tmp_path: Any) -> None:
    for days in (20_700, 36_500):
        for options, told in (({}, "Pruned 0 records"), ({"dry_run": True}, "Would prune 0 records")):
            call_command("prune_logs", days=days, **options, stdout=(said := StringIO()))
            assert told in said.getvalue()
    assert RequestRecord.objects.count() == 1
    for command in ("export_log", "export_usage"):
        call_command(command, "--from", "1969-01-01", "--output", str(tmp_path / "all.csv"))
        assert len((tmp_path / "all.csv").read_text().splitlines()) == 2
