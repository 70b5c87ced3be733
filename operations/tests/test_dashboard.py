"""The admin's index: figures of a range, filters, lists, and what it costs."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings
from redis.exceptions import RedisError

from accounts import limit_usage
from accounts.limits.types import LIMITS, LimitName, LimitsUnavailable
from accounts.tests.factories import Cast, logged_in, make_account, make_key, make_staff, make_tier
from inference.fake_provider import FakeUpstream
from inference.models import Deployment
from inference.tests.samples import serve
from inference.upstream.breaker import BreakerReading, BreakerState
from monitoring.ingester import Backlog
from monitoring.models import Alert
from monitoring.tests.samples import an_operation, recorded
from operations import deployments
from operations.dashboard import data, sections

pytestmark = pytest.mark.django_db

INDEX, SECTIONS = "/admin/", "/admin/dashboard/"
#: What the page may ask of the database, the session and its user included.
QUERIES = 60


def shown(site: Client, query: str = "") -> dict[str, Any]:
    """Open the page and return what it shows."""
    response = site.get(f"{INDEX}?{query}")
    assert response.status_code == 200
    found: dict[str, Any] = response.context["dashboard"]
    return found


def tile(dashboard: dict[str, Any], name: str) -> Any:
    """Return a tile by its name."""
    return next(each for each in dashboard["tiles"] if each.name == name)


def chart(dashboard: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a chart by its id, its sets by their names."""
    found = next(each for each in dashboard["charts"]["charts"] if each["id"] == name)
    return {**dashboard["charts"]["axis"], **found, "sets": {each["name"]: each["values"] for each in found["sets"]}}


def ago(**time: float) -> dict[str, Any]:
    """Return the time of a record that was admitted so long ago."""
    return {"admitted_at": int((timezone.now() - timedelta(**time)).timestamp() * 1_000_000)}


class TestFigures:
    @pytest.mark.parametrize("name", ["1h", "24h", "7d", "30d"])
    def test_it_adds_up_every_range(self, site: Client, cast: Cast, name: str) -> None:
        recorded(cast.owner, cost=3_000_000_000)
        recorded(cast.owner, status=502, error_code="upstream_failed", cost=0)
        recorded(cast.stranger, status=429, count=8, cost=0)
        recorded(cast.stranger, cache="hit", cost=0, saved_cost=500_000_000, first_token_ms=40.0)
        recorded(cast.owner, **ago(days=40))
        dashboard = shown(site, f"range={name}")
        values = {each.name: each.value for each in dashboard["tiles"]}
        assert values["Requests"] == "11"
        assert values["Failed"] == "9.1 %"
        assert tile(dashboard, "Failed").more == "1 failed; 8 limited, 0 invalid"
        assert values["Cost"] == "$3.00"
        assert values["Saved"] == "$0.50"
        assert values["Latency p95"] == "~12 ms"
        assert values["First token p95"].startswith("~")
        assert sum(chart(dashboard, "traffic")["sets"]["over a limit"]) == 8

    def test_it_tells_the_same_of_the_last_hour_by_the_log_as_by_the_rollups(self, site: Client, cast: Cast) -> None:
        for milliseconds in (0.2, 5, 80, 1234, 99_999_999):
            recorded(cast.owner, latency_ms=milliseconds, first_token_ms=milliseconds / 2)
        hour, of_account, day = (shown(site, query) for query in ("range=1h", "range=1h&account=acme", "range=24h"))
        with CaptureQueriesContext(connection) as asked:
            shown(site, "range=1h&model=gpt-3.5-turbo")
        assert not [each["sql"] for each in asked if "requestrecord" in each["sql"] and "GROUP BY" in each["sql"]]
        for each in (hour, of_account):
            assert [tile.value for tile in each["tiles"]] == [tile.value for tile in day["tiles"]]
            for name in ("latency", "first-token"):
                last = [values[-1] for values in chart(day, name)["sets"].values()]
                data = chart(each, name)["sets"].values()
                assert [next(value for value in values if value) for values in data] == last

    def test_it_compares_with_the_time_before_without_what_is_not_over(self, site: Client, cast: Cast) -> None:
        for _ in range(2):
            recorded(cast.owner, **ago(hours=30))
        for _ in range(3):
            recorded(cast.owner, **ago(hours=6))
        recorded(cast.owner)  # in an hour that has only begun
        requests = tile(shown(site), "Requests")
        assert requests.value == "4"
        assert requests.change.text == "▲ 50 %"
        assert requests.change.full.startswith("3, after 2 in the period before")

    @pytest.mark.parametrize("filters", ["", "&account=acme"])
    def test_it_compares_the_last_hour_with_the_one_before(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch, filters: str
    ) -> None:
        moment = timezone.now()
        monkeypatch.setattr(timezone, "now", lambda: moment)
        for back in (30, 75, 90, 115):
            recorded(cast.owner, **ago(minutes=back))
        recorded(cast.owner, **ago(minutes=0))  # in a minute that has only begun
        recorded(cast.owner, **ago(minutes=60))  # and what stands against it an hour before
        requests = tile(shown(site, f"range=1h{filters}"), "Requests")
        assert requests.value == "2"
        assert requests.change.full.startswith("1, after 3 in the period before")

    def test_it_calls_a_change_better_or_worse_if_it_is_no_noise(self, site: Client, cast: Cast) -> None:
        for latency, hours in ((100.0, 30), (104.0, 6)):
            recorded(cast.owner, latency_ms=latency, **ago(hours=hours))
        recorded(cast.owner, latency_ms=500.0, **ago(hours=5))
        assert tile(shown(site), "Latency p95").change.tone == "even", "of a handful"
        recorded(cast.owner, latency_ms=100.0, count=20, **ago(hours=30))
        recorded(cast.owner, latency_ms=104.0, count=20, **ago(hours=5))
        assert tile(shown(site), "Latency p95").change.tone == "even"
        recorded(cast.owner, latency_ms=500.0, count=20, **ago(hours=5))
        assert tile(shown(site), "Latency p95").change.tone == "worse"

    def test_it_names_the_cause_of_a_cost_that_more_than_doubled(self, site: Client, cast: Cast) -> None:
        for hours, cost in ((30, 5_000_000_000), (6, 6_000_000_000)):
            recorded(cast.owner, model="steady", cost=cost, count=20, **ago(hours=hours))
        assert (tile(shown(site), "Cost").change.tone, tile(shown(site), "Cost").more) == ("even", "US dollars")
        recorded(cast.colleague, model="dear", cost=4_500_000_000, **ago(hours=5))
        recorded(cast.stranger, model="dear", cost=1_000_000_000, **ago(hours=5))
        cost = tile(shown(site), "Cost")
        assert (cost.change.tone, cost.more) == ("worse", "dear, acme / colleague: $4.50")

    def test_it_says_how_far_a_share_changed_and_shows_gaps(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, **ago(hours=30))
        recorded(cast.owner, **ago(hours=6), status=502, latency_ms=100.0)
        dashboard = shown(site)
        change = tile(dashboard, "Failed").change
        assert (change.text, change.tone) == ("▲ 100.0 points", "even")  # an outage
        assert tile(dashboard, "Latency p95").change.tone == "even"
        assert tile(dashboard, "Saved").change.text == "none before"
        latency, traffic = chart(dashboard, "latency"), chart(dashboard, "traffic")
        assert [value is None for value in latency["sets"]["p95"]].count(False) == 1
        assert sorted(traffic["sets"]["failed"])[-2:] == [0, 1]
        assert len(traffic["labels"]) == len(traffic["names"]) == 24
        assert traffic["time"] == "Hour (UTC)"

    def test_it_adds_up_the_cost_of_models_beyond_six(self, site: Client, cast: Cast) -> None:
        for number in range(1, 9):
            recorded(cast.owner, model=f"m{number}", cost=number * 1_000_000_000)
        sets = chart(shown(site), "cost")["sets"]
        assert list(sets) == ["m8", "m7", "m6", "m5", "m4", "others"]
        assert sets["others"][-1] == 6

    def test_it_shows_days_and_months_of_an_own_range(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, **ago(days=50))
        begin = f"{timezone.now() - timedelta(days=60):%Y-%m-%d}"
        dashboard = shown(site, f"range=custom&from={begin}&to={timezone.now():%Y-%m-%dT%H:%M}")
        assert tile(dashboard, "Requests").value == "1"
        assert len(chart(dashboard, "traffic")["labels"]) in (60, 61)
        dashboard = shown(site, "range=custom&from=2025-01-01&to=2026-01-01")
        assert chart(dashboard, "traffic")["labels"][0] == "Jan 2025"
        assert len(chart(dashboard, "traffic")["labels"]) == 12

    def test_it_reads_no_more_than_a_number_of_records(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(data, "MOST", 3)
        for minute in (50, 40, 30, 20, 10):
            recorded(cast.owner, **ago(minutes=minute))
        dashboard = shown(site, "range=1h&account=acme")
        assert tile(dashboard, "Requests").value == "3"
        assert tile(dashboard, "Requests").change.text == "no earlier data"
        assert dashboard["notice"].startswith("There were too many requests")


class TestAddress:
    def test_it_filters(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, model="a", endpoint="chat")
        recorded(cast.colleague, model="b", endpoint="summarize")
        recorded(cast.stranger, model="b", endpoint="chat")
        for name in ("1h", "24h"):
            for query, count in {
                "account=acme": 2,
                "account=acme&key=owner": 1,
                "key=stranger": 1,
                f"key={cast.owner.key.prefix}": 1,
                "model=b": 2,
                "model=b&account=acme": 1,
                "endpoint=chat": 2,
            }.items():
                dashboard = shown(site, f"range={name}&{query}")
                assert tile(dashboard, "Requests").value == str(count), query
                assert query.replace("&", "&amp;") or query in dashboard["query"]
                assert dashboard["problems"] == ()

    @pytest.mark.parametrize(
        ("query", "problem"),
        [
            ("range=2y", "There is no range “2y”. The last 24 hours are shown."),
            ("range=custom", "“” is not a time for “from”"),
            ("range=custom&from=2026-01-02&to=yesterday", "“yesterday” is not a time for “to”"),
            ("range=custom&from=2026-01-02&to=2026-01-01", "A range ends after it begins."),
            ("range=custom&from=2999-01-02&to=2999-01-03", "A range begins before now."),
            ("range=custom&from=1990-01-02&to=2026-01-03", "A range is ten years long at most."),
            ("range=custom&from=0001-01-01T00:00%2B23:00&to=2026-01-03", "is too far away"),
            ("account=nobody", "No account is called “nobody”: all are shown."),
            ("key=nothing", "No key is called “nothing”: all are shown."),
            ("account=acme&key=stranger", "No key is called “stranger”"),
            ("key=twin", "Several keys are called “twin”: name the account as well."),
            ("model=m", "No request asked for a model “m”: all are shown."),
            ("endpoint=e", "No request went to an endpoint “e”: all are shown."),
            ("account=%00&key=a%00", "No key is called “a”"),
        ],
    )
    def test_it_says_what_it_can_not_use(self, site: Client, cast: Cast, query: str, problem: str) -> None:
        recorded(make_key(account=cast.owner.key.account, name="twin"))
        make_key(account=cast.stranger.key.account, name="twin")
        dashboard = shown(site, query)
        assert problem in " ".join(dashboard["problems"])
        assert tile(dashboard, "Requests").value == "1"

    def test_it_links_figures_to_the_records_they_were_counted_from(self, site: Client, cast: Cast) -> None:
        for outcome in ("hit", "coalesced", "coalesced", "bypass", "replay"):
            recorded(cast.colleague, cache=outcome)
        recorded(cast.colleague, latency_ms=5000.0, first_token_ms=5.0, label="slow")
        recorded(cast.owner, status=502, label="this-one")
        recorded(cast.stranger, status=502)
        recorded(cast.owner)
        recorded(cast.owner, **ago(days=2), status=502)

        def listed(query: str, name: str) -> list[Any]:
            return list(site.get(tile(shown(site, query), name).url).context["cl"].result_list)

        assert [record.label for record in listed("account=acme&key=owner", "Failed")] == ["this-one"]
        assert [record.label for record in listed("key=colleague", "First token p95")] == ["slow"]
        assert tile(shown(site, "key=colleague"), "Cache hit rate").exact == "3 of 4"
        found = listed("key=colleague", "Cache hit rate")
        assert sorted(record.cache for record in found) == ["coalesced", "coalesced", "hit"]


def test_it_is_shown_to_users_who_may_view_records(site: Client, cast: Cast) -> None:
    recorded(cast.owner)
    Alert.objects.create(subject="s", title="firing", began_at=timezone.now())
    Alert.objects.create(subject="s", title="over", began_at=timezone.now(), ended_at=timezone.now())
    assert shown(site)["status"].text.startswith("firing, since ")
    plain = logged_in(make_staff("accounts.view_account", name="plain"))
    response = plain.get(INDEX)
    assert (response.status_code, "dashboard" in response.context) == (200, False)
    assert b"Accounts" in response.content
    viewer = logged_in(make_staff("monitoring.view_requestrecord", name="viewer"))
    dashboard = viewer.get(INDEX).context["dashboard"]
    assert dashboard["tiles"]
    assert dashboard["status"].text.startswith("All well")
    assert [each.get(SECTIONS).status_code for each in (plain, viewer, Client())] == [403, 200, 302]


class TestLooks:
    def test_it_answers_nothing_where_nothing_happened_for_one_query(
        self,
        site: Client,
        cast: Cast,
        monkeypatch: pytest.MonkeyPatch,
        django_assert_max_num_queries: DjangoAssertNumQueries,
    ) -> None:
        recorded(cast.owner)
        now = timezone.now() + timedelta(seconds=30)  # records of this test are not in the future
        monkeypatch.setattr("operations.dashboard.views.timezone.now", lambda: now)
        mark = shown(site)["mark"]
        with django_assert_max_num_queries(3):  # the session, its user, and the newest record
            response = site.get(SECTIONS, {"range": "24h", "seen": mark})
        assert (response.status_code, response.content) == (204, b"")
        recorded(cast.owner)
        response = site.get(SECTIONS, {"range": "24h", "seen": mark})
        assert response.status_code == 200
        assert response.context["dashboard"]["mark"] != mark

    def test_it_shows_what_is_no_record_within_a_minute(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded(cast.owner)
        mark = shown(site)["mark"]
        Alert.objects.create(subject="health:ingest", title="Records wait", began_at=timezone.now())
        later = timezone.now() + timedelta(minutes=1)
        monkeypatch.setattr("operations.dashboard.views.timezone.now", lambda: later)
        response = site.get(SECTIONS, {"range": "24h", "seen": mark})
        assert response.status_code == 200
        assert "Records wait" in response.content.decode()

    @pytest.mark.parametrize("name", ["1h", "24h", "30d"])
    def test_it_asks_a_bounded_number_of_queries(
        self, site: Client, name: str, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        tier = make_tier()
        for number in range(12):
            account = make_account(monthly_token_budget=10)
            issued = make_key(account=account, tier=tier, monthly_token_budget=10)
            recorded(issued, status=502, model=f"m{number}")
        with django_assert_max_num_queries(QUERIES):
            site.get(INDEX, {"range": name})

    def test_it_says_what_to_do_before_the_first_request(self, site: Client, settings: Settings) -> None:
        page = site.get(INDEX).content.decode()
        assert "No requests yet" in page
        assert "curl -sS http://testserver/v1/chat/completions" in page
        assert "dev_key_123" in page
        settings.ALLOW_PLAIN_KEYS = False
        assert "$AIAPI_KEY" in site.get(INDEX).content.decode()
        recorded(make_key(), **ago(days=3))
        page = site.get(f"{INDEX}?endpoint=chat").content.decode()
        assert "No requests in this range" in page
        assert "clear the filters" in page

    def test_it_escapes_names(self, site: Client, cast: Cast) -> None:
        issued = make_key(account=cast.owner.key.account, name="</script><b>x")
        recorded(issued, model="</script><b>y", status=502)
        page = site.get(INDEX).content.decode()
        assert "</script><b>" not in page


class TestLists:
    def test_it_ranks_accounts_and_keys_by_cost(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, cost=1_000_000_000)
        recorded(cast.colleague, cost=2_000_000_000, status=502)
        recorded(cast.stranger, cost=2_500_000_000)
        dashboard = shown(site)
        most = dashboard["most"]
        assert [(row.name, row.cost) for row in most.accounts] == [("acme", "$3.00"), ("globex", "$2.50")]
        assert [row.name for row in most.keys] == ["globex / stranger", "acme / colleague", "acme / owner"]
        assert most.keys[1].failed == "100 %"
        filtered = shown(site, "account=acme&key=owner")
        assert filtered["most"].accounts == []
        assert [row.name for row in filtered["most"].keys] == ["acme / owner"]

    @pytest.mark.parametrize(("name", "shown_requests"), [("24h", "2"), ("7d", "1")])
    def test_it_may_show_many_keys_as_they_were_a_minute_ago(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch, name: str, shown_requests: str
    ) -> None:
        monkeypatch.setattr("monitoring.selectors.MANY_KEYS", 2)
        query = f"range={name}&account=acme"
        recorded(cast.owner)
        assert [row.requests for row in shown(site, query)["most"].keys] == ["1"]
        recorded(cast.owner)
        again = shown(site, query)
        assert [row.requests for row in again["most"].keys] == ["1"]
        assert tile(again, "Requests").value == shown_requests
        sections.recent_rankings.clear()
        data.recent_readings.clear()
        fresh = shown(site, query)
        assert ([row.requests for row in fresh["most"].keys], tile(fresh, "Requests").value) == (["2"], "2")

    def test_it_ranks_of_many_keys_those_of_a_chosen_account(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("monitoring.selectors.MANY_KEYS", 2)
        recorded(cast.owner, cost=3)
        recorded(cast.stranger, cost=4)
        hint = "Choose an account to see its top keys."
        for query, keys in (("", []), ("account=acme", ["acme / owner"])):
            response = site.get(f"{INDEX}?{query}")
            most = response.context["dashboard"]["most"]
            assert ([row.name for row in most.keys], hint in response.content.decode()) == (keys, not keys)

    def test_it_says_since_when_it_ranks_where_that_is_before_the_span(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moment = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
        monkeypatch.setattr("operations.dashboard.views.timezone.now", lambda: moment)
        recorded(cast.owner, admitted_at=int(moment.timestamp()) * 1_000_000 - 59 * 60 * 1_000_000)  # at 11:31
        response = site.get(INDEX, {"range": "1h"})
        assert response.context["dashboard"]["most"].since == datetime(2026, 11, 24, 11, 30, tzinfo=UTC)
        assert response.content.decode().count("Since 2026-11-24 11:30 UTC.") == 2
        assert "Since 2026" not in site.get(INDEX, {"range": "24h"}).content.decode()

    def test_it_lists_budgets_and_rates_that_are_nearly_used(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object) -> None:
            raise LimitsUnavailable

        spent = make_account("spent", monthly_token_budget=30, monthly_cost_budget=Decimal(1))
        recorded(make_key(account=spent, name="all", monthly_token_budget=37))
        recorded(make_key(account=make_account("roomy", monthly_token_budget=1000)))
        near = shown(site)["nearly"]
        assert [(each.owner, each.limit, each.percent) for each in near.limits] == [
            ("spent", LIMITS[LimitName.MONTHLY_TOKENS].title, 100),
            ("spent / all", LIMITS[LimitName.MONTHLY_TOKENS].title, 81),
        ]
        assert near.limits[0].percent >= 100
        assert near.notes == []
        monkeypatch.setattr(limit_usage, "get_limits", away)
        by_records = shown(site)["nearly"]
        assert [each.owner for each in by_records.limits] == [each.owner for each in near.limits]
        assert ["state store is down" in note for note in by_records.notes] == [True]

    def test_it_lists_failures_in_groups_newest_first(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed: dict[str, Any] = {"status": 502, "error_code": "upstream_failed"}
        recorded(cast.owner, **failed, failures="openai/m: http 502; openai/m: http 502", **ago(hours=3))
        recorded(cast.owner, **failed, failures="azure/m: connection refused", count=4, **ago(hours=2))
        recorded(cast.owner, status=502, error_code="content_filtered", **ago(minutes=90))
        recorded(cast.stranger, **failed, failures="openai/m: http 502", **ago(hours=1))
        newest = an_operation()
        recorded(cast.owner, status=504, id=newest, error_code="upstream_timeout")
        recorded(cast.owner, status=400, count=200)
        response = site.get(INDEX)
        dashboard = response.context["dashboard"]
        page = response.content.decode()
        assert f"/admin/monitoring/requestrecord/{uuid.UUID(newest)}/change/" in page
        assert "5 \N{MULTIPLICATION SIGN} 502 upstream_failed" in page
        assert [each.newest.error_code for each in dashboard["failures"]][::3] == [
            "upstream_timeout",
            "upstream_failed",
        ]
        group = dashboard["failures"][3]
        assert group.causes == "azure refused the connection; openai answered 502"
        listed = site.get(f"{dashboard['log_url']}{group.query}").context["cl"].result_list
        assert sum(record.count for record in listed) == 5
        monkeypatch.setattr(sections, "FAILURES", 4)
        assert "at least 4 \N{MULTIPLICATION SIGN} 502 upstream_failed" in site.get(INDEX).content.decode()

    def test_it_shows_a_budget_once_and_behind_what_concerns_everybody(self, site: Client) -> None:
        def alert(title: str, kind: Alert.Kind, subject: str) -> None:
            Alert.objects.create(kind=kind, subject=subject, title=title, began_at=timezone.now())

        alert("down", Alert.Kind.PROVIDER, "health:llm")
        for owner in range(12):
            for level in (100, 50, 80):
                alert(f"{owner} at {level}", Alert.Kind.BUDGET, f"budget:account:{owner}::tokens:{level}:202611")
        dashboard = shown(site)
        assert dashboard["status"].text.startswith("down, since ")
        assert [each.title for each in dashboard["budgets"]] == [f"{owner} at 100" for owner in range(11, 2, -1)]

    def test_it_says_what_waits_for_the_ingester(self, site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sections, "ingest_backlog", lambda: Backlog(1500, 95.2))
        lag = shown(site)["lag"]
        assert (lag.text, lag.is_late) == ("1,500 records are waiting to be counted, the oldest for 96 s.", True)

        def away() -> None:
            raise RedisError

        monkeypatch.setattr(sections, "ingest_backlog", away)
        assert "unknown" in shown(site)["lag"].text

    def test_it_shows_deployments_in_trouble_first(
        self, site: Client, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Deployment.objects.all().delete()
        _, off, down, trial = (serve(name) for name in ("fine", "off", "down", "trial"))
        Deployment.objects.filter(pk=off.pk).update(is_enabled=False)
        since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        half_open = BreakerReading(BreakerState.HALF_OPEN, accounts=2)
        known = {down.pk: BreakerReading(BreakerState.OPEN, since), trial.pk: half_open}
        monkeypatch.setattr(deployments, "_readings", lambda: known)
        response = site.get(INDEX)
        dashboard = response.context["dashboard"]
        assert [each.model for each in dashboard["troubled"]] == ["down", "trial"]
        assert [each.model for each in dashboard["well"]] == ["fine", "off"]
        text = re.sub(r"\s+", " ", response.content.decode())
        for told in (
            "Down: no calls</strong> since 2026-01-02 03:04 UTC",
            "Trying: one trial call",
            "calls of 2 accounts fail",
            "1 deployment OK, 1 off",
        ):
            assert told in text.replace("Calls", "calls")
