"""That an incident is over: told once, to whoever was told of its beginning, and how long it lasted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.core import mail
from django.utils import timezone
from pytest_django import Settings

from accounts import services
from accounts.tests.factories import ACTOR, Cast, logged_in, make_admin
from monitoring.models import Alert, AlertDelivery
from monitoring.tests.samples import recorded
from operations.alerts.conditions import Condition, budgets_used, level_of, topic_of
from operations.alerts.deliveries import FIRST_PAUSE, MOST_ATTEMPTS, deliveries_send, lasted, send_test_alert
from operations.alerts.incidents import incidents_resolve, incidents_update
from operations.tests.webhooks import Hook, webhook

pytestmark = pytest.mark.django_db
BEGAN = datetime(2026, 11, 24, 10, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _by_mail(settings: Settings) -> None:
    """Let alerts go to one operator, by mail."""
    settings.EMAIL_URL, settings.ALERT_EMAILS, settings.ALERT_WEBHOOK_URL = "smtp://mail.test", ["ops@acme.test"], ""


@pytest.fixture
def hook(settings: Settings) -> Iterator[Hook]:
    """Run a webhook, and send alerts there as well."""
    with webhook() as made:
        settings.ALERT_WEBHOOK_URL = made.url
        yield made


def something(subject: str = "s", *, contact: str = "") -> Condition:
    """Make a condition that holds."""
    return Condition(Alert.Kind.ERRORS, subject, f"title of {subject}", "What is so.", contact=contact)


def went_by(monkeypatch: pytest.MonkeyPatch, condition: Condition, **span: float) -> None:
    """Have an incident begin, and end after so long; tell of both."""
    for moment, held in ((BEGAN, [condition]), (BEGAN + timedelta(**span), [])):
        monkeypatch.setattr(timezone, "now", lambda at=moment: at)
        incidents_update(held)
        deliveries_send()


def subjects(to: str = "ops@acme.test") -> list[str]:
    """List what somebody got by mail."""
    return [message.subject.removeprefix("[AI API] ") for message in mail.outbox if message.to == [to]]


class TestTelling:
    def test_it_says_by_mail_that_it_is_over_and_how_long_it_lasted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        went_by(monkeypatch, something(), minutes=83)
        assert subjects() == ["title of s", "Resolved: title of s"]
        assert mail.outbox[1].body == (
            "This is over. It began at 2026-11-24 10:05 UTC, ended at 2026-11-24 11:28 UTC and lasted "
            "1 hour 23 minutes. It was: What is so.\n"
        )

    def test_it_posts_it_under_the_alerts_id(self, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
        went_by(monkeypatch, something(), seconds=90)
        began, ended = hook.posted
        assert (began["event"], began["title"], began["text"]) == ("began", "title of s", "What is so.")
        assert (began["ended_at"], began["lasted_seconds"]) == (None, None)
        assert (ended["event"], ended["title"]) == ("ended", "Resolved: title of s")
        assert (ended["ended_at"], ended["lasted_seconds"]) == ("2026-11-24T10:06:30Z", 90)
        assert {began["id"], ended["id"]} == {Alert.objects.get().pk}

    def test_it_tells_whoever_was_told_of_the_beginning(self, hook: Hook) -> None:
        incidents_update([something(contact="boss@acme.test")])
        incidents_update([])
        deliveries_send()
        deliveries_send()
        assert subjects() == subjects("boss@acme.test") == ["title of s", "Resolved: title of s"]
        assert [each["event"] for each in hook.posted] == ["began", "ended"]

    def test_it_tells_once_however_often_it_ends(self) -> None:
        incidents_update([something()])
        alerts = list(Alert.objects.all())
        incidents_resolve(alerts)
        ended_at = Alert.objects.get().ended_at
        incidents_resolve(alerts)
        incidents_update([])
        for _ in range(3):
            deliveries_send()
        assert subjects() == ["title of s", "Resolved: title of s"]
        assert Alert.objects.get().ended_at == ended_at

    def test_it_does_not_use_a_channel_that_is_gone(self, hook: Hook, settings: Settings) -> None:
        incidents_update([something()])
        deliveries_send()
        settings.ALERT_WEBHOOK_URL = ""
        incidents_update([])
        deliveries_send()
        assert len(hook.got) == 1
        assert len(subjects()) == 2

    def test_it_says_nothing_more_of_a_test(self) -> None:
        send_test_alert()
        incidents_update([])
        deliveries_send()
        assert subjects() == ["Test alert"]

    def test_it_is_shown_with_the_alert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        went_by(monkeypatch, something(), minutes=3)
        monkeypatch.undo()
        site = logged_in(make_admin())
        page = site.get(f"/admin/monitoring/alert/{Alert.objects.get().pk}/change/").content.decode()
        assert "email ops@acme.test (resolved): 2026-11-24 10:08 UTC" in page
        assert "2026-11-24 10:08 UTC, after 3 minutes" in page


class TestOrder:
    def test_it_tells_of_no_end_before_the_beginning_has_arrived(self, hook: Hook) -> None:
        hook.status = 500
        incidents_update([something()])
        incidents_update([])
        now = timezone.now()
        deliveries_send(now)
        assert [each["event"] for each in hook.posted] == ["began"]
        assert len(subjects()) == 1
        hook.status = 200
        deliveries_send(now + FIRST_PAUSE)
        deliveries_send(now + FIRST_PAUSE)
        assert [each["event"] for each in hook.posted] == ["began", "began", "ended"]

    def test_it_tells_of_the_end_where_the_beginning_was_given_up(self, hook: Hook) -> None:
        incidents_update([something()])
        AlertDelivery.objects.update(attempts=MOST_ATTEMPTS)
        incidents_update([])
        deliveries_send()
        assert [each["event"] for each in hook.posted] == ["ended"]


class TestBudgets:
    def test_it_tells_of_the_highest_of_the_levels_that_end_together(self, cast: Cast) -> None:
        account = cast.owner.key.account
        account.monthly_token_budget, account.contact = 1000, "boss@acme.test"
        services.account_save(account=account, actor=ACTOR)
        for tokens in (500, 300):
            recorded(cast.owner, input_tokens=tokens, output_tokens=0, cost=0)
            incidents_update(budgets_used())
        account.monthly_token_budget = 10_000
        services.account_save(account=account, actor=ACTOR)
        incidents_update(budgets_used())
        assert not Alert.objects.filter(ended_at=None).exists()
        for _ in range(2):
            deliveries_send()
        told = [subject for subject in subjects("boss@acme.test") if subject.startswith("Resolved")]
        assert told == [f"Resolved: Account {account.name} has used 80 % of its tokens budget"]

    def test_it_tells_budgets_apart(self) -> None:
        assert topic_of("budget:key:1:a:b:tokens:50:202611") == "budget:key:1:a:b:tokens"
        assert level_of("budget:key:1:a:b:tokens:50:202611") == 50
        assert (topic_of("health:llm"), level_of("health:llm")) == ("health:llm", 0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (3661, "1 hour 1 minute"),
        (7200, "2 hours"),
        (18 * 86_400 + 3600, "18 days 1 hour"),
        (86_400 + 59, "1 day"),
    ],
)
def test_it_says_how_long_it_lasted(seconds: float, said: str) -> None:
    assert lasted(Alert(began_at=BEGAN, ended_at=BEGAN + timedelta(seconds=seconds))) == said
