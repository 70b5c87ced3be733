"""Providers, models, deployments and prices in the admin: audited, validated, at once in the catalogue."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from accounts.models import AuditEntry
from accounts.tests.factories import logged_in, make_account, make_admin, make_key, make_staff
from core.money import price_text
from inference.catalog import Rates, _route, catalog
from inference.fake_provider import LEAK_MARKER, FakeUpstream
from inference.models import Deployment, Model, Price, Provider
from inference.upstream.breaker import FAILURES_TO_OPEN, breakers, failing
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db

PROVIDERS, MODELS, DEPLOYMENTS, PRICES = (
    f"/admin/inference/{name}/" for name in ("provider", "model", "deployment", "price")
)
NEW_PRICE = {
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


class TestProviders:
    def add(self, site: Client, **changes: str) -> Any:
        """Make a provider in the admin."""
        fields = {
            "name": "green",
            "base_url": "https://203.0.113.9/v1",
            "api_key_variable": "",
            "style": "openai",
            "is_enabled": "on",
        }
        return site.post(f"{PROVIDERS}add/", {**fields, "extra_headers": "{}", **changes})

    def test_it_makes_a_provider(self, site: Client) -> None:
        self.add(site, api_key_variable="GREEN_API_KEY")
        assert Provider.objects.get().api_key_variable == "GREEN_API_KEY"
        assert (latest().actor, latest().action, latest().target_type) == ("admin:root", "created", "provider")

    def test_it_keeps_what_a_provider_grants(self, site: Client) -> None:
        self.add(site, requests_per_minute="60", tokens_per_minute="90000", concurrent_requests="8")
        made = Provider.objects.get()
        assert (made.requests_per_minute, made.tokens_per_minute, made.concurrent_requests) == (60, 90_000, 8)
        assert latest().after["tokens_per_minute"] == 90_000

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"concurrent_requests": "0"}, "greater than or equal to 1"),
            ({"base_url": "http://127.0.0.1/v1"}, "Loopback, link-local and metadata addresses are not allowed here."),
            ({"base_url": "http://169.254.169.254/v1"}, "Loopback, link-local and metadata addresses"),
            ({"base_url": "ftp://203.0.113.9"}, "Give an http:// or https:// URL."),
            ({"api_key_variable": "DATABASE_URL"}, "ends in _API_KEY"),
            ({"extra_headers": '{"X-Token": "abc"}'}, "looks like a secret"),
            ({"extra_headers": "{"}, "Enter a valid JSON."),
        ],
    )
    def test_it_says_what_is_wrong(self, site: Client, changes: dict[str, str], message: str) -> None:
        assert message in self.add(site, **changes).content.decode()
        assert not Provider.objects.exists()

    def test_it_leaves_to_the_environment_what_comes_from_it(self, site: Client, deployment: Deployment) -> None:
        url = f"{PROVIDERS}{deployment.provider_id}/change/"
        assert "come from the environment" in site.get(url).content.decode()
        site.post(
            url,
            {
                "name": "x",
                "base_url": "https://203.0.113.1",
                "extra_headers": "{}",
                "style": "openai",
                "is_enabled": "",
                **CONFIRMED,
            },
        )
        provider = Provider.objects.get()
        assert (provider.name, provider.base_url, provider.is_enabled) == ("blue", "https://blue.example/v1", False)

    @pytest.mark.parametrize(("value", "shown"), [("s3cr3t-value", "set"), ("", "missing")])
    def test_it_tells_whether_the_secret_is_there_and_never_the_secret(
        self, site: Client, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, value: str, shown: str
    ) -> None:
        monkeypatch.setenv("BLUE_API_KEY", value)
        pages = [site.get(url).content.decode() for url in (PROVIDERS, f"{PROVIDERS}{deployment.provider_id}/change/")]
        assert all(shown in page for page in pages)
        assert not any("s3cr3t-value" in page for page in pages)

    def test_it_switches_a_provider_off_at_once(
        self,
        site: Client,
        deployment: Deployment,
        django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
    ) -> None:
        assert catalog.models()["small"].routes
        with django_capture_on_commit_callbacks(execute=True):
            site.post(f"{PROVIDERS}{deployment.provider_id}/change/", {"extra_headers": "{}", **CONFIRMED})
        assert not catalog.models()["small"].routes
        assert (latest().before, latest().after) == ({"is_enabled": True}, {"is_enabled": False})

    def test_it_needs_a_version_for_azure(self, site: Client) -> None:
        fields = {"name": "green", "style": "azure", "base_url": "https://203.0.113.9", "extra_headers": "{}"}
        assert "Azure needs one" in site.post(f"{PROVIDERS}add/", fields).content.decode()

    def test_it_tests_a_connection(self, site: Client, deployment: Deployment) -> None:
        with FakeUpstream() as fake:
            Provider.objects.update(base_url=fake.base_url)
            url = f"{PROVIDERS}{deployment.provider_id}/test-connection"
            assert "blue answers." not in site.get(url, follow=True).content.decode()
            assert "blue answers." in site.post(f"{url}/", CONFIRMED, follow=True).content.decode()
            fake.set(models_fault="http_401")
            page = site.post(f"{url}/", CONFIRMED, follow=True).content.decode()
        assert "does not answer as it should: http 401" in page
        assert LEAK_MARKER not in page

    def test_it_shows_an_open_breaker(self, site: Client, deployment: Deployment) -> None:
        for account in range(FAILURES_TO_OPEN):
            breakers.failed(_route(deployment, Rates()), account)
        assert "open" in site.get(DEPLOYMENTS).content.decode()
        assert [notice.deployment_id for notice in failing()] == [deployment.pk]

    def test_it_deletes_no_provider_with_deployments(self, site: Client, deployment: Deployment) -> None:
        page = site.post(f"{PROVIDERS}{deployment.provider_id}/delete/", {"post": "yes"}).content.decode()
        assert "protected related objects" in page
        assert Provider.objects.exists()


class TestModels:
    def test_it_makes_a_model_with_its_deployments(
        self,
        site: Client,
        deployment: Deployment,
        django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
    ) -> None:
        row = {
            "provider": deployment.provider_id,
            "upstream_name": "big-1",
            "order": 0,
            "weight": 1,
            "is_enabled": "on",
        }
        fields = {"public_name": "big", "kind": "chat", "context_size": "4096", "is_enabled": "on"}
        assert catalog.find("big") is None
        with django_capture_on_commit_callbacks(execute=True):
            site.post(f"{MODELS}add/", {**fields, "aliases": '["huge"]', **formset("deployments", row)})
        assert catalog.find("huge") is catalog.find("big")
        found = catalog.find("big")
        assert found is not None
        assert [route.upstream_name for route in found.routes] == ["big-1"]
        created = AuditEntry.objects.filter(action="created").values_list("target_type", "target")
        assert set(created) == {("model", "big"), ("deployment", "blue/big-1")}

    def test_it_refuses_a_name_that_no_caller_could_send(self, site: Client) -> None:
        fields = {"public_name": "two words", "kind": "chat", "context_size": "4096"}
        page = site.post(f"{MODELS}add/", {**fields, **formset("deployments")}).content.decode()
        assert "Letters, digits and . _ : / @ - only." in page

    @pytest.mark.parametrize(("aliases", "text"), [('["small"]', "has the name small already"), ("[1]", "Give names")])
    def test_it_refuses_an_alias_that_is_taken_or_no_name(
        self, site: Client, deployment: Deployment, aliases: str, text: str
    ) -> None:
        fields = {"public_name": "big", "aliases": aliases, "kind": "chat", "context_size": "4096"}
        page = site.post(f"{MODELS}add/", {**fields, **formset("deployments")}).content.decode()
        assert text in page

    def test_it_refuses_a_second_default(self, site: Client, deployment: Deployment) -> None:
        Model.objects.update(is_default=True)
        fields = {"public_name": "big", "kind": "chat", "context_size": "4096", "is_default": "on"}
        page = site.post(f"{MODELS}add/", {**fields, **formset("deployments")}).content.decode()
        assert "Another model is the default" in page

    def test_it_audits_all_that_a_deletion_takes_along(self, site: Client, deployment: Deployment) -> None:
        site.post(f"{MODELS}{deployment.model_id}/delete/", {"post": "yes"})
        assert not Deployment.objects.exists()
        deleted = AuditEntry.objects.filter(action="deleted").values_list("target_type", flat=True)
        assert sorted(deleted) == ["deployment", "model", "price"]

    def test_it_deletes_a_deployment_of_its_page(self, site: Client, deployment: Deployment) -> None:
        row = {"id": deployment.pk, "model": deployment.model_id, "provider": deployment.provider_id, "DELETE": "on"}
        row |= {"upstream_name": "small-1", "order": 0, "weight": 1}
        fields = {"public_name": "small", "kind": "chat", "context_size": "8192", "is_enabled": "on"}
        form = {**fields, **formset("deployments", row, initial=1), **CONFIRMED}
        site.post(f"{MODELS}{deployment.model_id}/change/", form)
        assert not Deployment.objects.exists()
        assert AuditEntry.objects.filter(action="deleted", target="blue/small-1").exists()


class TestSwitchingOff:
    """A form that takes something away is asked about once, and saved as it was sent."""

    @pytest.fixture
    def spare(self, deployment: Deployment) -> Deployment:
        """Make another deployment of the model, at another provider."""
        other = Provider.objects.create(name="green", base_url="https://green.example/v1", from_environment=True)
        return Deployment.objects.create(model=deployment.model, provider=other, upstream_name="s")

    def model_form(self, deployment: Deployment, **changes: Any) -> dict[str, Any]:
        """Return what a model's page sends with one deployment in it."""
        row: dict[str, Any] = {"id": deployment.pk, "model": deployment.model_id, "provider": deployment.provider_id}
        row |= {"upstream_name": deployment.upstream_name, "order": 0, "weight": 1, "is_enabled": "on"}
        fields = {"public_name": "small", "kind": "chat", "context_size": "8192", "is_enabled": "on"}
        row |= {name.removeprefix("row_"): value for name, value in changes.items() if name.startswith("row_")}
        fields |= {name: value for name, value in changes.items() if not name.startswith("row_")}
        return {**fields, **formset("deployments", row, initial=1)}

    def asked(self, site: Client, url: str, form: dict[str, Any]) -> str:
        """Send a form that is asked about, check that what the page sends back is what it was sent, and return it."""
        response = site.post(url, form)
        question = response.context["question"]
        assert question.hidden == {name: [str(value)] for name, value in form.items()}
        page = response.content.decode()
        assert 'name="confirmed"' in page
        return page

    def test_it_asks_before_a_model_is_switched_off(self, site: Client, deployment: Deployment) -> None:
        recorded(make_key(account=make_account("acme")), model="small")
        Model.objects.update(is_default=True)
        url, form = f"{MODELS}{deployment.model_id}/change/", self.model_form(deployment, is_enabled="")
        page = self.asked(site, url, {**form, "is_default": "on"})
        for told in ("Switch off small?", "nobody can call small any more", "small is the default", "acme: 1 requests"):
            assert told in page
        assert Model.objects.get().is_enabled
        assert not AuditEntry.objects.filter(target_type="model").exists()
        site.post(url, {**form, **CONFIRMED})
        assert not Model.objects.get().is_enabled

    def test_it_asks_before_a_provider_is_switched_off(self, site: Client, deployment: Deployment) -> None:
        page = self.asked(site, f"{PROVIDERS}{deployment.provider_id}/change/", {"extra_headers": "{}"})
        for told in ("Switch off blue?", "nobody is left to answer for small: callers get 502", "Nobody asked there"):
            assert told in page
        assert Provider.objects.get().is_enabled

    def test_it_says_who_answers_instead(self, site: Client, deployment: Deployment, spare: Deployment) -> None:
        page = self.asked(site, f"{PROVIDERS}{deployment.provider_id}/change/", {"extra_headers": "{}"})
        assert "small is answered by other deployments from then on." in page
        Deployment.objects.filter(pk=spare.pk).update(is_enabled=False)
        page = self.asked(site, f"{PROVIDERS}{deployment.provider_id}/change/", {"extra_headers": "{}"})
        assert "nobody is left to answer for small" in page
        page = self.asked(site, f"{PROVIDERS}{spare.provider_id}/change/", {"extra_headers": "{}"})
        assert "No call goes there now" in page

    @pytest.mark.parametrize("row", [{"row_is_enabled": ""}, {"row_DELETE": "on"}])
    def test_it_asks_before_a_model_s_page_takes_a_deployment_away(
        self, site: Client, deployment: Deployment, row: dict[str, str]
    ) -> None:
        page = self.asked(site, f"{MODELS}{deployment.model_id}/change/", self.model_form(deployment, **row))
        assert "Switch off blue/small-1?" in page
        assert Deployment.objects.get().is_enabled

    def test_it_asks_before_a_deployment_is_switched_off(self, site: Client, deployment: Deployment) -> None:
        fields: dict[str, Any] = {"model": deployment.model_id, "provider": deployment.provider_id}
        fields |= {"upstream_name": "small-1", "order": 0, "weight": 1, "output_parameter": "max_tokens"}
        fields |= formset("prices")
        url = f"{DEPLOYMENTS}{deployment.pk}/change/"
        assert "Switch off blue/small-1?" in self.asked(site, url, fields)
        site.post(url, {**fields, **CONFIRMED})
        assert not Deployment.objects.get().is_enabled

    def test_it_asks_nothing_where_nothing_is_taken_away(self, site: Client, deployment: Deployment) -> None:
        url = f"{MODELS}{deployment.model_id}/change/"
        assert site.post(url, self.model_form(deployment, context_size="4096")).status_code == 302
        Model.objects.update(is_enabled=False)
        assert site.post(url, self.model_form(deployment, is_enabled="")).status_code == 302
        assert site.post(url, self.model_form(deployment)).status_code == 302
        assert Model.objects.get().is_enabled

    def test_it_says_first_what_is_wrong_with_the_form(self, site: Client, deployment: Deployment) -> None:
        form = self.model_form(deployment, is_enabled="", public_name="two words")
        page = site.post(f"{MODELS}{deployment.model_id}/change/", form).content.decode()
        assert "Letters, digits and . _ : / @ - only." in page

    def test_it_asks_only_who_may_change_it(self, deployment: Deployment) -> None:
        client = logged_in(make_staff("inference.view_model"))
        form = self.model_form(deployment, is_enabled="")
        assert client.post(f"{MODELS}{deployment.model_id}/change/", form).status_code == 403


class TestPrices:
    def change(self, site: Client, deployment: Deployment, *rows: dict[str, Any], initial: int = 0) -> Any:
        """Send the page of a deployment with these prices."""
        fields = {"model": deployment.model_id, "provider": deployment.provider_id, "upstream_name": "small-1"}
        fields |= {"order": 0, "weight": 1, "is_enabled": "on", "output_parameter": "max_tokens"}
        url = f"{DEPLOYMENTS}{deployment.pk}/change/"
        return site.post(url, {**fields, **formset("prices", *rows, initial=initial)})

    def test_it_adds_a_price_to_the_history(self, site: Client, deployment: Deployment) -> None:
        self.change(site, deployment, NEW_PRICE)
        assert deployment.prices.count() == 2
        assert (latest().action, latest().target_type) == ("created", "price")
        assert latest().after["output_per_million"] == "0.600000000"

    def test_it_changes_no_price_that_was_entered(self, site: Client, deployment: Deployment) -> None:
        price = deployment.prices.get()
        self.change(site, deployment, {**NEW_PRICE, "id": price.pk, "deployment": deployment.pk}, initial=1)
        price.refresh_from_db()
        assert price.input_per_million == Decimal(1)
        assert site.post(f"{PRICES}{price.pk}/change/", NEW_PRICE).status_code == 403

    def test_it_refuses_a_negative_price(self, site: Client, deployment: Deployment) -> None:
        page = self.change(site, deployment, {**NEW_PRICE, "input_per_million": "-1"}).content.decode()
        assert "greater than or equal to 0" in page

    def test_it_lists_what_counts_now(self, site: Client, deployment: Deployment) -> None:
        assert "$1.00 in, $2.00 out" in site.get(DEPLOYMENTS).content.decode()
        deployment.prices.all().delete()
        assert "no price: cost unknown" in site.get(DEPLOYMENTS).content.decode()

    @pytest.mark.parametrize(
        ("amount", "text"),
        [("0.6", "$0.60"), ("0.075000000", "$0.075"), ("0", "$0.00"), ("12", "$12.00"), ("1000", "$1000.00")],
    )
    def test_it_writes_dollars(self, amount: str, text: str) -> None:
        assert price_text(Decimal(amount)) == text


@pytest.mark.parametrize("url", [PROVIDERS, MODELS, DEPLOYMENTS, PRICES])
class TestPages:
    def test_it_asks_the_database_as_often_for_many_as_for_few(
        self, site: Client, deployment: Deployment, url: str, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        for number in range(15):
            model = Model.objects.create(public_name=f"m{number}")
            made = Deployment.objects.create(model=model, provider=deployment.provider, upstream_name=f"m{number}")
            Price.objects.create(deployment=made, input_per_million=1, output_per_million=2)
            Provider.objects.create(name=f"p{number}", base_url="https://203.0.113.9/v1")
        with django_assert_max_num_queries(9):
            assert site.get(url).status_code == 200

    def test_it_lets_staff_without_permission_see_nothing(self, url: str) -> None:
        client = logged_in(make_staff())
        assert client.get(url).status_code == 403
        assert client.get(f"{url}add/").status_code == 403
