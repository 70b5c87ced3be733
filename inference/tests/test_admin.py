"""Providers, models, deployments and prices in the admin: audited, validated, at once in the catalogue."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from accounts.models import AuditEntry
from accounts.tests.factories import logged_in, make_account, make_admin, make_key, make_staff
from core.formats import price_text
from inference.catalog import _route, catalog
from inference.fake_provider import LEAK_MARKER, FakeUpstream
from inference.models import Deployment, Model, Price, Provider
from inference.prices import Rates
from inference.tests.samples import serve
from inference.upstream.breaker import FAILURES_TO_OPEN, breakers, failing
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db

PROVIDERS, MODELS, DEPLOYMENTS, PRICES = (
    f"/admin/inference/{name}/" for name in ("provider", "model", "deployment", "price")
)
NEW_PRICE = {
    "above_tokens": 0,
    "valid_from_0": "2026-01-01",
    "valid_from_1": "00:00",
    "input_per_million": "0.15",
    "cached_input_per_million": "0.075",
    "output_per_million": "0.60",
}

CONFIRMED = {"confirmed": "yes"}


@pytest.fixture
def site() -> Client:
    """Return a browser that is logged in as a superuser."""
    return logged_in(make_admin())


@pytest.fixture
def deployment() -> Deployment:
    """Make a model at a provider, with a price."""
    provider = Provider.objects.create(
        name="blue", base_url="https://blue.example/v1", api_key_variable="BLUE_API_KEY", from_environment=True
    )
    model = Model.objects.create(public_name="small")
    made = Deployment.objects.create(model=model, provider=provider, upstream_name="small-1")
    Price.objects.create(deployment=made, input_per_million=Decimal(1), output_per_million=Decimal(2))
    return made


def latest() -> AuditEntry:
    """Return the newest entry of the log."""
    return AuditEntry.objects.latest("pk")


def formset(name: str, *rows: dict[str, Any], initial: int = 0) -> dict[str, Any]:
    """Return what a page's inline sends."""
    numbers = {"TOTAL_FORMS": len(rows), "INITIAL_FORMS": initial, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1000}
    fields = {f"{name}-{number}-{field}": value for number, row in enumerate(rows) for field, value in row.items()}
    return {**{f"{name}-{field}": str(value) for field, value in numbers.items()}, **fields}


def page_of(deployment: Deployment, kind: str, part: str = "change/") -> str:
    """Return the URL of a page of the deployment, its model or its provider."""
    ids = {PROVIDERS: deployment.provider_id, MODELS: deployment.model_id, DEPLOYMENTS: deployment.pk}
    return f"{kind}{ids[kind]}/{part}"


# Providers


def add_provider(site: Client, **changes: str) -> Any:
    """Make a provider in the admin."""
    fields = {"name": "green", "base_url": "https://203.0.113.9/v1", "api_key_variable": "", "style": "openai"}
    return site.post(f"{PROVIDERS}add/", {**fields, "is_enabled": "on", "extra_headers": "{}", **changes})


def test_it_makes_a_provider_with_what_it_grants(site: Client) -> None:
    granted = {"requests_per_minute": "60", "tokens_per_minute": "90000", "concurrent_requests": "8"}
    add_provider(site, api_key_variable="GREEN_API_KEY", **granted)
    made = Provider.objects.get()
    assert made.api_key_variable == "GREEN_API_KEY"
    assert (made.requests_per_minute, made.tokens_per_minute, made.concurrent_requests) == (60, 90_000, 8)
    assert (latest().actor, latest().action, latest().target_type) == ("admin:root", "created", "provider")
    assert latest().after["tokens_per_minute"] == 90_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concurrent_requests": "0"}, "greater than or equal to 1"),
        ({"base_url": "http://127.0.0.1/v1"}, "set LOOPBACK_PROVIDERS=true and restart"),
        ({"base_url": "http://169.254.169.254/v1"}, "Link-local and metadata addresses"),
        ({"base_url": "ftp://203.0.113.9"}, "Give an http:// or https:// URL."),
        ({"api_key_variable": "DATABASE_URL"}, "ends in _API_KEY"),
        ({"extra_headers": '{"X-Token": "abc"}'}, "looks like a secret"),
        ({"extra_headers": "{"}, "Enter a valid JSON."),
        ({"style": "azure"}, "Azure needs one"),
    ],
)
def test_it_says_what_is_wrong_with_a_provider(site: Client, changes: dict[str, str], message: str) -> None:
    assert message in add_provider(site, **changes).content.decode()
    assert not Provider.objects.exists()


def test_it_leaves_to_the_environment_what_comes_from_it_and_deletes_nothing_in_use(
    site: Client, deployment: Deployment
) -> None:
    url = page_of(deployment, PROVIDERS)
    assert "come from the environment" in site.get(url).content.decode()
    fields = {"name": "x", "base_url": "https://203.0.113.1", "extra_headers": "{}", "style": "openai"}
    site.post(url, {**fields, "is_enabled": "", **CONFIRMED})
    provider = Provider.objects.get()
    assert (provider.name, provider.base_url, provider.is_enabled) == ("blue", "https://blue.example/v1", False)
    page = site.post(page_of(deployment, PROVIDERS, "delete/"), {"post": "yes"}).content.decode()
    assert "protected related objects" in page
    assert Provider.objects.exists()


@pytest.mark.parametrize(("value", "shown"), [("s3cr3t-value", "set"), ("", "missing")])
def test_it_tells_whether_the_secret_is_there_and_never_the_secret(
    site: Client, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, value: str, shown: str
) -> None:
    monkeypatch.setenv("BLUE_API_KEY", value)
    pages = [site.get(url).content.decode() for url in (PROVIDERS, page_of(deployment, PROVIDERS))]
    assert all(shown in page for page in pages)
    assert not any("s3cr3t-value" in page for page in pages)


def test_it_switches_a_provider_off_at_once(
    site: Client, deployment: Deployment, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    assert catalog.models()["small"].routes
    with django_capture_on_commit_callbacks(execute=True):
        site.post(page_of(deployment, PROVIDERS), {"extra_headers": "{}", **CONFIRMED})
    assert not catalog.models()["small"].routes
    assert (latest().before, latest().after) == ({"is_enabled": True}, {"is_enabled": False})


def test_it_tests_a_connection(site: Client, deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUE_API_KEY", "a secret")
    with FakeUpstream() as fake:
        Provider.objects.update(base_url=fake.base_url)
        url = page_of(deployment, PROVIDERS, "test-connection/")
        assert "blue answered" not in site.get(url, follow=True).content.decode()
        assert f'action="{url}"' in site.get(page_of(deployment, PROVIDERS)).content.decode()
        assert "blue answered. Models it offers: " in site.post(url, CONFIRMED, follow=True).content.decode()
        fake.set(models_fault="http_401")
        page = site.post(url, CONFIRMED, follow=True).content.decode()
    assert "It refused the secret in BLUE_API_KEY: check it (http 401)." in page
    assert LEAK_MARKER not in page


# Models


MODEL_FIELDS = {"public_name": "big", "kind": "chat", "context_size": "4096", "routing": "weighted", "is_enabled": "on"}


def test_it_makes_a_model_with_its_deployments(
    site: Client, deployment: Deployment, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    row = {"provider": deployment.provider_id, "upstream_name": "big-1", "order": 0, "weight": 1, "is_enabled": "on"}
    assert catalog.find("big") is None
    with django_capture_on_commit_callbacks(execute=True):
        site.post(f"{MODELS}add/", {**MODEL_FIELDS, "aliases": "huge\n", **formset("deployments", row)})
    found = catalog.find("big")
    assert found is not None
    assert catalog.find("huge") is found
    assert [route.upstream_name for route in found.routes] == ["big-1"]
    created = AuditEntry.objects.filter(action="created").values_list("target_type", "target")
    assert set(created) == {("model", "big"), ("deployment", "blue/big-1")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"public_name": "two words"}, "Letters, digits and . _ : / @ - only."),
        ({"aliases": "small"}, "has the name small already"),
        ({"aliases": "two words"}, "Names have letters"),
        ({"is_default": "on"}, "Another model is the default"),
    ],
)
def test_it_says_what_is_wrong_with_a_model(
    site: Client, deployment: Deployment, changes: dict[str, str], message: str
) -> None:
    Model.objects.update(is_default=True)
    page = site.post(f"{MODELS}add/", {**MODEL_FIELDS, **changes, **formset("deployments")}).content.decode()
    assert message in page


def test_it_audits_all_that_a_deletion_takes_along(site: Client, deployment: Deployment) -> None:
    site.post(page_of(deployment, MODELS, "delete/"), {"post": "yes"})
    assert not Deployment.objects.exists()
    deleted = AuditEntry.objects.filter(action="deleted").values_list("target_type", flat=True)
    assert sorted(deleted) == ["deployment", "model", "price"]


# Switching off: a form that takes something away is asked about once, and saved as it was sent


def model_form(deployment: Deployment, row: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return what a model's page sends with one deployment in it."""
    own: dict[str, Any] = {"id": deployment.pk, "model": deployment.model_id, "provider": deployment.provider_id}
    own |= {"upstream_name": deployment.upstream_name, "order": 0, "weight": 1, "is_enabled": "on", **(row or {})}
    fields = {"public_name": "small", "kind": "chat", "context_size": "8192", "routing": "weighted", "is_enabled": "on"}
    return {**fields, **changes, **formset("deployments", own, initial=1)}


def asked(site: Client, url: str, form: dict[str, Any], *told: str) -> None:
    """Send a form that is asked about; check what the page says, and that it sends back what it was sent."""
    response = site.post(url, form)
    assert response.context["question"].hidden == {name: [str(value)] for name, value in form.items()}
    page = response.content.decode()
    assert 'name="confirmed"' in page
    for text in told:
        assert text in page


def test_it_asks_before_a_model_is_switched_off(site: Client, deployment: Deployment) -> None:
    recorded(make_key(account=make_account("acme")), model="small")
    Model.objects.update(is_default=True)
    url, form = page_of(deployment, MODELS), model_form(deployment, is_enabled="")
    told = (
        "Switch off small?",
        "Calls to small fail within a second: 404 model_not_found",
        "go to small, the default",
        "acme: 1 request in the last seven days",
    )
    asked(site, url, {**form, "is_default": "on"}, *told)
    assert Model.objects.get().is_enabled
    assert not AuditEntry.objects.filter(target_type="model").exists()
    site.post(url, {**form, **CONFIRMED})
    assert not Model.objects.get().is_enabled
    client = logged_in(make_staff("inference.view_model"))
    assert client.post(url, model_form(deployment)).status_code == 403
    wrong = site.post(url, model_form(deployment, is_enabled="", public_name="two words")).content.decode()
    assert "Letters, digits and . _ : / @ - only." in wrong


def test_it_says_who_answers_once_a_provider_is_switched_off(site: Client, deployment: Deployment) -> None:
    url, form = page_of(deployment, PROVIDERS), {"extra_headers": "{}"}
    nobody = "Calls to small fail within a second: 502"
    asked(site, url, form, "Switch off blue?", nobody, "It had no requests in the last seven days")
    assert Provider.objects.get().is_enabled
    other = Provider.objects.create(name="green", base_url="https://green.example/v1", from_environment=True)
    spare = Deployment.objects.create(model=deployment.model, provider=other, upstream_name="s")
    asked(site, url, form, "Calls to small go to other deployments within a second.")
    Deployment.objects.filter(pk=spare.pk).update(is_enabled=False)
    asked(site, url, form, nobody)
    asked(site, page_of(spare, PROVIDERS), form, "It gets no calls now")


def test_it_asks_before_a_deployment_is_taken_away(site: Client, deployment: Deployment) -> None:
    fields: dict[str, Any] = {"model": deployment.model_id, "provider": deployment.provider_id}
    fields |= {"upstream_name": "small-1", "order": 0, "weight": 1, "output_parameter": "max_tokens"}
    asked(site, page_of(deployment, DEPLOYMENTS), {**fields, **formset("prices")}, "Switch off blue/small-1?")
    url = page_of(deployment, MODELS)
    for row in ({"is_enabled": ""}, {"DELETE": "on"}):
        asked(site, url, model_form(deployment, row), "Switch off blue/small-1?")
        assert Deployment.objects.get().is_enabled
    site.post(page_of(deployment, DEPLOYMENTS), {**fields, **formset("prices"), **CONFIRMED})
    assert not Deployment.objects.get().is_enabled
    site.post(url, {**model_form(deployment, {"DELETE": "on"}), **CONFIRMED})
    assert not Deployment.objects.exists()
    assert AuditEntry.objects.filter(action="deleted", target="blue/small-1").exists()


def test_it_asks_nothing_where_nothing_is_taken_away(site: Client, deployment: Deployment) -> None:
    url = page_of(deployment, MODELS)
    assert site.post(url, model_form(deployment, context_size="4096")).status_code == 302
    Model.objects.update(is_enabled=False)
    assert site.post(url, model_form(deployment, is_enabled="")).status_code == 302
    assert site.post(url, model_form(deployment)).status_code == 302
    assert Model.objects.get().is_enabled


# Prices and pages


def test_it_adds_prices_and_changes_none(site: Client, deployment: Deployment) -> None:
    price = deployment.prices.get()
    assert site.post(f"{PRICES}{price.pk}/change/", NEW_PRICE).status_code == 403
    add = site.get(page_of(deployment, DEPLOYMENTS, "add-price/")).url  # type: ignore[attr-defined]
    assert add == f"{PRICES}add/?deployment={deployment.pk}"
    new = {**NEW_PRICE, "deployment": deployment.pk}
    assert "greater than or equal to 0" in site.post(add, {**new, "input_per_million": "-1"}).content.decode()
    assert site.post(add, new).status_code == 302
    assert deployment.prices.count() == 2
    assert (latest().action, latest().target_type) == ("created", "price")
    assert latest().after["output_per_million"] == "0.600000000"
    page = site.get(page_of(deployment, DEPLOYMENTS)).content.decode()
    assert "$0.15" in page
    assert "$1.00" in page


def test_a_new_deployment_can_have_its_first_price(site: Client, deployment: Deployment) -> None:
    fields: dict[str, Any] = {"model": deployment.model_id, "provider": deployment.provider_id, "is_enabled": "on"}
    fields |= {"upstream_name": "small-2", "order": 0, "weight": 1, "output_parameter": "max_tokens"}
    assert site.post(f"{DEPLOYMENTS}add/", {**fields, **formset("prices", NEW_PRICE)}).status_code == 302
    assert Price.objects.get(deployment__upstream_name="small-2").output_per_million == Decimal("0.6")


def test_it_lists_deployments_with_their_prices_and_breakers(site: Client, deployment: Deployment) -> None:
    assert "$1.00 in, $2.00 out" in site.get(DEPLOYMENTS).content.decode()
    deployment.prices.all().delete()
    assert "no price: costs unknown" in site.get(DEPLOYMENTS).content.decode()
    for account in range(FAILURES_TO_OPEN):
        breakers.failed(_route(deployment, Rates()), account)
    assert "Down: no calls" in site.get(DEPLOYMENTS).content.decode()
    assert [notice.deployment_id for notice in failing()] == [deployment.pk]
    Provider.objects.update(is_enabled=False)
    for page in (DEPLOYMENTS, page_of(deployment, PROVIDERS)):
        assert "Off: the provider is off" in site.get(page).content.decode()


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0.6", "$0.60"), ("0.075000000", "$0.075"), ("0", "$0.00"), ("12", "$12.00"), ("1000", "$1000.00")],
)
def test_it_writes_dollars(amount: str, text: str) -> None:
    assert price_text(Decimal(amount)) == text


@pytest.mark.parametrize("url", [PROVIDERS, MODELS, DEPLOYMENTS, PRICES])
def test_it_asks_the_database_as_often_for_many_as_for_few_and_shows_staff_nothing(
    site: Client, deployment: Deployment, url: str, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(15):
        model = Model.objects.create(public_name=f"m{number}")
        made = Deployment.objects.create(model=model, provider=deployment.provider, upstream_name=f"m{number}")
        Price.objects.create(deployment=made, input_per_million=1, output_per_million=2)
        Provider.objects.create(name=f"p{number}", base_url="https://203.0.113.9/v1")
    with django_assert_max_num_queries(9):
        assert site.get(url).status_code == 200
    client = logged_in(make_staff())
    assert [client.get(each).status_code for each in (url, f"{url}add/")] == [403, 403]


def test_past_prices_are_listed_only_if_asked_for(site: Client, upstream: FakeUpstream) -> None:
    deployment, now = serve("changed", input=1), timezone.now()
    deployment.prices.update(valid_from=now - timedelta(days=9))
    Price.objects.create(deployment=deployment, input_per_million=2, output_per_million=2, valid_from=now)
    Price.objects.create(
        deployment=deployment, input_per_million=3, output_per_million=3, valid_from=now + timedelta(days=9)
    )
    shown = {}
    for query in ("", "?time=past", "?time=all"):
        rows = site.get(f"/admin/inference/price/{query}").context["cl"].result_list
        shown[query] = [int(price.input_per_million) for price in rows if price.deployment == deployment]
    assert shown == {"": [3, 2], "?time=past": [1], "?time=all": [3, 2, 1]}


def test_it_shows_a_provider_s_latest_calls_and_its_last_failure(site: Client, upstream: FakeUpstream) -> None:
    deployment, issued = serve("shaky", input=1), make_key()
    own = {"model": "shaky", "deployment": str(deployment)}
    recorded(issued, **own)
    failed = recorded(issued, **own, status=502, error_code="upstream_failed", failures=f"{deployment}: http 500")
    listed = " ".join(site.get("/admin/inference/provider/").content.decode().split())
    assert "2, 1 failed, the last" in listed
    page = site.get(f"/admin/inference/provider/{deployment.provider_id}/change/").content.decode()
    assert f"/admin/monitoring/requestrecord/{UUID(failed.id)}/change/" in page
    assert f"{deployment}: http 500" in page
    few = logged_in(make_staff("inference.view_provider", "inference.view_deployment"))
    assert "latest calls" not in few.get("/admin/inference/provider/").content.decode().lower()
    assert "http 500" not in few.get(f"/admin/inference/provider/{deployment.provider_id}/change/").content.decode()
