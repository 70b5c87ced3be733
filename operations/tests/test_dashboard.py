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
from accounts.tests.factories import Cast, logged_in, make_account, make_admin, make_key, make_staff, make_tier
from monitoring.ingester import Backlog
from monitoring.models import Alert
from monitoring.tests.samples import an_operation, recorded
from operations import deployments
from operations.dashboard import data, sections
from operations.deployments import DeploymentState

pytestmark = pytest.mark.django_db

INDEX, SECTIONS = "/admin/", "/admin/dashboard/"
#: What the page may ask of the database, the session and its user included.
QUERIES = 60


@pytest.fixture
def site() -> Client:
    """Return a browser that is logged in as a superuser."""
    return logged_in(make_admin())


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
    found = next(each for each in dashboard["charts"] if each["id"] == name)
    return {**found, "sets": {each["name"]: each["values"] for each in found["sets"]}}


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
        assert values["Latency p95"] == "12 ms"
        assert values["First token p95"].endswith(" ms")
        assert sum(chart(dashboard, "traffic")["sets"]["over a limit"]) == 8

    def test_it_tells_the_same_of_the_last_hour_by_the_log_as_by_the_rollups(self, site: Client, cast: Cast) -> None:
        for milliseconds in (0.2, 5, 80, 1234, 99_999_999):
            recorded(cast.owner, latency_ms=milliseconds, first_token_ms=milliseconds / 2)
        hour, of_account, day = (shown(site, query) for query in ("range=1h", "range=1h&account=acme", "range=24h"))
        for each in (hour, of_account):
            assert [tile.value for tile in each["tiles"]] == [tile.value for tile in day["tiles"]]
            for name in ("latency", "first-token"):
                last = [values[-1] for values in chart(day, name)["sets"].values()]
                data = chart(each, name)["sets"].values()
                assert [next(value for value in values if value) for values in data] == last

    def test_it_reads_the_last_hour_without_the_log(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, **ago(minutes=150))
        for model in ("a", "a", "b"):
            recorded(cast.owner, model=model, **ago(minutes=20))
        with CaptureQueriesContext(connection) as asked:
            assert tile(shown(site, "range=1h&model=a"), "Requests").value == "2"
        assert not [each["sql"] for each in asked if "requestrecord" in each["sql"] and "GROUP BY" in each["sql"]]

    def test_it_compares_with_the_time_before_without_what_is_not_over(self, site: Client, cast: Cast) -> None:
        for _ in range(2):
            recorded(cast.owner, **ago(hours=30))
        for _ in range(3):
            recorded(cast.owner, **ago(hours=6))
        recorded(cast.owner)  # in an hour that has only begun
        requests = tile(shown(site), "Requests")
        assert requests.value == "4"
        assert requests.change.text == "▲ 50 %"
        assert requests.change.told.startswith("3 now, 2 in the time before")

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
        assert requests.change.told.startswith("1 now, 3 in the time before")

    def test_it_says_whether_a_change_is_for_the_better(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, **ago(hours=30))
        recorded(cast.owner, **ago(hours=6), status=502, latency_ms=100.0)
        dashboard = shown(site)
        assert tile(dashboard, "Failed").change.text == "▲ 100.0 points"
        assert tile(dashboard, "Failed").change.tone == "worse"
        assert tile(dashboard, "Latency p95").change.tone == "worse"
        assert tile(dashboard, "Saved").change.text == "none before"

    def test_it_shows_gaps_as_gaps_and_no_requests_as_none(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, **ago(hours=5))
        recorded(cast.owner, **ago(hours=2))
        dashboard = shown(site)
        latency, traffic = chart(dashboard, "latency"), chart(dashboard, "traffic")
        assert [value is None for value in latency["sets"]["p95"]].count(False) == 2
        assert sorted(traffic["sets"]["answered"])[-3:] == [0, 1, 1]
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
        dashboard = shown(site, f"range=own&from={begin}&to={timezone.now():%Y-%m-%dT%H:%M}")
        assert tile(dashboard, "Requests").value == "1"
        assert len(chart(dashboard, "traffic")["labels"]) in (60, 61)
        dashboard = shown(site, "range=own&from=2025-01-01&to=2026-01-01")
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
        assert tile(dashboard, "Requests").change.text == "nothing to compare"
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
            ("range=2y", "There is no range 2y. The last 24 hours are shown."),
            ("range=own", "“” is no moment for “from”"),
            ("range=own&from=2026-01-02&to=yesterday", "“yesterday” is no moment for “to”"),
            ("range=own&from=2026-01-02&to=2026-01-01", "A range ends after it begins."),
            ("range=own&from=2999-01-02&to=2999-01-03", "A range begins before now."),
            ("range=own&from=1990-01-02&to=2026-01-03", "A range is ten years long at most."),
            ("range=own&from=0001-01-01T00:00%2B23:00&to=2026-01-03", "is too far away"),
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
        recorded(cast.owner, status=502, label="this-one")
        recorded(cast.stranger, status=502)
        recorded(cast.owner)
        recorded(cast.owner, **ago(days=2), status=502)
        failed = tile(shown(site, "account=acme&key=owner"), "Failed")
        listed = site.get(f"/admin/monitoring/requestrecord/{failed.query}").context["cl"].result_list
        assert [record.label for record in listed] == ["this-one"]

    def test_it_links_slow_and_streamed_requests(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, latency_ms=10.0)
        recorded(cast.owner, latency_ms=5000.0, first_token_ms=5.0, label="slow")
        log = "/admin/monitoring/requestrecord/"
        for query in ("slower=1000", "stream=1"):
            listed = site.get(f"{log}?{query}").context["cl"].result_list
            assert [record.label for record in listed] == ["slow"]
        assert len(site.get(f"{log}?stream=0&endpoint=chat").context["cl"].result_list) == 1
        assert site.get(f"{log}?slower=soon").status_code == 302
        assert len(site.get(f"{log}?account=%00&model=%00").context["cl"].result_list) == 2


class TestPermission:
    def test_it_shows_a_plain_index_to_whoever_may_not_see_records(self, cast: Cast) -> None:
        client = logged_in(make_staff("accounts.view_account"))
        recorded(cast.owner)
        response = client.get(INDEX)
        assert response.status_code == 200
        assert "dashboard" not in response.context
        assert b"Accounts" in response.content
        assert client.get(SECTIONS).status_code == 403

    def test_it_shows_it_to_whoever_may(self, cast: Cast) -> None:
        client = logged_in(make_staff("monitoring.view_requestrecord"))
        assert client.get(INDEX).context["dashboard"]["tiles"]
        assert client.get(SECTIONS).status_code == 200

    def test_it_asks_strangers_to_log_in(self) -> None:
        assert Client().get(SECTIONS).status_code == 302


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
        assert "No request yet" in page
        assert "curl -sS http://testserver/chat" in page
        assert "dev_key_123" in page
        settings.ALLOW_PLAIN_KEYS = False
        assert "$AIAPI_KEY" in site.get(INDEX).content.decode()

    def test_it_says_what_to_do_where_there_is_nothing_in_a_range(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, **ago(days=3))
        page = site.get(f"{INDEX}?account=acme").content.decode()
        assert "Nothing was asked in this time" in page
        assert "take the filters away" in page

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
        assert [row.name for row in most.keys] == ["globex/stranger", "acme/colleague", "acme/owner"]
        assert most.keys[1].failed == "100 %"
        filtered = shown(site, "account=acme&key=owner")
        assert filtered["most"].accounts == []
        assert [row.name for row in filtered["most"].keys] == ["acme/owner"]

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
        for query, keys in (("", []), ("account=acme", ["acme/owner"])):
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

    def test_it_links_the_hit_rate_to_the_records_that_it_counts(self, site: Client, cast: Cast) -> None:
        for outcome in ("hit", "coalesced", "coalesced", "miss", "bypass", "replay"):
            recorded(cast.owner, cache=outcome)
        rate = tile(shown(site), "Cache hit rate")
        assert rate.exact == "3 of 4"
        listed = site.get(f"/admin/monitoring/requestrecord/{rate.query}").context["cl"].result_list
        assert sorted(record.cache for record in listed) == ["coalesced", "coalesced", "hit"]

    def test_it_lists_budgets_and_rates_that_are_nearly_used(self, site: Client, cast: Cast) -> None:
        spent = make_account("spent", monthly_token_budget=30, monthly_cost_budget=Decimal(1))
        recorded(make_key(account=spent, name="all", monthly_token_budget=37))
        recorded(make_key(account=make_account("roomy", monthly_token_budget=1000)))
        near = shown(site)["nearly"]
        assert [(each.owner, each.limit, each.percent) for each in near.limits] == [
            ("spent", LIMITS[LimitName.MONTHLY_TOKENS].title, 100),
            ("spent/all", LIMITS[LimitName.MONTHLY_TOKENS].title, 81),
        ]
        assert near.limits[0].is_reached
        assert near.notes == []

    def test_it_tells_budgets_by_the_records_while_limits_are_away(
        self, site: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object) -> None:
            raise LimitsUnavailable

        monkeypatch.setattr(limit_usage, "get_limits", away)
        recorded(make_key(account=make_account("spent", monthly_token_budget=30)))
        near = shown(site)["nearly"]
        assert [each.owner for each in near.limits] == ["spent"]
        assert ["state store is away" in note for note in near.notes] == [True]

    def test_it_lists_failures_newest_first_each_with_its_page(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, status=502, **ago(hours=3))
        newest = an_operation()
        recorded(cast.owner, status=504, id=newest, error_code="upstream_timeout")
        recorded(cast.owner, status=400)
        response = site.get(INDEX)
        failures = response.context["dashboard"]["failures"]
        assert [record.status for record in failures] == [504, 502]
        assert f"/admin/monitoring/requestrecord/{uuid.UUID(newest)}/change/" in response.content.decode()

    def test_it_shows_a_budget_once_and_behind_what_concerns_everybody(self, site: Client) -> None:
        def alert(title: str, kind: Alert.Kind, subject: str) -> None:
            Alert.objects.create(kind=kind, subject=subject, title=title, began_at=timezone.now())

        alert("down", Alert.Kind.PROVIDER, "health:llm")
        for owner in range(12):
            for level in (100, 50, 80):
                alert(f"{owner} at {level}", Alert.Kind.BUDGET, f"budget:account:{owner}::tokens:{level}:202611")
        told = [each.title for each in shown(site)["alerts"]]
        assert told == ["down", *(f"{owner} at 100" for owner in range(11, 2, -1))]

    def test_it_shows_alerts_that_go_on_to_whoever_may_see_them(self, site: Client) -> None:
        for subject, ended_at in (("going-on", None), ("over", timezone.now())):
            titles = {"subject": subject, "title": subject, "text": "x"}
            Alert.objects.create(kind=Alert.Kind.ERRORS, began_at=timezone.now(), ended_at=ended_at, **titles)
        assert [alert.title for alert in shown(site)["alerts"]] == ["going-on"]
        site.force_login(make_staff("monitoring.view_requestrecord"))
        assert shown(site)["alerts"] == []

    def test_it_says_what_waits_for_the_ingester(self, site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sections, "ingest_backlog", lambda: Backlog(1500, 95.2))
        lag = shown(site)["lag"]
        assert (lag.text, lag.is_late) == ("1,500 records wait to be counted, the oldest for 96 s.", True)

        def away() -> None:
            raise RedisError

        monkeypatch.setattr(sections, "ingest_backlog", away)
        assert "unknown" in shown(site)["lag"].text

    def test_it_shows_deployments_in_trouble_first(self, site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        def state(name: str, **changes: Any) -> DeploymentState:
            fields = {"is_enabled": True, "state": "closed", "open_since": None, "accounts": 0, **changes}
            return DeploymentState(model=name, provider="p", name=name, url="/x", **fields)

        since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        states = [state("fine"), state("off", is_enabled=False), state("down", state="open", open_since=since)]
        states.append(state("trial", state="half_open", accounts=2))
        monkeypatch.setattr(deployments, "_states", lambda: states)
        response = site.get(INDEX)
        assert [each.model for each in response.context["dashboard"]["deployments"]] == ["down", "trial", "fine", "off"]
        text = re.sub(r"\s+", " ", response.content.decode())
        for told in ("no call goes there</strong> since 03:04:05 UTC", "on trial", "open for 2 accounts alone", "off"):
            assert told in text


def test_it_finds_failures_by_their_own_index(site: Client, cast: Cast) -> None:
    recorded(cast.owner, status=502)
    with CaptureQueriesContext(connection) as asked:
        site.get(INDEX)
    (query,) = [each["sql"] for each in asked if '"status" >= 500' in each["sql"] and "LIMIT 10" in each["sql"]]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{query}")
        plan = str(cursor.fetchall())
    assert "record_failed_by_time" in plan
