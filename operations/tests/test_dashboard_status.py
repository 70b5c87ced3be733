"""The dashboard's first line, its checklist for new installations, and the buttons for sample data."""

from __future__ import annotations

import re
from datetime import timedelta
from subprocess import CompletedProcess
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts.models import AuditEntry
from accounts.tests.factories import Cast, logged_in, make_account, make_key, make_staff
from core.formats import clock_text
from inference.fake_provider import FakeUpstream
from inference.models import Deployment
from inference.tests.samples import serve
from inference.upstream.breaker import BreakerReading, BreakerState
from monitoring.models import Alert
from monitoring.tests.samples import recorded
from operations import deployments
from operations.alerts import groups
from operations.dashboard import sections, setup
from operations.demo.services import KIND, MADE
from operations.tests.test_dashboard import INDEX, ago, shown, tile

pytestmark = pytest.mark.django_db

SETUP, SAMPLE = "/admin/dashboard/setup/", "/admin/dashboard/sample-data/"


def links(dashboard: dict[str, Any]) -> list[str]:
    """List the texts of the status line's links."""
    return [text for text, _ in dashboard["status"].links]


class TestStatus:
    def test_all_well(self, site: Client, cast: Cast) -> None:
        assert shown(site)["status"].text == "All well: no requests in the last 24 h."
        for _ in range(11):
            recorded(cast.owner)
        recorded(cast.owner, status=502)
        dashboard = shown(site, "range=7d&account=acme")
        assert dashboard["status"].text == (
            "No incident is open: 12 requests in the last 7 days with these filters, 8.3 % failed."
        )
        assert links(dashboard) == ["1 failed request"]
        assert not dashboard["is_outage"]

    def test_an_outage_that_is_over(self, site: Client, cast: Cast, upstream: FakeUpstream, settings: Settings) -> None:
        recorded(cast.owner)
        now = timezone.now()
        over = Alert.objects.create(
            kind=Alert.Kind.PROVIDER,
            subject=f"breaker:{serve('a').pk}",
            title="openai is down for a: HTTP 502",
            began_at=now - timedelta(hours=3),
            ended_at=now - timedelta(hours=2),
        )
        recorded(cast.stranger, model="a", status=502, count=2, **ago(minutes=150))
        status = shown(site)["status"]
        assert re.fullmatch("All well now: 1 request since .* UTC, none failed.", status.text)
        assert "Nobody is notified of alerts" in site.get(INDEX).content.decode()
        settings.ALERT_WEBHOOK_URL = "https://hook.test"
        assert "Nobody is notified of alerts" not in site.get(INDEX).content.decode()
        assert status.detail.endswith("was down for a: HTTP 502; 2 requests from 1 account failed.")
        failed, of_outage, alert = status.links
        assert failed[0] == "2 failed requests"
        assert len(site.get(of_outage[1]).context["cl"].result_list) == 1
        assert (alert[0], str(over.pk) in alert[1]) == ("Alert", True)
        assert not shown(site, "range=1h")["status"].detail
        begin, end = f"{now - timedelta(hours=4):%Y-%m-%dT%H:%M}", f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M}"
        quiet = shown(site, f"range=custom&from={begin}&to={end}&model=gpt-3.5-turbo")["status"]
        assert quiet.text.startswith("All well now: no requests since ")
        assert "was down for a" in quiet.detail

    def test_many_failures_without_an_incident(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, status=502)
        dashboard = shown(site)
        assert dashboard["status"].tone == "warning"
        assert dashboard["status"].text.startswith("No incident is open now, but many requests failed: 1 request")

    def test_an_outage(self, site: Client, cast: Cast, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
        Deployment.objects.all().delete()
        down = [serve("a"), serve("b")]
        since = timezone.now() - timedelta(minutes=30)
        reading = BreakerReading(BreakerState.OPEN, since, "connection refused")
        monkeypatch.setattr(deployments, "_readings", lambda: {each.pk: reading for each in down})
        recorded(cast.owner, status=502, model="a", count=3)
        recorded(cast.stranger, status=502, model="b")
        recorded(cast.stranger, status=502, model="another")
        recorded(cast.owner, status=502, model="a", **ago(minutes=40))
        alert = Alert.objects.create(
            kind=Alert.Kind.PROVIDER, subject=f"breaker:{down[0].pk}", title="fails", began_at=since
        )
        dashboard = shown(site)
        provider = down[0].provider.name
        assert dashboard["status"].text == (
            f"{provider} has been down since {clock_text(since, timezone.now())} (connection refused): "
            "2 models affected, 4 requests from 2 accounts failed."
        )
        assert links(dashboard) == ["Failed requests", "2 deployments", "Alert"]
        assert dashboard["status"].links[2][1] == f"/admin/monitoring/alert/{alert.pk}/change/"
        assert [group.title for group in dashboard["incidents"]] == [f"{provider} is down for a"]
        serve("c")
        assert shown(site)["status"].text.startswith(f"{provider} is failing since")
        monkeypatch.setattr(groups, "COUNTED", 1)
        assert "at least 1 request from 1 account failed" in shown(site)["status"].text

    def test_an_incident(self, site: Client) -> None:
        began = timezone.now() - timedelta(days=3)
        Alert.objects.create(kind=Alert.Kind.INGEST, subject="health:ingest", title="Records wait", began_at=began)
        dashboard = shown(site)
        assert dashboard["status"].text == f"Records wait, since {began:%-d %b %H:%M} UTC."
        assert links(dashboard) == ["Health checks", "Alert"]
        assert dashboard["incidents"] == []

    def test_late_figures_and_deployments_to_look_at(
        self, site: Client, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deployment = serve("small")
        type(deployment.provider).objects.update(api_key_variable="NOWHERE_API_KEY")
        told = shown(site)["status"].text
        assert "to look at" in told
        assert "NOWHERE_API_KEY is not set on this server" in told
        monkeypatch.setattr(
            "operations.dashboard.views.ingest_lag", lambda: sections.Lag("5 records wait.", is_late=True)
        )
        assert shown(site)["status"].text == "The figures are late: 5 records wait."

    def test_nothing_is_better_or_worse_in_an_outage(self, site: Client, cast: Cast) -> None:
        for latency, hours in ((5000.0, 30), (5.0, 6)):
            recorded(cast.owner, latency_ms=latency, count=20, **ago(hours=hours))
        assert tile(shown(site), "Latency p95").change.tone == "better"
        recorded(cast.owner, status=502, latency_ms=5.0, count=20, **ago(hours=6))
        assert tile(shown(site), "Latency p95").change.tone == "even"


def test_charts_link_each_bucket_to_its_log_and_tiles_have_a_course(site: Client, cast: Cast) -> None:
    recorded(cast.owner, **ago(hours=3))
    dashboard = shown(site, "account=acme")
    queries = dashboard["charts"]["axis"]["queries"]
    assert len(queries) == 24
    (used,) = [query for query in queries if site.get(f"{dashboard['log_url']}{query}").context["cl"].result_list]
    assert "account=acme" in used
    assert tile(dashboard, "Requests").course.startswith("M")
    assert tile(dashboard, "First token p95").course == ""


def test_it_forecasts_the_budgets_that_are_nearest_to_their_end(site: Client) -> None:
    issued = make_key(account=make_account("acme", monthly_token_budget=1000), name="k")
    for day in range(4):
        recorded(issued, input_tokens=100, output_tokens=20, **ago(days=day))
    near = shown(site)["nearly"].limits
    (limit,) = near or [None]
    if limit is None:  # at the end of a month it lasts
        return
    assert limit.forecast.startswith("At this pace about ")
    assert "of 1,000 by " in limit.forecast
    assert limit.burn_down
    assert limit.ahead


class TestSetup:
    def test_it_lists_what_is_done_until_it_is_dismissed(self, site: Client, settings: Settings) -> None:
        settings.HTTPS_ONLY, settings.ALERT_WEBHOOK_URL = False, ""
        steps = {step.name: step.is_done for step in shown(site)["setup"]}
        assert list(steps) == ["Provider", "Price", "Account", "Key", "First request", "Alerts", "HTTPS", "Backup"]
        assert not any(steps.values())
        recorded(make_key())
        settings.ALERT_WEBHOOK_URL = "https://hook.test"
        site.post(SETUP, {"mark": "backup"})
        done = [step.name for step in shown(site)["setup"] if step.is_done]
        assert done == ["Account", "Key", "First request", "Alerts", "Backup"]
        assert site.post(SETUP, {"mark": "hidden"}).headers["Location"] == INDEX
        assert shown(site)["setup"] == []

    def test_it_is_for_those_who_may_set_up(self, site: Client) -> None:
        viewer = logged_in(make_staff("monitoring.view_requestrecord", name="viewer"))
        assert viewer.get(INDEX).context["dashboard"]["setup"] == []
        site.post(SETUP, {"mark": "nonsense"})
        assert shown(site)["setup"]
        assert [site.get(SETUP).status_code, Client().post(SETUP).status_code] == [405, 302]


def note_as_sample(cast: Cast) -> None:
    """Note an account in the audit log as one of the sample data."""
    AuditEntry.objects.create(actor="t", action=MADE, target_type=KIND, after={"account": [cast.owner.key.account_id]})


class TestSampleData:
    def test_it_is_offered_where_there_is_nothing_to_see(
        self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[str] = []

        def run(action: str) -> CompletedProcess[str]:
            made.append(action)
            note_as_sample(cast)
            return CompletedProcess([], 0, stdout="Made 3 requests of 1 accounts.\nLook at the dashboard.\n")

        monkeypatch.setattr(setup, "run_demo", run)
        assert "Load sample data" in site.get(INDEX).content.decode()
        question = site.post(SAMPLE, {"action": "load"}).content.decode()
        assert "Load sample data?" in question
        assert made == []
        page = site.post(SAMPLE, {"action": "load", "confirmed": "yes"}, follow=True).content.decode()
        assert made == ["load"]
        assert "Made 3 requests of 1 accounts." in page
        entry = AuditEntry.objects.latest("pk")
        assert (entry.actor, entry.action, entry.target_type) == ("admin:root", "loaded", "sample data")
        assert page.index("These figures include sample data.") < page.index("dash-state")
        assert "Remove sample data" in page

    def test_it_is_removed_after_a_question(self, site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
        done = CompletedProcess([], 0, stdout="Removed 3 requests of 1 accounts.\n")
        monkeypatch.setattr(setup, "run_demo", lambda action: done)
        note_as_sample(cast)
        assert "Remove sample data?" in site.post(SAMPLE, {"action": "remove"}).content.decode()
        page = site.post(SAMPLE, {"action": "remove", "confirmed": "yes"}, follow=True).content.decode()
        assert "Removed 3 requests of 1 accounts." in page

    def test_it_is_for_those_who_may_and_not_in_production(
        self, site: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        viewer = logged_in(make_staff("monitoring.view_requestrecord", name="viewer"))
        assert "sample data" not in viewer.get(INDEX).content.decode()
        assert viewer.post(SAMPLE, {"action": "load", "confirmed": "yes"}).status_code == 403
        assert viewer.post(SAMPLE, {"action": "remove", "confirmed": "yes"}).status_code == 403
        settings.IS_PRODUCTION = True
        assert "Load sample data" not in site.get(INDEX).content.decode()
        refused = CompletedProcess([], 1, stdout="", stderr='{"event": "x"}\nCommandError: This is production.\n')
        monkeypatch.setattr(setup, "run_demo", lambda action: refused)
        page = site.post(SAMPLE, {"action": "load", "confirmed": "yes"}, follow=True).content.decode()
        assert "This is production." in page
        assert "CommandError" not in page
        recorded(make_key())
        settings.IS_PRODUCTION = False
        assert "Load sample data" not in site.get(INDEX).content.decode()
