"""The sample data: made by the product's own parts, exact, and removed without a trace."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models import Max, Sum
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts.models import Account, ApiKey, AuditEntry, Tier
from accounts.tests.factories import Cast, make_account, make_key
from inference.catalog import catalog
from inference.models import Deployment, Model, Price, Provider
from monitoring import recorder
from monitoring.models import Alert, AlertDelivery, RequestRecord, Rollup
from monitoring.retention import prune_records
from monitoring.rollups.periods import minute_of
from monitoring.rollups.store import MINUTES_WRITTEN
from monitoring.tests.samples import recorded
from operations.alerts.conditions import budgets_used
from operations.alerts.incidents import incidents_update
from operations.demo import services, traffic
from operations.demo.services import DemoRefused, demo_accounts, demo_make, demo_remove

pytestmark = pytest.mark.django_db
ACTOR = "command:test"
TABLES: tuple[Any, ...] = (Account, ApiKey, Tier, Provider, Model, Deployment, Price, RequestRecord, Rollup, Alert)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch, redis_limits: object) -> None:
    """Make fewer requests, which show as much."""
    monkeypatch.setattr(traffic, "REQUESTS", 2_000)


def stored() -> dict[str, list[Any]]:
    """Return all rows of the tables that sample data touches, but for minutes that are no longer written or shown."""
    since = minute_of(timezone.now() - MINUTES_WRITTEN + timedelta(minutes=1))
    rows = {table: table._default_manager.order_by("pk") for table in TABLES}
    rows[Rollup] = rows[Rollup].exclude(grain=Rollup.Grain.PLATFORM_MINUTE, start__lt=since)
    return {table.__name__: list(found.values()) for table, found in rows.items()}


def checked() -> str:
    """Compare rollups, log and ledgers by the product's own command, and return what it says."""
    out, err = StringIO(), StringIO()
    call_command("check_rollups", stdout=out, stderr=err)
    return out.getvalue() + err.getvalue()


def test_it_makes_what_every_page_has_something_to_show_of(site: Client) -> None:
    made = demo_make(actor=ACTOR)
    records = RequestRecord.objects.all()
    assert made.requests == records.count() >= 1_900
    assert made.accounts == len(demo_accounts()) == 5
    assert set(demo_accounts().values_list("is_active", flat=True)) == {True}
    days = {at.date() for at in records.values_list("admitted_at", flat=True)}
    assert len(days) >= 55
    assert max(days) - min(days) >= timedelta(days=59)
    assert records.values("model").distinct().count() == len(traffic.MODELS)
    assert {200, 400, 429, 502} <= set(records.values_list("status", flat=True).distinct())
    assert {"hit", "miss", "bypass", "coalesced"} <= set(records.values_list("cache", flat=True).distinct())
    assert records.filter(failures__contains="http 502").exists()
    [budget] = [each for each in budgets_used() if each.is_on and each.subject.startswith("budget:account:")]
    assert "has used 92 % of its cost budget" in budget.title
    assert set(Alert.objects.values_list("kind", flat=True)) == {"provider", "budget"}
    assert not AlertDelivery.objects.exists()
    assert b"initech" in site.get("/admin/").content


def test_it_agrees_with_rollups_last_uses_and_ledgers(cast: Cast) -> None:
    recorded(cast.owner)
    demo_make(actor=ACTOR)
    assert "The rollups agree with the log." in checked()
    assert "The ledgers agree with the records." in checked()
    for key in ApiKey.objects.filter(account__in=demo_accounts()):
        newest = RequestRecord.objects.filter(key_id=key.pk).aggregate(Max("admitted_at"))["admitted_at__max"]
        assert key.last_used_at == newest


def test_it_removes_exactly_what_it_made(cast: Cast) -> None:
    recorded(cast.owner, cost=5)
    recorded(cast.stranger, status=429, count=3)
    make_account("acme-corp")  # a real one with a name that the sample data would take
    before = stored()
    made = demo_make(actor=ACTOR)
    assert Account.objects.filter(name="acme-corp-demo").exists()
    real = make_key(account=make_account("late"), tier=Tier.objects.get(name="business"))
    removed = demo_remove(actor=ACTOR)
    assert removed == made
    real.key.delete()
    Account.objects.filter(name="late").delete()
    assert Tier.objects.filter(name="business").exists()  # a real key had it
    Tier.objects.filter(name="business").delete()
    assert stored() == before
    assert "The rollups agree with the log." in checked()
    assert AuditEntry.objects.filter(actor=ACTOR, action="deleted", target_type="account").count() == made.accounts
    assert demo_remove(actor=ACTOR).requests == 0


def test_it_is_refused_a_second_time_and_in_production(settings: Settings) -> None:
    settings.IS_PRODUCTION = True
    with pytest.raises(CommandError, match="production"):
        call_command("demo", stdout=StringIO())
    out = StringIO()
    call_command("demo", "--force", stdout=out)
    assert "Made " in out.getvalue()
    with pytest.raises(DemoRefused, match="there already"):
        demo_make(actor=ACTOR, force=True)
    call_command("demo", "--remove", stdout=out)
    assert "Removed " in out.getvalue()
    assert not demo_accounts().exists()


def test_its_keys_can_be_used_by_nobody_and_its_models_cost_nothing(
    cast: Cast, capsys: pytest.CaptureFixture[str]
) -> None:
    known = set(catalog.models())
    call_command("demo")
    catalog.forget()
    assert set(catalog.models()) == known
    assert not Provider.objects.filter(is_enabled=True, base_url__endswith=".invalid/v1").exists()
    secrets = [line for line in capsys.readouterr().out.splitlines() if "ak_" in line]
    assert not secrets


def test_alerts_about_it_reach_nobody_and_go_with_it(settings: Settings) -> None:
    settings.ALERT_WEBHOOK_URL = "http://127.0.0.1:9/"
    demo_make(actor=ACTOR)
    assert incidents_update(list(budgets_used()), ends=False) == 0
    Account.objects.filter(name="hooli").update(monthly_cost_budget=0, monthly_token_budget=1)
    incidents_update(list(budgets_used()), ends=False)
    demo_remove(actor=ACTOR)
    assert not Alert.objects.exists()


def test_it_adds_nothing_to_days_that_were_pruned(cast: Cast) -> None:
    recorded(cast.owner, admitted_at=int((timezone.now() - timedelta(days=40)).timestamp() * 1_000_000))
    recorded(cast.owner, admitted_at=int((timezone.now() - timedelta(days=20)).timestamp() * 1_000_000))
    RequestRecord.objects.filter(admitted_at__lt=timezone.now() - timedelta(days=30)).delete()
    demo_make(actor=ACTOR)
    assert "The rollups agree with the log." in checked()
    oldest = RequestRecord.objects.exclude(account_id=cast.owner.key.account_id).earliest("admitted_at")
    assert timezone.now() - oldest.admitted_at < timedelta(days=20)


def test_it_leaves_nothing_in_quarter_hours_whose_requests_were_pruned(cast: Cast) -> None:
    for days in (35, 1):
        at = int((timezone.now() - timedelta(days=days)).timestamp() * 1_000_000)
        recorded(cast.owner, admitted_at=at, endpoint=traffic.CHAT, model=traffic.SMALL)
    demo_make(actor=ACTOR)
    prune_records(timezone.now() - timedelta(days=30), wait=lambda seconds: False)
    demo_remove(actor=ACTOR)
    for grain in (Rollup.Grain.PLATFORM_QUARTER, Rollup.Grain.PLATFORM_DAY):
        kept = Rollup.objects.filter(grain=grain)
        assert list(kept.order_by("start").values_list("model", "requests")) == [(traffic.SMALL, 1)] * 2


def test_a_removal_ends_what_is_still_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    write = recorder.write_records

    def remove_then_write(records: Any) -> int:
        monkeypatch.setattr(services, "write_records", write)
        number = write(records)
        demo_remove(actor=ACTOR)
        return number

    monkeypatch.setattr(services, "write_records", remove_then_write)
    with pytest.raises(DemoRefused, match="removed while"):
        demo_make(actor=ACTOR)
    assert not RequestRecord.objects.exists()
    assert not Rollup.objects.aggregate(Sum("requests"))["requests__sum"]


def test_it_leaves_what_is_in_use_by_now(cast: Cast) -> None:
    marked = make_account("marked", metadata={"demo": True, "demo_made": {"tier": [cast.owner.key.tier_id]}})
    demo_make(actor=ACTOR)
    used = Account.objects.get(name="acme-corp")
    issued = make_key(account=used, tier=cast.owner.key.tier)
    recorded(issued)
    Provider.objects.filter(name="openai-eu").update(is_enabled=True)
    demo_remove(actor=ACTOR)
    assert set(Account.objects.values_list("pk", flat=True)) >= {marked.pk, used.pk, cast.owner.key.account_id}
    assert RequestRecord.objects.filter(key_id=issued.key.pk).exists()
    assert [*Provider.objects.values_list("name", flat=True)] == ["openai-eu"]
    assert Deployment.objects.filter(provider__name="openai-eu").exists()
    assert "The rollups agree with the log." in checked()


def test_it_makes_nothing_older_than_the_log_keeps(settings: Settings) -> None:
    settings.LOG_RETENTION_DAYS = 10
    demo_make(actor=ACTOR)
    assert timezone.now() - RequestRecord.objects.earliest("admitted_at").admitted_at < timedelta(days=10)


def test_the_local_model_answers_for_its_chat_models(local_model: Provider) -> None:
    before = stored()
    demo_make(actor=ACTOR)
    catalog.forget()
    answered = {name: [route.provider for route in model.routes] for name, model in catalog.models().items()}
    assert {name: routes for name, routes in answered.items() if name in traffic.MODELS} == {
        name: ["local"] for name, model in traffic.MODELS.items() if not model.is_embedding
    }
    demo_remove(actor=ACTOR)
    assert stored() == before


@pytest.fixture
def local_model() -> Provider:
    """Return the provider of the local model, as bootstrap makes it."""
    return Provider.objects.create(name="local", base_url="http://127.0.0.1:9/v1", from_environment=True)
