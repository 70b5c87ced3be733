"""Alerts: once an incident whatever races, over when clearly over, sent to the right ones, and never lost."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from typing import Any, TypeVar

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from accounts import services
from accounts.models import Account, ApiKey, AuditEntry, ModelBudget
from accounts.tests.factories import ACTOR, Cast, logged_in, make_admin, make_staff
from core.formats import NOTHING
from monitoring.models import Alert, AlertDelivery
from monitoring.tests.samples import recorded
from operations.alerts import conditions, deliveries
from operations.alerts.conditions import (
    BAD_ROUNDS,
    GOOD_ROUNDS,
    Condition,
    HealthWatch,
    budgets_used,
    error_rate,
    level_of,
    topic_of,
)
from operations.alerts.deliveries import FIRST_PAUSE, MOST_ATTEMPTS, deliveries_send, send_test_alert
from operations.alerts.incidents import incident_open, incidents_resolve, incidents_update
from operations.health import Finding, Health
from operations.tests.webhooks import Hook, webhook
from operations.worker import Round

pytestmark = pytest.mark.django_db
SECRET = "a secret of the webhook's"
T = TypeVar("T")
ALERTS = "/admin/monitoring/alert/"
OPS, BOSS = "ops@acme.test", "boss@acme.test"
BEGAN = datetime(2026, 11, 24, 10, 5, tzinfo=UTC)
MODEL = "gpt-3.5-turbo"


def something(subject: str = "s", **changes: Any) -> Condition:
    """Make a condition that holds."""
    return Condition(Alert.Kind.ERRORS, subject, f"title of {subject}", "What is so.", **changes)


@pytest.fixture(autouse=True)
def _by_mail(settings: Settings) -> None:
    """Let alerts go to one operator, by mail."""
    settings.EMAIL_URL, settings.ALERT_EMAILS, settings.ALERT_WEBHOOK_URL = "smtp://mail.test", [OPS], ""


@pytest.fixture
def hook(settings: Settings) -> Iterator[Hook]:
    """Run a webhook, and send alerts there as well."""
    with webhook() as made:
        settings.ALERT_WEBHOOK_URL, settings.ALERT_WEBHOOK_SECRET = made.url, SECRET
        yield made


@pytest.fixture
def account(cast: Cast) -> Account:
    """Return acme with a token budget of 1,000 and somebody to be told."""
    account = cast.owner.key.account
    account.contact = BOSS
    return budgeted(account, 1000)


def budgeted(account: Account, tokens: int) -> Account:
    """Give an account a token budget."""
    account.monthly_token_budget = tokens
    services.account_save(account=account, actor=ACTOR)
    return account


def firing() -> list[str]:
    """List the subjects of incidents that are firing."""
    return sorted(Alert.objects.filter(ended_at=None).values_list("subject", flat=True))


def mailed(to: str = OPS) -> list[str]:
    """List the subjects of the mails to somebody."""
    return [message.subject.removeprefix("[AI API] ") for message in mail.outbox if message.to == [to]]


def events(hook: Hook) -> list[str]:
    """List the events that a webhook got."""
    return [each["event"] for each in hook.posted]


class TestIncidents:
    def test_it_is_sent_once_while_it_fires_and_again_the_next_time(self) -> None:
        for held in ([something()], [something()], [something(is_on=False)], [], [something()]):
            incidents_update(held)
            deliveries_send()
            assert firing() == (["s"] if held else [])
        assert mailed() == ["title of s", "Resolved: title of s", "title of s"]
        assert Alert.objects.count() == 2

    def test_it_begins_nothing_that_only_lingers(self) -> None:
        assert incidents_update([something(is_on=False)]) == 0
        assert firing() == []

    def test_its_end_is_sent_once_to_the_recipients_of_the_beginning(self, hook: Hook, settings: Settings) -> None:
        incidents_update([something("a", contact=BOSS), something("b", contact=OPS)])
        alerts = list(Alert.objects.order_by("pk"))
        incidents_resolve(alerts)
        ended_at = [alert.ended_at for alert in Alert.objects.order_by("pk")]
        incidents_resolve(alerts)
        incidents_update([])
        for _ in range(3):
            deliveries_send()
        assert mailed(BOSS) == ["title of a", "Resolved: title of a"]
        assert sorted(mailed()) == [f"{state}title of {name}" for state in ("Resolved: ", "") for name in "ab"]
        assert sorted(events(hook)) == ["began", "began", "ended", "ended"]
        assert [alert.ended_at for alert in Alert.objects.order_by("pk")] == ended_at

    def test_its_end_is_not_sent_by_a_channel_that_is_gone(self, hook: Hook, settings: Settings) -> None:
        incidents_update([something()])
        deliveries_send()
        settings.ALERT_WEBHOOK_URL = ""
        incidents_update([])
        deliveries_send()
        assert (events(hook), len(mailed())) == (["began"], 2)

    def test_it_says_how_long_it_lasted(self, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
        for moment, held in ((BEGAN, [something()]), (BEGAN + timedelta(minutes=83, seconds=5), [])):
            monkeypatch.setattr(timezone, "now", lambda at=moment: at)
            incidents_update(held)
            deliveries_send()
        monkeypatch.undo()
        assert mail.outbox[1].body == (
            "This is resolved. It lasted 83 min, from 2026-11-24 10:05 UTC to 2026-11-24 11:28 UTC. "
            "The alert was: What is so.\n"
        )
        began, ended = hook.posted
        assert (began["event"], began["kind"]) == ("began", "errors")
        assert began["text"] == f"What is so. {conditions.ADVICE['errors']}"
        assert (began["title"], began["ended_at"], began["lasted_seconds"]) == ("title of s", None, None)
        assert (ended["event"], ended["title"]) == ("ended", "Resolved: title of s")
        assert (ended["ended_at"], ended["lasted_seconds"]) == ("2026-11-24T11:28:05Z", 4985)
        (alert,) = Alert.objects.all()
        assert began["id"] == ended["id"] == alert.pk
        page = logged_in(make_admin()).get(f"{ALERTS}{alert.pk}/change/").content.decode()
        assert f"email {OPS} (resolved): 2026-11-24 11:28 UTC" in page
        assert f"10:05{NOTHING}11:28 UTC (83 min)" in page
        assert "It is resolved: nothing to do now. If it happens again: Open the failed requests" in page


def patiently(do: Callable[[], T]) -> T:
    """Do it again while SQLite in memory, unlike that in a file, doesn't wait for another thread's lock."""
    while True:
        try:
            return do()
        except OperationalError:
            time.sleep(0.01)


@pytest.mark.django_db(transaction=True)
def test_it_begins_and_is_sent_once_however_many_look() -> None:
    gate, began = threading.Barrier(4), []

    def look() -> None:
        gate.wait()
        try:
            began.append(patiently(lambda: incident_open(something()) is not None))
            patiently(deliveries_send)
        finally:
            connection.close()

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(began) == [False, False, False, True]
    assert (len(mail.outbox), Alert.objects.count()) == (1, 1)


class TestWebhook:
    @pytest.fixture(autouse=True)
    def _only_the_webhook(self, hook: Hook, settings: Settings) -> None:
        settings.EMAIL_URL = ""

    def test_it_signs_what_it_posts(self, hook: Hook) -> None:
        incidents_update([something()])
        assert deliveries_send() == 1
        ((headers, body),) = hook.got
        signed = f"{headers['x-aiapi-timestamp']}.".encode() + body
        expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["x-aiapi-signature"] == f"sha256={expected}"
        assert headers["host"].startswith("127.0.0.1:")

    def test_it_tries_again_with_growing_pauses_and_gives_up(self, hook: Hook) -> None:
        hook.status = 500
        incidents_update([something()])
        moment = timezone.now()
        for attempt in range(MOST_ATTEMPTS):
            assert deliveries_send(moment) == 0
            assert deliveries_send(moment + FIRST_PAUSE * 2**attempt - timedelta(seconds=1)) == 0
            assert len(hook.got) == attempt + 1
            moment += FIRST_PAUSE * 2**attempt
        deliveries_send(moment + timedelta(days=1))
        assert len(hook.got) == MOST_ATTEMPTS
        assert AlertDelivery.objects.get().failure == "status 500"
        hook.status = 200
        incidents_update([])
        deliveries_send()
        assert events(hook)[-1] == "ended", "the end is sent although the beginning was given up"

    def test_it_sends_the_end_after_the_beginning_has_arrived(self, hook: Hook) -> None:
        hook.status = 307  # no redirect is followed either
        incidents_update([something()])
        incidents_update([])
        now = timezone.now()
        assert deliveries_send(now) == 0
        assert events(hook) == ["began"]
        hook.status = 200
        assert [deliveries_send(now + FIRST_PAUSE) for _ in range(3)] == [1, 1, 0]
        assert events(hook) == ["began", "began", "ended"]
        assert deliveries_send(now + timedelta(days=1)) == 0
        assert set(AlertDelivery.objects.values_list("failure", flat=True)) == {""}

    def test_it_leaves_to_the_next_round_what_its_time_is_not_enough_for(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deliveries, "ROUND_SECONDS", 0.0)
        incidents_update([something("a"), something("b")])
        assert [deliveries_send() for _ in range(3)] == [1, 1, 0]
        assert len(hook.got) == 2


class TestMail:
    def test_it_keeps_an_alert_for_a_mail_server_that_is_away(self, settings: Settings) -> None:
        settings.EMAIL_BACKEND, settings.EMAIL_HOST = "django.core.mail.backends.smtp.EmailBackend", "127.0.0.1"
        settings.EMAIL_PORT = 1
        incidents_update([something()])
        assert deliveries_send() == 0
        assert AlertDelivery.objects.get().failure == "ConnectionRefusedError"

    def test_it_names_a_key_whose_name_breaks_lines(self, cast: Cast) -> None:
        """A line break in a header is refused, and would end the watch: a tenant's key may be called anything."""
        ApiKey.objects.filter(pk=cast.owner.key.pk).update(name="a\rBcc: b\nc", monthly_token_budget=10)
        recorded(cast.owner, input_tokens=10, output_tokens=0)
        assert incidents_update(budgets_used()) > 0
        assert deliveries_send() > 0
        assert all("\n" not in each.subject and "\r" not in each.subject for each in mail.outbox)

    def test_it_outlives_a_mail_that_can_not_be_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Any, *_: Any, **__: Any) -> int:
            raise ValueError("Invalid address")

        monkeypatch.setattr("django.core.mail.EmailMessage.send", refuse)
        incident_open(something())
        assert deliveries_send() == 0
        assert AlertDelivery.objects.get().failure == "ValueError"


def budgets() -> list[str]:
    """List the budgets' alerts that are firing, without their month."""
    incidents_update(budgets_used())
    return [subject.rpartition(":")[0].removeprefix("budget:") for subject in firing()]


class TestBudgets:
    def test_it_alerts_at_each_level_once_and_of_the_highest_that_ends(self, cast: Cast, account: Account) -> None:
        subject = f"account:{account.pk}::tokens"
        for tokens, levels in ((400, []), (100, ["50"]), (320, ["50", "80"]), (180, ["100", "50", "80"])):
            recorded(cast.owner, input_tokens=tokens, output_tokens=0, cost=0)
            assert budgets() == [f"{subject}:{level}" for level in levels]
        deliveries_send()
        assert sorted(text.partition(" has used ")[2] for text in mailed(BOSS)) == [
            f"{percent} % of its token budget" for percent in (100, 50, 82)
        ]
        (full,) = {message.body for message in mail.outbox if "100 %" in message.subject}
        assert "Further calls are refused" in full
        budgeted(account, 10_000)
        assert budgets() == []
        for _ in range(2):
            deliveries_send()
        ended = [text for text in mailed(BOSS) if text.startswith("Resolved")]
        assert ended == [f"Resolved: Account {account.name} has used 100 % of its token budget"]

    def test_its_text_has_the_exact_figures(self, cast: Cast, account: Account) -> None:
        budgeted(account, 1_000_000)
        recorded(cast.owner, input_tokens=999_600, output_tokens=0, cost=0)
        (condition,) = (each for each in budgets_used() if each.is_on)
        assert "999,600 of 1,000,000 tokens of this month's budget (99 %)" in condition.text

    def test_it_ends_when_the_budget_is_raised_and_not_by_a_hair(self, cast: Cast, account: Account) -> None:
        recorded(cast.owner, input_tokens=500, output_tokens=0, cost=0)
        assert len(budgets()) == 1
        for tokens, expected in ((1050, 1), (2000, 0)):
            budgeted(account, tokens)
            assert len(budgets()) == expected

    def test_it_counts_the_money_of_keys_that_replaced_one_another(self, cast: Cast) -> None:
        key = cast.owner.key
        ApiKey.objects.filter(pk=key.pk).update(monthly_cost_budget=Decimal("0.001"))
        recorded(cast.owner, cost=300_000)
        successor, _ = services.api_key_rotate(key=key, grace=timedelta(hours=1), actor=ACTOR)
        assert budgets() == []
        recorded(cast.owner, key_id=successor.pk, key_name=successor.name, cost=300_000)
        assert budgets() == [f"key:{key.pk}::cost:50"]

    def test_it_watches_budgets_for_a_model_as_the_newest_key_has_them(self, cast: Cast, account: Account) -> None:
        budgeted(account, 10**9)
        for owner in ({"key": cast.owner.key}, {"account": account}):
            ModelBudget.objects.create(**owner, model=MODEL, monthly_token_budget=100)
        recorded(cast.owner, model="other", input_tokens=99, cost=0)
        assert budgets() == []
        recorded(cast.owner, input_tokens=50, output_tokens=10, cost=0)
        assert budgets() == [f"account:{account.pk}:{MODEL}:tokens:50", f"key:{cast.owner.key.pk}:{MODEL}:tokens:50"]
        assert all(f"for model {MODEL}" in alert.title for alert in Alert.objects.all())
        successor, _ = services.api_key_rotate(key=cast.owner.key, grace=timedelta(hours=1), actor=ACTOR)
        successor.model_budgets.update(monthly_token_budget=10_000)
        assert budgets() == [f"account:{account.pk}:{MODEL}:tokens:50"]
        services.account_set_active(account=account, active=False, actor=ACTOR)
        assert budgets() == []

    def test_it_watches_nobody_without_a_budget_or_switched_off(self, cast: Cast, account: Account) -> None:
        for issued in (cast.stranger, cast.owner):
            recorded(issued, input_tokens=10**9)
        services.account_set_active(account=account, active=False, actor=ACTOR)
        assert budgets() == []


@pytest.mark.parametrize(
    ("requests", "failed", "refused", "is_on"),
    [(20, 2, 0, [True]), (100, 29, 0, [True]), (30, 2, 0, [False]), (30, 2, 20, []), (5, 5, 0, [False]), (0, 0, 0, [])],
    ids=["many", "exactly as many", "lingers until half of that", "less", "of a handful", "none"],
)
def test_it_alerts_when_too_many_requests_fail(
    cast: Cast, settings: Settings, requests: int, failed: int, refused: int, is_on: list[bool]
) -> None:
    settings.ALERT_ERROR_RATE = 29.0 if requests == 100 else settings.ALERT_ERROR_RATE
    for number in range(requests):
        recorded(cast.owner, status=502 if number < failed else 200)
    if refused:
        recorded(cast.owner, count=refused, status=429)
    found = list(error_rate())
    assert [condition.is_on for condition in found] == is_on
    if is_on == [True] and requests == 20:
        assert (found[0].title, "2 of 20 requests" in found[0].text) == ("10 % of requests are failing", True)


class TestHealth:
    @pytest.fixture
    def say(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Health], None]:
        """Return what makes the check of the provider say something."""

        def say(health: Health) -> None:
            found = {"llm": Finding(health), "database": Finding(Health.OK)}
            monkeypatch.setattr(conditions, "check_each", lambda: found)

        return say

    def test_it_alerts_of_a_provider_that_is_down_and_stays_down(self, say: Callable[[Health], None]) -> None:
        watch = HealthWatch()
        say(Health.OK)
        for _ in range(GOOD_ROUNDS):
            held = list(watch())
        assert held == []
        say(Health.AWAY)
        assert [[each.is_on for each in watch()] for _ in range(BAD_ROUNDS)] == [[False], [True]]
        (condition,) = watch()
        assert (condition.kind, condition.subject) == (Alert.Kind.PROVIDER, "health:llm")
        say(Health.OK)
        lingering = [[each.is_on for each in watch()] for _ in range(GOOD_ROUNDS)]
        assert lingering == [[False]] * (GOOD_ROUNDS - 1) + [[]]

    def test_it_makes_no_alert_of_one_bad_round(self, say: Callable[[Health], None]) -> None:
        watch, held = HealthWatch(), []
        for health in (Health.AWAY, Health.OK) * 4:
            say(health)
            held += [each.is_on for each in watch()]
        assert not any(held)


def test_it_goes_round_over_everything(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "check_each", lambda: {"ingest": Finding(Health.DEGRADED)})
    first = Round(HealthWatch(bad_rounds=1))
    assert first.run() == (1, 1)
    first.lock.give_back()
    assert mailed() == ["Usage figures are late: records are waiting to be ingested"]
    output = StringIO()
    call_command("worker", "--once", "watch", stdout=output)
    assert output.getvalue() == "0 alerts began, 0 deliveries arrived.\n"


class TestTheTestAlert:
    def test_its_command_says_what_came_of_each_way(self, hook: Hook, settings: Settings) -> None:
        output = StringIO()
        call_command("alert_test", stdout=output)
        assert output.getvalue() == f"webhook: sent\nemail {OPS}: sent\n"
        assert mailed() == ["Test alert"]
        assert firing() == []
        incidents_update([])
        deliveries_send()
        assert len(mail.outbox) == 1, "nothing more is sent of a test"
        hook.status = 404
        with pytest.raises(CommandError, match="Not every way works"):
            call_command("alert_test", stdout=output)
        assert "webhook: status 404" in output.getvalue()
        settings.EMAIL_URL = settings.ALERT_WEBHOOK_URL = ""
        assert send_test_alert() == []
        with pytest.raises(CommandError, match="set ALERT_WEBHOOK_URL"):
            call_command("alert_test")

    def test_it_is_a_button_that_asks_first_and_needs_a_permission(self) -> None:
        site = logged_in(make_staff("monitoring.view_alert"))
        assert site.get(ALERTS).status_code == 200
        assert site.post(f"{ALERTS}test/", {"confirmed": "yes"}).status_code == 403
        site = logged_in(make_admin())
        assert "Send test alert" in site.get(f"{ALERTS}test/").content.decode()
        assert not mail.outbox
        page = site.post(f"{ALERTS}test/", {"confirmed": "yes"}, follow=True).content.decode()
        assert f"email {OPS}: sent" in page
        assert "Test alert" in page
        assert len(mail.outbox) == 1
        entry = AuditEntry.objects.latest("pk")
        assert (entry.actor, entry.action) == ("admin:root", "tested")


def test_the_admin_shows_alerts_and_deliveries_in_few_queries_and_changes_nothing(
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    site = logged_in(make_admin())
    incidents_update([something(str(number)) for number in range(15)])
    with django_assert_max_num_queries(7):
        page = site.get(ALERTS).content.decode()
    assert page.count(f"email {OPS}: sending") == 15
    alert = Alert.objects.earliest("pk")
    assert "title of 0" in site.get(f"{ALERTS}{alert.pk}/change/").content.decode()
    assert site.post(f"{ALERTS}{alert.pk}/delete/", {"post": "yes"}).status_code == 403


def test_it_names_a_budget_apart_from_its_level_whatever_the_model_is_called() -> None:
    subject = "budget:key:1:a:b:tokens:50:202611"
    assert (topic_of(subject), level_of(subject)) == ("budget:key:1:a:b:tokens", 50)
