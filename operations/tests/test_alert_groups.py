"""Alerts grouped by cause, with links to what they are about, in the admin's list and on their pages."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from accounts.tests.factories import Cast, logged_in, make_staff
from inference.fake_provider import FakeUpstream
from inference.tests.samples import serve
from monitoring.models import Alert
from monitoring.tests.samples import recorded
from operations.alerts.groups import AlertGroup, group_alerts

pytestmark = pytest.mark.django_db

ALERTS = "/admin/monitoring/alert/"
LOG = "/admin/monitoring/requestrecord/"
BEGAN = datetime.fromisoformat("2026-11-24T10:05:00+00:00")


def alert(subject: str, kind: Alert.Kind = Alert.Kind.PROVIDER, *, minute: int = 0, **changes: Any) -> Alert:
    """Make an open alert that began so many minutes after BEGAN."""
    fields = {"title": f"title of {subject}", "began_at": BEGAN + timedelta(minutes=minute), **changes}
    return Alert.objects.create(kind=kind, subject=subject, **fields)


def grouped() -> list[AlertGroup]:
    """Group all alerts."""
    return group_alerts(list(Alert.objects.all()))


def test_it_groups_the_deployments_of_a_provider_that_fail_together(upstream: FakeUpstream) -> None:
    first, second = serve("first"), serve("second")
    ended = BEGAN + timedelta(minutes=50)
    alert(f"breaker:{first.pk}", ended_at=BEGAN + timedelta(days=-1), minute=-3000)
    alert(f"breaker:{first.pk}", minute=1, ended_at=ended)
    alert(f"breaker:{second.pk}", minute=40, ended_at=ended)
    together, before = grouped()
    assert together.title == f"{first.provider} was down for first, second"
    assert together.since == BEGAN + timedelta(minutes=1)
    (failed, _), (provider, _) = together.links
    assert (failed, provider) == ("Failed requests", f"Provider {first.provider}")
    log = dict(together.links)["Failed requests"]
    assert log == f"{LOG}?from=2026-11-24T09%3A56Z&until=2026-11-24T10%3A56Z&status=failed"
    assert [len(before.alerts), before.title] == [1, f"{first.provider} was down for first"]
    assert [text for text, _ in before.links] == [
        "Failed requests",
        f"Provider {first.provider}",
        f"Deployment {first}",
    ]
    assert "model=first" in before.links[0][1]


def test_it_groups_what_follows_from_an_outage_with_it(upstream: FakeUpstream) -> None:
    deployment = serve("m", is_default=True)
    alert("errors", Alert.Kind.ERRORS, minute=-600)
    alert(f"breaker:{deployment.pk}", minute=1)
    alert("health:llm", minute=2)
    alert("errors", Alert.Kind.ERRORS, minute=3, ended_at=BEGAN)
    found = [[each.subject for each in group.alerts] for group in grouped()]
    assert found == [["errors"], ["health:llm", f"breaker:{deployment.pk}"], ["errors"]]
    Alert.objects.filter(subject="errors", ended_at=BEGAN).delete()
    Alert.objects.filter(subject="errors").update(began_at=BEGAN)
    (outage,) = grouped()
    assert outage.title == f"{deployment.provider} is down for m"
    assert [text for text, _ in outage.links][1:] == [f"Provider {deployment.provider}", f"Deployment {deployment}"]


def test_it_groups_the_levels_of_a_budget_and_links_its_owner(cast: Cast) -> None:
    account, key = cast.owner.key.account, cast.owner.key
    for level in (50, 80, 100):
        alert(f"budget:account:{account.pk}:a:b:tokens:{level}:202611", Alert.Kind.BUDGET, minute=level * 100)
    alert(f"budget:key:{key.limits_id}::cost:50:202611", Alert.Kind.BUDGET)
    of_key, of_account = grouped()
    assert [len(of_account.alerts), of_account.title.rsplit(":", 2)[1]] == [3, "100"]
    assert of_account.links[0][0] == "Account acme"
    assert of_account.links[1][1] == f"{LOG}?from=2026-11-27T21%3A15Z&account=acme&model=a%3Ab"
    assert of_key.links[0] == ("Key acme / owner", f"/admin/accounts/apikey/{key.pk}/change/")
    assert of_key.links[-1] == ("Change the budget", f"/admin/accounts/apikey/{key.pk}/change/#general")


def test_it_links_what_else_alerts_are_about() -> None:
    about = {"errors": Alert.Kind.ERRORS, "health:ingest": Alert.Kind.INGEST, "books": Alert.Kind.RECONCILIATION}
    for subject, kind in about.items():
        alert(subject, kind)
    alert("price:a", Alert.Kind.PRICE)
    alert("price:b", Alert.Kind.PRICE)
    alert("breaker:99")  # the deployment was deleted
    found = {group.title: [text for text, _ in group.links] for group in grouped()}
    assert found == {
        "title of breaker:99": ["Failed requests", "Deployments"],
        "2 models have no price": ["Deployments", "Prices"],
        "title of books": [],
        "title of health:ingest": ["Health checks"],
        "title of errors": ["Failed requests", "Deployments"],
    }


class TestAdmin:
    def test_its_list_has_a_row_for_each_group_in_few_queries(
        self, site: Client, upstream: FakeUpstream, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        deployments = [serve(f"m{number}") for number in range(12)]
        for deployment in deployments:
            alert(f"breaker:{deployment.pk}")
        alert("errors", Alert.Kind.ERRORS, ended_at=BEGAN)
        with django_assert_max_num_queries(9):
            page = site.get(ALERTS).content.decode()
        assert page.count("is down for 12 models") == 1
        assert "title of errors" in page
        assert "title of errors" not in site.get(f"{ALERTS}?state=open").content.decode()
        assert "12 models" not in site.get(f"{ALERTS}?state=resolved").content.decode()
        one = Alert.objects.latest("pk").pk - 1
        page = site.get(f"{ALERTS}{one}/change/").content.decode()
        assert page.count(f"{ALERTS}") >= 11
        assert f"title of breaker:{deployments[0].pk}" in page

    def test_a_page_says_whom_an_outage_affected_and_what_to_do(
        self, site: Client, cast: Cast, upstream: FakeUpstream
    ) -> None:
        deployment = serve("m")
        outage = alert(f"breaker:{deployment.pk}", title="openai is down for m: HTTP 502", text="Calls kept failing.")
        since = {"admitted_at": int(BEGAN.timestamp() * 1_000_000)}
        recorded(cast.owner, status=502, model="m", count=3, **since)
        recorded(cast.stranger, status=502, model="m", **since)
        recorded(cast.stranger, status=502, model="another", **since)
        page = site.get(f"{ALERTS}{outage.pk}/change/")
        text = page.content.decode()
        assert "4 requests from 2 accounts</a> failed." in text
        assert "10:05 UTC" in text
        assert "What to do</strong> Test the provider on its page" in text
        (_, accounts, _), (_, models, _) = page.context["affected_parts"]
        assert [each[:2] for each in (*accounts, *models)] == [("acme", 3), ("globex", 1), ("m", 4)]
        assert sum(each.count for each in site.get(accounts[0][2]).context["cl"].result_list) == 3
        assert page.context["histogram"].counts == {"failed": 4}
        (bar,) = page.context["histogram"].bars
        assert [row.record.model for row in site.get(f"{LOG}{bar.url}").context["rows"]] == ["m", "m"]
        viewer = logged_in(make_staff("monitoring.view_alert", name="viewer"))
        page = viewer.get(f"{ALERTS}{outage.pk}/change/")
        assert "histogram" not in page.context
        assert page.context["links"] == []
        assert "Who is affected" not in page.content.decode()

    def test_it_says_how_to_set_up_a_channel_if_nobody_is_notified(self, site: Client, settings: Settings) -> None:
        settings.ALERT_WEBHOOK_URL, settings.EMAIL_URL, settings.ALERT_EMAILS = "", "", []
        alert("errors", Alert.Kind.ERRORS, began_at=timezone.now())
        page = site.get(ALERTS).content.decode()
        assert "Nobody is notified of alerts: no channel is set up" in page
        assert "\nALERT_EMAILS=oncall@example.com\n" in page
        assert "No channel set up" in page
        settings.EMAIL_URL, settings.ALERT_EMAILS = "smtp://mail.test", ["ops@acme.test"]
        assert "Nobody is notified" not in site.get(ALERTS).content.decode()
