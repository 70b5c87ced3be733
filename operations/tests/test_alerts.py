"""Alerts: once an incident whatever races, over when clearly over, told to the right ones, and never lost."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
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
from monitoring.models import Alert, AlertDelivery
from monitoring.tests.samples import recorded
from operations.alerts import conditions, deliveries
from operations.alerts.conditions import BAD_ROUNDS, GOOD_ROUNDS, Condition, HealthWatch, budgets_used, error_rate
from operations.alerts.deliveries import FIRST_PAUSE, MOST_ATTEMPTS, deliveries_send, signature
from operations.alerts.incidents import incident_open, incidents_update
from operations.health import Finding, Health
from operations.tests.webhooks import Hook, webhook
from operations.worker import Round

pytestmark = pytest.mark.django_db
SECRET = "a secret of the webhook's"
T = TypeVar("T")
ALERTS = "/admin/monitoring/alert/"


def something(subject: str = "s", **changes: Any) -> Condition:
    """Make a condition that holds."""
    return Condition(Alert.Kind.ERRORS, subject, f"title of {subject}", "text", **changes)


@pytest.fixture(autouse=True)
def by_mail(settings: Settings) -> Settings:
    """Let alerts go to one operator, by mail."""
    settings.EMAIL_URL, settings.ALERT_EMAILS, settings.ALERT_WEBHOOK_URL = "smtp://mail.test", ["ops@acme.test"], ""
    return settings


@pytest.fixture
def hook(settings: Settings) -> Iterator[Hook]:
    """Run a webhook, and send alerts nowhere else."""
    with webhook() as made:
        settings.ALERT_WEBHOOK_URL, settings.ALERT_WEBHOOK_SECRET, settings.EMAIL_URL = made.url, SECRET, ""
        yield made


def going_on() -> list[str]:
    """List the subjects of incidents that go on."""
    return sorted(Alert.objects.filter(ended_at=None).values_list("subject", flat=True))


class TestIncidents:
    def test_it_tells_once_while_it_goes_on_and_again_the_next_time(self) -> None:
        for held in ([something()], [something()], [], [something()]):
            incidents_update(held)
            deliveries_send()
        began = [message for message in mail.outbox if "Resolved" not in message.subject]
        assert [message.subject for message in began] == ["[AI API] title of s"] * 2
        assert Alert.objects.count() == 2

    def test_it_goes_on_while_it_is_not_clearly_over(self) -> None:
        incidents_update([something()])
        incidents_update([something(is_on=False)])
        assert going_on() == ["s"]
        incidents_update([])
        assert going_on() == []

    def test_it_begins_nothing_that_only_lingers(self) -> None:
        assert incidents_update([something(is_on=False)]) == 0
        assert going_on() == []

    def test_it_tells_the_contact_and_the_operators_each_once(self) -> None:
        incidents_update([something("a", contact="boss@acme.test"), something("b", contact="ops@acme.test")])
        deliveries_send()
        assert sorted(message.to[0] for message in mail.outbox) == ["boss@acme.test", "ops@acme.test", "ops@acme.test"]


def patiently(do: Callable[[], T]) -> T:
    """Do it again while SQLite in memory, unlike that in a file, doesn't wait for another thread's lock."""
    while True:
        try:
            return do()
        except OperationalError:
            time.sleep(0.01)


@pytest.mark.django_db(transaction=True)
def test_it_begins_and_tells_once_however_many_look() -> None:
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
    assert len(mail.outbox) == 1
    assert Alert.objects.count() == 1


class TestDeliveries:
    def test_it_signs_what_it_posts(self, hook: Hook) -> None:
        incidents_update([something()])
        assert deliveries_send() == 1
        ((headers, body),) = hook.got
        told = json.loads(body)
        alert = Alert.objects.get()
        assert (told["id"], told["kind"], told["title"]) == (alert.pk, "errors", "title of s")
        stamp = headers["x-aiapi-timestamp"]
        expected = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        assert headers["x-aiapi-signature"] == f"sha256={expected}" == f"sha256={signature(SECRET, stamp, body)}"
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

    def test_it_arrives_once_after_a_failure(self, hook: Hook) -> None:
        hook.status = 503
        incidents_update([something()])
        deliveries_send()
        hook.status = 200
        later = timezone.now() + FIRST_PAUSE
        assert deliveries_send(later) == 1
        assert deliveries_send(later + timedelta(days=1)) == 0
        assert AlertDelivery.objects.get().failure == ""

    def test_it_leaves_to_the_next_round_what_its_time_is_not_enough_for(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deliveries, "ROUND_SECONDS", 0.0)
        incidents_update([something("a"), something("b")])
        assert [deliveries_send() for _ in range(3)] == [1, 1, 0]
        assert len(hook.got) == 2

    def test_it_follows_no_redirect(self, hook: Hook) -> None:
        hook.status = 307
        incidents_update([something()])
        assert deliveries_send() == 0
        assert len(hook.got) == 1

    def test_it_keeps_an_alert_for_a_mail_server_that_is_away(self, settings: Settings) -> None:
        settings.EMAIL_BACKEND, settings.EMAIL_HOST = "django.core.mail.backends.smtp.EmailBackend", "127.0.0.1"
        settings.EMAIL_PORT = 1
        incidents_update([something()])
        assert deliveries_send() == 0
        assert AlertDelivery.objects.get().failure == "ConnectionRefusedError"


def budgets() -> list[str]:
    """List the budgets' alerts that go on, without their month, and who was told of them."""
    incidents_update(budgets_used())
    return [subject.rpartition(":")[0].removeprefix("budget:") for subject in going_on()]


class TestBudgets:
    @pytest.fixture
    def account(self, cast: Cast) -> Account:
        """Return acme with a token budget of 1,000 and somebody to be told."""
        account = cast.owner.key.account
        account.monthly_token_budget, account.contact = 1000, "boss@acme.test"
        services.account_save(account=account, actor=ACTOR)
        return account

    def test_it_tells_of_each_level_once(self, cast: Cast, account: Account) -> None:
        subject = f"account:{account.pk}::tokens"
        for tokens, levels in ((400, []), (100, ["50"]), (320, ["50", "80"]), (180, ["100", "50", "80"])):
            recorded(cast.owner, input_tokens=tokens, output_tokens=0, cost=0)
            assert budgets() == [f"{subject}:{level}" for level in levels]
        deliveries_send()
        told = sorted(message.subject for message in mail.outbox if message.to == ["boss@acme.test"])
        assert [text.partition(" has used ")[2] for text in told] == [
            f"{percent} % of its tokens budget" for percent in (100, 50, 82)
        ]
        (full,) = {message.body for message in mail.outbox if "100 %" in message.subject}
        assert "Further calls are refused" in full

    def test_it_tells_of_the_highest_level_that_is_reached_at_once(self, cast: Cast, account: Account) -> None:
        recorded(cast.owner, input_tokens=5000, cost=0)
        assert budgets() == [f"account:{account.pk}::tokens:100"]
        assert AlertDelivery.objects.count() == 2

    def test_it_ends_when_the_budget_is_raised_and_not_by_a_hair(self, cast: Cast, account: Account) -> None:
        recorded(cast.owner, input_tokens=500, output_tokens=0, cost=0)
        assert len(budgets()) == 1
        account.monthly_token_budget = 1050
        services.account_save(account=account, actor=ACTOR)
        assert len(budgets()) == 1
        account.monthly_token_budget = 2000
        services.account_save(account=account, actor=ACTOR)
        assert budgets() == []

    def test_it_counts_the_money_of_keys_that_replaced_one_another(self, cast: Cast) -> None:
        key = cast.owner.key
        ApiKey.objects.filter(pk=key.pk).update(monthly_cost_budget=Decimal("0.001"))
        recorded(cast.owner, cost=300_000)
        successor, _ = services.api_key_rotate(key=key, grace=timedelta(hours=1), actor=ACTOR)
        assert budgets() == []
        recorded(cast.owner, key_id=successor.pk, key_name=successor.name, cost=300_000)
        assert budgets() == [f"key:{key.pk}::cost:50"]

    def test_it_watches_budgets_for_a_model(self, cast: Cast) -> None:
        ModelBudget.objects.create(key=cast.owner.key, model="gpt-3.5-turbo", monthly_token_budget=100)
        recorded(cast.owner, model="other", input_tokens=99, cost=0)
        assert budgets() == []
        recorded(cast.owner, input_tokens=50, output_tokens=10, cost=0)
        assert budgets() == [f"key:{cast.owner.key.pk}:gpt-3.5-turbo:tokens:50"]
        assert "for model gpt-3.5-turbo" in Alert.objects.get().title

    def test_it_goes_by_a_model_s_budget_as_the_newest_key_has_it(self, cast: Cast, account: Account) -> None:
        ModelBudget.objects.create(key=cast.owner.key, model="gpt-3.5-turbo", monthly_token_budget=100)
        ModelBudget.objects.create(account=account, model="gpt-3.5-turbo", monthly_token_budget=100)
        recorded(cast.owner, input_tokens=90, output_tokens=0, cost=0)
        assert len(budgets()) == 2
        successor, _ = services.api_key_rotate(key=cast.owner.key, grace=timedelta(hours=1), actor=ACTOR)
        successor.model_budgets.update(monthly_token_budget=10_000)
        assert {each.partition(":")[0] for each in budgets()} == {"account"}
        services.account_set_active(account=account, active=False, actor=ACTOR)
        assert budgets() == []

    def test_it_watches_nobody_without_a_budget_or_switched_off(self, cast: Cast, account: Account) -> None:
        recorded(cast.stranger, input_tokens=10**9)
        recorded(cast.owner, input_tokens=10**9)
        services.account_set_active(account=account, active=False, actor=ACTOR)
        assert budgets() == []


class TestErrorRate:
    def test_it_tells_when_too_many_requests_fail(self, cast: Cast) -> None:
        for number in range(20):
            recorded(cast.owner, status=502 if number < 2 else 200)
        (condition,) = error_rate()
        assert condition.is_on
        assert condition.title == "10 % of requests fail"
        assert "2 of 20 requests" in condition.text

    def test_it_lingers_until_it_is_half_of_that(self, cast: Cast) -> None:
        for number in range(30):
            recorded(cast.owner, status=502 if number < 2 else 200)
        (condition,) = error_rate()
        assert not condition.is_on
        recorded(cast.owner, count=20, status=429)
        assert list(error_rate()) == []

    def test_it_says_nothing_of_a_handful(self, cast: Cast) -> None:
        for _ in range(5):
            recorded(cast.owner, status=502)
        assert [condition.is_on for condition in error_rate()] == [False]

    def test_it_has_nothing_to_say_without_requests(self) -> None:
        assert list(error_rate()) == []


class TestHealth:
    @pytest.fixture
    def say(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Health], None]:
        """Return what makes the check of the provider say something."""

        def say(health: Health) -> None:
            found = {"llm": Finding(health), "database": Finding(Health.OK)}
            monkeypatch.setattr(conditions, "check_each", lambda: found)

        return say

    def test_it_tells_of_a_provider_that_is_down_and_stays_down(self, say: Callable[[Health], None]) -> None:
        watch = HealthWatch()
        say(Health.OK)
        for _ in range(GOOD_ROUNDS):
            told = list(watch())
        assert told == []
        say(Health.AWAY)
        assert [[each.is_on for each in watch()] for _ in range(BAD_ROUNDS)] == [[False], [True]]
        say(Health.OK)
        lingering = [[each.is_on for each in watch()] for _ in range(GOOD_ROUNDS)]
        assert lingering == [[False]] * (GOOD_ROUNDS - 1) + [[]]

    def test_it_makes_no_alert_of_one_bad_round(self, say: Callable[[Health], None]) -> None:
        watch, told = HealthWatch(), []
        for health in (Health.AWAY, Health.OK) * 4:
            say(health)
            told += [each.is_on for each in watch()]
        assert not any(told)

    def test_it_names_the_kind(self, say: Callable[[Health], None]) -> None:
        say(Health.AWAY)
        (condition,) = HealthWatch(bad_rounds=1)()
        assert (condition.kind, condition.subject) == (Alert.Kind.PROVIDER, "health:llm")


def test_it_goes_round_over_everything(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "check_each", lambda: {"ingest": Finding(Health.DEGRADED)})
    first = Round(HealthWatch(bad_rounds=1))
    assert first.run() == (1, 1)
    first.lock.give_back()
    assert mail.outbox[0].subject == "[AI API] Usage records wait to be ingested"
    output = StringIO()
    call_command("worker", "--once", "watch", stdout=output)
    assert output.getvalue() == "0 alerts began, 0 deliveries arrived.\n"


class TestTheTest:
    def test_it_says_what_came_of_each_way(self) -> None:
        output = StringIO()
        call_command("alert_test", stdout=output)
        assert output.getvalue() == "email ops@acme.test: sent\n"
        assert mail.outbox[0].subject == "[AI API] Test alert"
        assert going_on() == []

    def test_it_fails_where_a_way_does(self, hook: Hook) -> None:
        hook.status = 404
        output = StringIO()
        with pytest.raises(CommandError, match="Not every way works"):
            call_command("alert_test", stdout=output)
        assert "webhook: status 404" in output.getvalue()

    def test_it_says_when_nobody_would_be_told(self, settings: Settings) -> None:
        settings.EMAIL_URL = ""
        with pytest.raises(CommandError, match="set ALERT_WEBHOOK_URL"):
            call_command("alert_test")

    def test_it_is_a_button_that_asks_first(self) -> None:
        site = logged_in(make_admin())
        assert "Send test alert" in site.get(f"{ALERTS}test/").content.decode()
        assert not mail.outbox
        page = site.post(f"{ALERTS}test/", {"confirmed": "yes"}, follow=True).content.decode()
        assert "email ops@acme.test: sent" in page
        assert "Test alert" in page
        assert len(mail.outbox) == 1
        entry = AuditEntry.objects.latest("pk")
        assert (entry.actor, entry.action) == ("admin:root", "tested")

    def test_it_is_none_for_those_who_may_only_look(self) -> None:
        site = logged_in(make_staff("monitoring.view_alert"))
        assert site.get(ALERTS).status_code == 200
        assert site.post(f"{ALERTS}test/", {"confirmed": "yes"}).status_code == 403
        assert not mail.outbox


def test_it_shows_alerts_and_who_was_told_and_changes_nothing() -> None:
    incidents_update([something()])
    deliveries_send()
    site = logged_in(make_admin())
    alert = Alert.objects.get()
    page = site.get(f"{ALERTS}{alert.pk}/change/").content.decode()
    assert "title of s" in page
    assert "email ops@acme.test:" in page
    assert site.post(f"{ALERTS}{alert.pk}/delete/", {"post": "yes"}).status_code == 403


def test_it_asks_the_database_as_often_for_many_alerts_as_for_few(
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    site = logged_in(make_admin())
    incidents_update([something(str(number)) for number in range(15)])
    with django_assert_max_num_queries(7):
        page = site.get(ALERTS).content.decode()
    assert page.count("email ops@acme.test: on its way") == 15


class TestWhatCallersName:
    def test_it_tells_of_a_key_whose_name_breaks_lines(self, cast: Cast) -> None:
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
