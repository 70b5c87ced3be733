"""A request as a story: the sentence of what happened, its stages and attempts, advice, and the page around it."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.apps import apps
from django.test import Client
from django.utils import timezone

from accounts.models import Account, ApiKey, Tier
from accounts.services import api_key_rotate
from accounts.tests.factories import Cast, IssuedKey, logged_in, make_staff
from monitoring.models import Alert, RequestRecord
from monitoring.stories import ADVICE, FOR_CALLER, MESSAGES, advice, attempts_with_times, headline, stages_of
from monitoring.tests.samples import micros_at, recorded

LOG = "/admin/monitoring/requestrecord/"


def a_row(**changes: Any) -> RequestRecord:
    """Make a record that is not saved."""
    return RequestRecord(**{"status": 200, "latency_ms": 1000.0, "deployment": "openai/gpt-4o", **changes})


REFUSED = "openai/gpt-4o: connection refused"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Answered by openai/gpt-4o in 1.00 s"),
        ({"cache": "hit"}, "Answered from the cache in 1.00 s"),
        ({"cache": "coalesced"}, "Answered with the answer to an identical request in 1.00 s"),
        ({"is_partial": True}, "Answered by openai/gpt-4o in 1.00 s; the answer broke off"),
        (
            {"failures": REFUSED, "deployment": "azure/gpt"},
            "Answered by azure/gpt in 1.00 s, after openai refused the connection",
        ),
        (
            {"failures": "deployment openai/gpt-4o is not asked since 14:01 UTC: http 502", "deployment": "azure/gpt"},
            (
                "Answered by azure/gpt in 1.00 s, after openai was skipped "
                "(circuit breaker open since 14:01 UTC after HTTP 502)"
            ),
        ),
        (
            {"status": 502, "error_code": "upstream_failed", "failures": f"{REFUSED}; {REFUSED}"},
            "502 after 1.00 s: openai refused the connection twice",
        ),
        (
            {"status": 503, "failures": f"{REFUSED}; {REFUSED}; {REFUSED}; azure/gpt: http 503"},
            "503 after 1.00 s: openai refused the connection 3 times, then azure answered 503",
        ),
        (
            {"status": 503, "failures": "provider openai is not asked since 01:38 UTC: connection refused"},
            "503 after 1.00 s: openai was skipped (circuit breaker open since 01:38 UTC: connection refused)",
        ),
        (
            {"status": 502, "failures": "openai/gpt-4o: http 401 invalid_api_key"},
            "502 after 1.00 s: openai answered 401 (invalid_api_key)",
        ),
        (
            {"status": 502, "failures": "openai/gpt-4o: the credit is used up (http 402)"},
            "502 after 1.00 s: openai has no credit left",
        ),
        ({"status": 504, "failures": "openai/gpt-4o: timeout"}, "504 after 1.00 s: openai did not answer in time"),
        (
            {"status": 502, "failures": "openai/gpt-4o: IncompleteRead"},
            "502 after 1.00 s: openai sent no valid answer (IncompleteRead)",
        ),
        (
            {"status": 429, "error_code": "rate_limited", "latency_ms": 0.4},
            "429 after 0.4 ms: the limit of requests per minute is reached",
        ),
        (
            {"status": 429, "error_code": "rate_limited", "count": 1234},
            "1,234 requests got 429: the limit of requests per minute is reached",
        ),
        ({"status": 400, "error_code": "context_length_exceeded"}, "400 after 1.00 s: context_length_exceeded"),
        ({"status": 500}, "500 after 1.00 s"),
    ],
)
def test_it_says_in_a_sentence_what_happened(changes: dict[str, Any], sentence: str) -> None:
    assert headline(a_row(**changes)) == sentence


def test_it_has_advice_for_every_error_code() -> None:
    assert set(ADVICE) == set(MESSAGES)
    assert advice(a_row()) == ""
    assert advice(a_row(status=400, error_code="a_provider_s_own")) == FOR_CALLER
    assert advice(a_row(status=502, error_code="a_provider_s_own")) == ADVICE["upstream_failed"]


def test_it_puts_the_stages_one_after_the_other() -> None:
    stages = stages_of(a_row(stages="limits=10.0 cache=40.0 upstream=900.0"))
    assert [(each.begin, each.length, each.time) for each in stages] == [
        (0, 1.0, "10 ms"),
        (1.0, 4.0, "40 ms"),
        (5.0, 90.0, "900 ms"),
        (95.0, 5.0, "50 ms"),
    ]
    assert stages_of(a_row()) == []


def test_it_gives_each_call_a_bar_within_the_time_of_the_provider() -> None:
    stages = "limits=100.0 upstream=900.0 attempt1=300.0 attempt2=600.0"
    skipped = "deployment openai/gpt-4o is not asked since 14:01 UTC: http 502"
    row = a_row(stages=stages, failures=f"{skipped}; {REFUSED}", deployment="azure/gpt", attempts=2)
    assert len(stages_of(row)) == 2
    shown = [(each.provider, bar and (bar.time, bar.begin, bar.length)) for each, bar in attempts_with_times(row)]
    assert shown == [("openai", None), ("openai", ("300 ms", 10.0, 30.0)), ("azure", ("600 ms", 40.0, 60.0))]
    assert [bar for _, bar in attempts_with_times(a_row(failures=REFUSED, attempts=2))] == [None, None], "not recorded"


@pytest.mark.django_db
class TestPage:
    def words(self, site: Client, record_id: str) -> str:
        """Open the page of a record and return its text without markup."""
        response = site.get(f"{LOG}{uuid.UUID(record_id)}/change/")
        assert response.status_code == 200
        return " ".join(re.sub(r"<[^>]+>", " ", response.content.decode()).split())

    def test_it_shows_what_surrounds_a_request(self, site: Client, cast: Cast) -> None:
        now = timezone.now()
        Alert.objects.create(kind="provider", subject="breaker:1", title="openai is down", text="x", began_at=now)
        Alert.objects.create(
            kind="errors", subject="errors", title="long over", text="x", began_at=now, ended_at=now - timedelta(days=1)
        )
        for account, title in ((cast.stranger, "budget of another"), (cast.owner, "budget of its account")):
            subject = f"budget:account:{account.key.account_id}::cost:80:202612"
            Alert.objects.create(kind="budget", subject=subject, title=title, text="x", began_at=now)
        recorded(cast.owner, label="before")
        record = recorded(
            cast.owner, status=502, error_code="upstream_failed", failures=f"{REFUSED}; {REFUSED}", latency_ms=1040.0
        )
        recorded(cast.owner, status=429, error_code="rate_limited")
        recorded(cast.colleague, status=504, error_code="upstream_timeout")
        text = self.words(site, record.id)
        assert "502 after 1.04 s: openai refused the connection twice" in text
        assert "What to do Test the provider on its page." in text
        assert "openai is down alert since" in text
        assert "budget of its account alert since" in text
        assert "long over" not in text
        assert "budget of another" not in text
        assert "In the same quarter hour: 4 requests , of which 2 failed" in text
        assert "504 upstream_timeout" in text
        neighbours = text[text.index("Same key") :]
        order = [neighbours.index(each) for each in ("429 rate_limited", "502 upstream_failed (this request)")]
        assert order == sorted(order)

    def test_it_has_the_budget_alerts_of_a_rotated_key(self, site: Client, cast: Cast) -> None:
        first = cast.owner.key
        successor, plain = api_key_rotate(key=first, grace=timedelta(0), actor="test")
        record = recorded(IssuedKey(successor, plain), status=429, error_code="budget_exhausted")
        for key, title in ((first, "budget of its key"), (cast.colleague.key, "budget of another")):
            subject = f"budget:key:{key.pk}::cost:80:202612"
            Alert.objects.create(kind="budget", subject=subject, title=title, text="x", began_at=timezone.now())
        text = self.words(site, record.id)
        assert "budget of its key alert since" in text
        assert "budget of another" not in text

    def test_it_says_until_when_a_provider_was_not_called(self, site: Client, cast: Cast) -> None:
        now = timezone.now().replace(second=0, microsecond=0)
        blue = apps.get_model("inference", "Provider").objects.create(name="blue", base_url="https://blue.example")
        model = apps.get_model("inference", "Model").objects.create(public_name="painter")
        deployments = apps.get_model("inference", "Deployment").objects
        deployment = deployments.create(model=model, provider=blue, upstream_name="p/1")
        skipped = "deployment blue/p/1 is not asked since 15:25 UTC: http 502"
        record = recorded(
            cast.owner, model="painter", status=503, error_code="upstream_busy", failures=skipped, deployment=""
        )
        assert "or its circuit breaker is open" in self.words(site, record.id)
        subject = f"breaker:{deployment.pk}"
        alert = Alert.objects.create(kind="provider", subject=subject, title="x", text="x", began_at=now)
        text = self.words(site, record.id)
        assert "blue has not been called since 15:25 UTC because it kept answering 502." in text
        assert "Open provider blue" in text
        Alert.objects.filter(pk=alert.pk).update(ended_at=now + timedelta(minutes=9))
        text = self.words(site, record.id)
        assert "because it kept answering 502. It has recovered: nothing to do now." in text
        Alert.objects.create(kind="provider", subject=subject, title="y", text="y", began_at=now + timedelta(hours=1))
        assert "It is failing again now." in self.words(site, record.id)
        viewer = logged_in(make_staff("monitoring.view_requestrecord", name="viewer"))
        text = self.words(viewer, record.id)
        assert "because it kept" not in text
        assert "Open provider" not in text

    def test_it_names_the_limits_that_are_set_now(self, site: Client, cast: Cast) -> None:
        key = ApiKey.objects.get(pk=cast.owner.key.pk)
        Tier.objects.filter(pk=key.tier_id).update(requests_per_minute=20)
        Account.objects.filter(pk=key.account_id).update(requests_per_minute=3000, monthly_cost_budget="25.5")
        record = recorded(cast.owner, status=429, error_code="rate_limited")
        text = self.words(site, record.id)
        assert "The caller has to wait for the seconds in Retry-After." in text
        assert f"Set now: 20 requests per minute of tier {key.tier} , 3,000 requests per minute of account acme" in text
        ApiKey.objects.filter(pk=key.pk).update(requests_per_minute_override=7)
        assert "Set now: 7 requests per minute of key" in self.words(site, record.id)
        ApiKey.objects.filter(pk=key.pk).update(overrides_until=timezone.now() - timedelta(days=1))
        assert "Set now: 20 requests per minute of tier" in self.words(site, record.id)
        spent = recorded(cast.owner, status=429, error_code="budget_exhausted")
        assert "Set now: $25.50 a month of account acme" in self.words(site, spent.id)
        viewer = logged_in(make_staff("monitoring.view_requestrecord", name="viewer"))
        assert "Set now" not in self.words(viewer, record.id)

    def test_it_proves_a_refusal_by_the_requests_of_the_minute_before(self, site: Client, cast: Cast) -> None:
        def at(second: int, issued: IssuedKey = cast.owner, **changes: Any) -> Any:
            return recorded(issued, admitted_at=micros_at(11, 2, 9, 24) + second * 1_000_000, **changes)

        refusal: dict[str, Any] = {"status": 429, "error_code": "rate_limited"}
        for second in (-59, -40, -20, 1):
            at(second)
        at(-30, status=403, error_code="scope_denied")  # never counted
        at(-10, cast.colleague)
        record = at(2, **refusal, count=22)
        at(20, **refusal)
        at(33)
        proof = (
            "passed in the minute to 09:24:02. Of this key, 23 were refused between 09:24 and 09:25; "
            "the next passed at 09:24:33."
        )
        assert f" 3 requests of this key {proof}" in self.words(site, record.id), "the first is over a minute before"
        Account.objects.update(requests_per_minute=4)
        assert f" 3 requests of this key and 4 of the whole account {proof}" in self.words(site, record.id)
        html = site.get(f"{LOG}{uuid.UUID(record.id)}/change/").content.decode()
        (query,) = re.findall(r'href="[^"]*(\?account=acme&amp;key=owner&amp;from=[^"]*)"', html)
        listed = site.get(f"{LOG}{unescape(query)}").context["rows"]
        assert sorted(row.record.status for row in listed) == [200, 200, 200, 403]

    def test_it_links_only_to_what_the_user_may_see(self, site: Client, cast: Cast) -> None:
        record = recorded(cast.owner)
        key_url = f"/admin/accounts/apikey/{cast.owner.key.pk}/change/"
        page = f"{LOG}{uuid.UUID(record.id)}/change/"
        assert key_url in site.get(page).content.decode()
        viewer = logged_in(make_staff("monitoring.view_requestrecord", name="viewer"))
        html = viewer.get(page).content.decode()
        assert key_url not in html
        assert ">Content<" not in html
        assert logged_in(make_staff("monitoring.view_rollup", name="finance")).get(page).status_code == 403
        assert site.get(f"{LOG}{uuid.UUID(int=5)}/change/").status_code == 404
        assert site.get(f"{LOG}nothing/change/").status_code == 404

    def test_it_never_shows_an_unknown_cost_as_zero(self, site: Client, cast: Cast) -> None:
        assert "unknown: the model has no price" in self.words(site, recorded(cast.owner, cost=None).id)

    def test_it_asks_the_same_few_queries_whatever_the_log(
        self, site: Client, cast: Cast, django_assert_max_num_queries: Any
    ) -> None:
        for _ in range(20):
            record = recorded(cast.owner, status=502)
        with django_assert_max_num_queries(20):
            self.words(site, record.id)
