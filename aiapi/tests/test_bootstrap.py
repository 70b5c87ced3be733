"""`manage.py bootstrap`: what a new installation gets, and what a second run leaves alone."""

from __future__ import annotations

from decimal import Decimal
from io import StringIO

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from accounts.keys import digests
from accounts.models import Account, ApiKey, AuditEntry, Tier
from inference.models import Deployment, Model, Price, Provider
from inference.tests.fixtures import Api

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def openai(settings: LazySettings) -> LazySettings:
    """Configure OpenAI's own service, and no password."""
    settings.OPENAI_API_KEY, settings.OPENAI_BASE_URL, settings.OPENAI_MODEL = "sk-one", "", ""
    settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD = "admin", ""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    return settings


def bootstrap() -> tuple[str, str]:
    """Run the command; return what it printed and what it complained of."""
    stdout, stderr = StringIO(), StringIO()
    call_command("bootstrap", stdout=stdout, stderr=stderr)
    return stdout.getvalue(), stderr.getvalue()


def test_it_prints_the_administrators_password_once() -> None:
    printed, _ = bootstrap()
    line = next(line for line in printed.splitlines() if line.startswith("Administrator admin, password "))
    password = line.removeprefix("Administrator admin, password ").removesuffix(" (shown this once).")
    admin = User.objects.get(username="admin")
    assert admin.is_superuser
    assert admin.check_password(password)
    assert len(password) >= 16
    again, _ = bootstrap()
    assert "Administrator" not in again


def test_it_takes_the_administrators_password_from_the_environment_and_keeps_it_quiet(openai: LazySettings) -> None:
    openai.ADMIN_USERNAME, openai.ADMIN_PASSWORD = "chief", "correct horse battery staple"
    printed, _ = bootstrap()
    assert User.objects.get(username="chief").check_password("correct horse battery staple")
    assert "horse" not in printed


def test_it_makes_tiers_and_demo_keys_in_development_once(api: Api) -> None:
    bootstrap()
    assert dict(Tier.objects.values_list("name", "requests_per_minute")) == {"free": 5, "premium": 20}
    assert api.get("/stats", key="dev_key_123")["X-RateLimit-Limit"] == "5"
    assert api.get("/stats", key="prod_key_456")["X-RateLimit-Limit"] == "20"
    call_command("key", "revoke", "--account", "demo", "--name", "dev", stdout=StringIO())
    bootstrap()
    assert not ApiKey.objects.filter(digest__in=digests("dev_key_123"), revoked_at=None).exists()


def test_it_makes_no_demo_keys_in_production(openai: LazySettings) -> None:
    openai.IS_PRODUCTION = True
    printed, _ = bootstrap()
    assert not ApiKey.objects.exists()
    assert "dev_key_123" not in printed


def test_it_sets_up_openai_with_prices() -> None:
    printed, complaints = bootstrap()
    provider = Provider.objects.get()
    assert (provider.name, provider.base_url) == ("openai", "https://api.openai.com/v1")
    assert provider.api_key_variable == "OPENAI_API_KEY"
    assert "Provider openai serves gpt-3.5-turbo, gpt-4o-mini, gpt-4.1-mini, text-embedding-3-small." in printed
    price = Price.objects.get(deployment__upstream_name="gpt-3.5-turbo")
    assert (price.input_per_million, price.output_per_million) == (Decimal("0.5"), Decimal("1.5"))
    assert "sk-one" not in printed
    assert complaints == ""


def test_it_sets_up_another_server_with_the_model_that_is_named(openai: LazySettings) -> None:
    openai.OPENAI_API_KEY, openai.OPENAI_BASE_URL, openai.OPENAI_MODEL = "", "http://127.0.0.1:9/v1", "llama3"
    bootstrap()
    provider = Provider.objects.get()
    assert (provider.base_url, provider.api_key_variable) == ("http://127.0.0.1:9/v1", "")
    assert Model.objects.get().public_name == "llama3"


def test_it_says_what_to_do_without_any_model_and_with_one_that_can_be_none(openai: LazySettings) -> None:
    openai.OPENAI_MODEL = "no such name!"
    with pytest.raises(CommandError, match=r"\AOPENAI_MODEL or OPENAI_BASE_URL: "):
        bootstrap()
    openai.OPENAI_API_KEY, openai.LOCAL_MODEL_URL = "", ""
    _, complaints = bootstrap()
    assert "OPENAI_API_KEY" in complaints
    assert not Provider.objects.exists()


def test_it_switches_to_the_provider_that_the_environment_names_or_to_the_local_model(openai: LazySettings) -> None:
    openai.LOCAL_MODEL_URL = "http://127.0.0.1:9/v1"
    for secret, enabled in (("", {"local": True}), ("sk-two", {"local": False, "openai": True})):
        openai.OPENAI_API_KEY = secret
        bootstrap()
        assert dict(Provider.objects.values_list("name", "is_enabled")) == enabled
    openai.OPENAI_API_KEY = ""
    bootstrap()
    assert dict(Provider.objects.values_list("name", "is_enabled")) == {"local": True, "openai": False}
    assert Model.objects.filter(public_name="smollm2-135m-instruct").exists()


def test_it_changes_nothing_the_second_time_and_keeps_what_operators_changed() -> None:
    bootstrap()
    entries = AuditEntry.objects.filter(actor="command:bootstrap")
    kinds = {"tier", "account", "API key", "provider", "model", "deployment", "price"}
    assert kinds <= set(entries.values_list("target_type", flat=True))
    assert "dev_key_123" not in str(list(entries.values()))
    Tier.objects.filter(name="free").update(requests_per_minute=7)
    Model.objects.filter(public_name="gpt-4o-mini").update(is_enabled=False)
    Price.objects.update(input_per_million=9)
    tables = (Tier, Account, ApiKey, Provider, Model, Deployment, Price, User, AuditEntry)
    before = [list(table._default_manager.order_by("pk").values()) for table in tables]
    bootstrap()
    assert [list(table._default_manager.order_by("pk").values()) for table in tables] == before
