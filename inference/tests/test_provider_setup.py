"""The page that adds a provider with its models, deployments and prices."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import AuditEntry
from accounts.tests.factories import logged_in, make_admin, make_staff
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Model, Price, Provider

pytestmark = pytest.mark.django_db

ADD = "/admin/inference/provider/add/"
LIST = f"{ADD}models/"
FIELDS = {"name": "green", "style": "openai", "extra_headers": "{}", "is_enabled": "on"}


@pytest.fixture
def site(settings: Settings) -> Client:
    """Return a superuser's browser; providers may be on this machine."""
    settings.LOOPBACK_PROVIDERS = True
    return logged_in(make_admin())


def line(number: int, name: str, *, is_listed: bool = True, is_chosen: bool = True, **values: Any) -> dict[str, str]:
    """Return what a line sends."""
    sent = {"upstream_name": name, **({"listed": "1"} if is_listed else {})}
    if is_chosen:
        sent |= {"is_chosen": "on", "public_name": name, "kind": "chat", "context_size": "4096", **values}
    return {f"model-{number}-{field}": value for field, value in sent.items()}


def form(url: str, *lines: dict[str, str], **changes: str) -> dict[str, str]:
    """Return what the page sends."""
    merged = {name: value for each in lines for name, value in each.items()}
    return {**FIELDS, "base_url": url, "api_key_variable": "", "model_lines": str(len(lines)), **merged, **changes}


def list_models(site: Client, url: str, query: str = "", **changes: str) -> str:
    """Test a provider, and return what the page shows then."""
    response = site.post(LIST + query, form(url, name="", **changes))
    assert response.status_code == 200
    return str(response.content.decode())


@pytest.mark.parametrize(
    ("preset", "shown"),
    [
        ("openai", ["https://api.openai.com/v1", "OPENAI_API_KEY"]),
        ("azure", ["openai.azure.com", "AZURE_OPENAI_API_KEY", "2024-10-21", '<option value="azure" selected']),
        ("mistral", ["https://api.mistral.ai/v1", "MISTRAL_API_KEY"]),
        ("groq", ["https://api.groq.com/openai/v1", "GROQ_API_KEY"]),
        ("openrouter", ["https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"]),
        ("ollama", ["http://127.0.0.1:11434/v1", "LOOPBACK_PROVIDERS=true"]),
        ("vllm", ["http://127.0.0.1:8000/v1"]),
        ("other", ["Add provider"]),
        ("no-such", ["Add provider"]),
    ],
)
def test_it_fills_in_what_is_known_of_a_provider(site: Client, preset: str, shown: list[str]) -> None:
    page = site.get(f"{ADD}?preset={preset}").content.decode()
    assert [text for text in shown if text not in page] == []


def test_it_says_at_once_that_the_preset_s_variable_is_not_set(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any test of the provider."""
    missing = "✗ GROQ_API_KEY is not set on this server"
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    assert missing in site.get(ADD, {"preset": "groq"}).content.decode()
    monkeypatch.setenv("GROQ_API_KEY", "gsk")
    assert missing not in site.get(ADD, {"preset": "groq"}).content.decode()


def test_it_lists_the_models_of_a_provider_with_their_prices(site: Client) -> None:
    with FakeUpstream() as fake:
        page = list_models(site, fake.base_url)
        free = list_models(site, fake.base_url, "?preset=vllm")
    assert "It answered with " in page
    assert 'name="model-0-is_chosen"' in page
    assert "price unknown" in page
    assert "$0.00 in, $0.00 out" in free
    entry = AuditEntry.objects.latest("pk")
    assert (entry.actor, entry.action, entry.after["base_url"]) == ("admin:root", "tested", fake.base_url)
    assert not Provider.objects.exists()


def test_it_takes_prices_and_context_sizes_from_the_public_list(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [{"id": "gpt-4.1"}, {"id": "strange"}, {"id": "text-embedding-3-small"}, {"no": "id"}]
    monkeypatch.setattr("inference.upstream.client.Upstream.models", lambda *_, **__: listed)
    page = list_models(site, "https://api.openai.com/v1")
    assert "with 3 models" in page
    assert "1 M tokens of context, $2.00 in, $8.00 out" in page
    assert page.index("gpt-4.1") < page.index("strange")
    assert page.count('<option value="embedding" selected') == 1


def test_it_fills_in_what_the_public_list_knows_of_a_model_that_is_typed_in(site: Client) -> None:
    def known(name: str) -> str:
        sent = form("https://api.openai.com/v1", line(0, name, is_listed=False, is_chosen=False))
        return str(site.post(f"{LIST}?named=model-0", sent).content.decode())

    entries = AuditEntry.objects.count()
    assert all(text in known("gpt-4.1-mini") for text in ('value="0.4"', 'value="1.6"', 'name="model-0-public_name"'))
    assert "does not have this model" in known("strange")
    assert AuditEntry.objects.count() == entries, "nothing was asked"


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ("http_401", "It requires a secret: enter its variable (http 401)."),
        ("http_404", "check whether it should end in /v1"),
        ("http_500", "It gave an unexpected answer: http 500"),
    ],
)
def test_it_says_what_a_failed_test_means(site: Client, fault: str, shown: str) -> None:
    with FakeUpstream() as fake:
        fake.set(models_fault=fault)
        assert shown in list_models(site, fake.base_url)


def test_it_says_that_nothing_answers_or_that_the_secret_is_missing_or_wrong(
    site: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeUpstream() as fake:
        url = fake.base_url
        assert "GREEN_API_KEY is not set on this server" in list_models(site, url, api_key_variable="GREEN_API_KEY")
        monkeypatch.setenv("GREEN_API_KEY", "s3cr3t-value")
        fake.set(models_fault="http_401")
        page = list_models(site, url, api_key_variable="GREEN_API_KEY")
        assert "It refused the secret in GREEN_API_KEY: check it (http 401)." in page
        assert "s3cr3t-value" not in page
    assert "Nothing is listening at this address and port" in list_models(site, url)
    assert "ends in _API_KEY" in list_models(site, url, api_key_variable="SECRET_KEY")


def test_it_names_the_setting_that_allows_an_address_of_this_machine(site: Client, settings: Settings) -> None:
    settings.LOOPBACK_PROVIDERS = False
    assert "set LOOPBACK_PROVIDERS=true and restart" in list_models(site, "http://127.0.0.1:11434/v1")
    assert "set LOOPBACK_PROVIDERS=true and restart" in site.post(ADD, form("http://[::1]:1/v1")).content.decode()
    settings.LOOPBACK_PROVIDERS = True
    assert "Link-local and metadata addresses" in list_models(site, "http://169.254.169.254/v1")


def test_it_saves_provider_models_deployments_and_prices(site: Client) -> None:
    Model.objects.create(public_name="old", aliases=["older"], is_enabled=False)
    Deployment.objects.create(
        model=Model.objects.get(), provider=Provider.objects.create(name="blue", base_url="x"), upstream_name="o"
    )
    lines = (
        line(0, "small", input_per_million="0.5", cached_input_per_million="0.1", output_per_million="2"),
        line(1, "skipped", is_chosen=False),
        line(2, "big", public_name="old"),
        line(3, "typed", is_listed=False, public_name="", input_per_million="0", output_per_million="0"),
        line(4, "", is_listed=False, is_chosen=False),
    )
    page = site.post(ADD, form("http://127.0.0.1:9/v1", *lines), follow=True).content.decode()
    assert "green now serves small, old, typed." in page
    green = Provider.objects.get(name="green")
    found = green.deployments.values_list("model__public_name", "upstream_name", "order", "model__context_size")
    assert set(found) == {("small", "small", 0, 4096), ("old", "big", 1, 8192), ("typed", "typed", 0, 4096)}
    price = Price.objects.get(deployment__upstream_name="small")
    assert (price.input_per_million, price.cached_input_per_million, price.output_per_million) == (
        *(Decimal("0.5"), Decimal("0.1")),
        Decimal(2),
    )
    assert not Price.objects.filter(deployment__upstream_name="big").exists()
    created = AuditEntry.objects.filter(actor="admin:root", action="created").values_list("target_type", flat=True)
    assert sorted(created) == ["deployment"] * 3 + ["model"] * 2 + ["price"] * 2 + ["provider"]
    catalog.forget()
    assert [route.name for route in catalog.models()["old"].routes] == ["blue/o", "green/big"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"context_size": "0"}, "greater than or equal to 1"),
        ({"input_per_million": "-1", "output_per_million": "1"}, "greater than or equal to 0"),
        ({"input_per_million": "1"}, "Enter the prices of input and output, or none"),
        ({"public_name": "two words"}, "Letters, digits and"),
        ({"public_name": "older"}, "Another model has the name older already."),
        ({"public_name": "old", "kind": "embedding"}, "already exists, with the kind chat"),
        ({"kind": "no-such"}, "Select a valid choice"),
    ],
)
def test_it_says_what_is_wrong_and_loses_nothing(site: Client, values: dict[str, Any], shown: str) -> None:
    Model.objects.create(public_name="old", aliases=["older"])
    sent = form("http://127.0.0.1:9/v1", line(0, "small", **values), line(1, "other", is_chosen=False))
    page = site.post(ADD, sent).content.decode()
    assert shown in page
    assert "Correct these models: small." in page
    assert 'value="green"' in page
    for name, value in sent.items():
        if name.startswith("model-0") and value not in ("on", "1", "no-such"):
            assert f'value="{value}"' in page
    assert 'name="model-1-is_chosen"' in page
    assert not Provider.objects.exists()
    assert Model.objects.count() == 1


def test_it_refuses_the_same_model_twice_and_bounds_the_number_of_lines(site: Client) -> None:
    twice = form("http://127.0.0.1:9/v1", line(0, "small"), line(1, "small"))
    assert "Two models have the same name." in site.post(ADD, twice).content.decode()
    for number in ("99999999", "-1", "x", "9" * 5000):
        assert site.post(ADD, form("http://127.0.0.1:9/v1", model_lines=number, name="")).status_code == 200
    assert not Provider.objects.exists()


def test_staff_add_what_they_may(settings: Settings) -> None:
    settings.LOOPBACK_PROVIDERS = True
    viewer = logged_in(make_staff("inference.view_provider", name="viewer"))
    assert viewer.get(ADD).status_code == 403
    assert viewer.post(LIST, form("http://127.0.0.1:9/v1")).status_code == 403
    adder = logged_in(make_staff("inference.add_provider", "inference.view_provider", name="adder"))
    assert "You may not add models" in adder.get(ADD).content.decode()
    sent = form("http://127.0.0.1:9/v1", line(0, "small"), api_key_variable="GREEN_API_KEY")
    adder.post(ADD, sent)
    made = Provider.objects.get()
    assert made.api_key_variable == ""  # only a superuser sets which secret goes where
    assert not Model.objects.exists()
    assert adder.get(LIST).status_code == 403


def test_it_marks_the_model_that_answers_by_default(site: Client, settings: Settings) -> None:
    settings.OPENAI_MODEL = "small"
    for name in ("small", "big"):
        Model.objects.create(public_name=name)

    def shown() -> Any:
        return site.get("/admin/inference/model/").content.decode()

    assert "default (set by environment)" in shown()
    Model.objects.filter(public_name="big").update(is_default=True)
    assert "default (set by environment)" not in shown()
