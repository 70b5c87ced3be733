"""Clearing cached answers: whose, of which model, at once, for good, and with an entry in the audit log."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from accounts import services
from accounts.key_cache import key_cache
from accounts.models import Account, AuditEntry, Tier
from accounts.tests.factories import ACTOR, Cast, logged_in, make_admin, make_staff
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Model
from inference.services import catalog_save, model_clear_cache
from inference.tests.fixtures import MODEL, Api
from inference.tests.samples import serve

CONFIRMED = {"confirmed": "yes"}


def clear(*arguments: str) -> str:
    """Run the command as another process would, and let this one's snapshots grow old."""
    output = StringIO()
    call_command("cache_clear", *arguments, stdout=output)
    forget()
    return output.getvalue()


def forget() -> None:
    """Let a second pass: what this process knows of keys and models is read again."""
    key_cache.forget()
    catalog.forget()


def outcomes(*callers: Api) -> list[str]:
    """Ask each caller's question of both models; answer what the cache said: A is the usual model, B another."""
    asked = [(caller, model) for caller in callers for model in (MODEL, "another")]
    return [caller.chat(model=model)["X-Cache"][0] for caller, model in asked]


@pytest.fixture
def callers(api: Api, cast: Cast, upstream: FakeUpstream) -> tuple[Api, Api]:
    """Return callers of acme and of globex, whose answers of two models are cached."""
    serve("another")
    Tier.objects.update(requests_per_minute=1000)
    both = api.of(cast.owner), api.of(cast.stranger)
    assert outcomes(*both) == ["M", "M", "M", "M"]
    assert outcomes(*both) == ["H", "H", "H", "H"]
    return both


@pytest.mark.parametrize(
    ("arguments", "expected", "told"),
    [
        (["--account", "acme"], "MMHH", "account acme"),
        (["--model", "another"], "HMHM", "model another"),
        (["--account", "acme", "--model", "another"], "HMHH", "account acme and model another"),
        (["--all"], "MMMM", "all models"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_clears_what_it_says_and_nothing_else(
    callers: tuple[Api, Api], arguments: list[str], expected: str, told: str
) -> None:
    assert f"Cleared the cached answers of {told}:" in clear(*arguments)
    assert "".join(outcomes(*callers)) == expected
    assert outcomes(*callers) == ["H", "H", "H", "H"]


def test_it_brings_nothing_back_by_clearing_again(callers: tuple[Api, Api]) -> None:
    clear("--account", "acme", "--model", "another")
    clear("--account", "acme")
    assert "".join(outcomes(*callers)) == "MMHH"


def test_it_stays_cleared_when_an_old_form_is_saved(callers: tuple[Api, Api]) -> None:
    account, model = Account.objects.get(name="acme"), Model.objects.get(public_name="another")
    clear("--account", "acme")
    clear("--model", "another")
    services.account_save(account=account, actor=ACTOR)
    catalog_save(row=model, actor=ACTOR)
    forget()
    assert "".join(outcomes(*callers)) == "MMHM"


def test_it_finds_no_answer_of_a_model_that_was_deleted_and_made_again(callers: tuple[Api, Api]) -> None:
    Model.objects.get(public_name="another").delete()
    serve("another")
    forget()
    assert "".join(outcomes(*callers)) == "HMHM"


@pytest.mark.django_db
def test_it_leaves_entries_that_name_what_was_cleared(cast: Cast) -> None:
    services.account_clear_cache(account=cast.owner.key.account, model=MODEL, actor="admin:root")
    model_clear_cache(model=Model.objects.create(public_name="another"), actor="admin:root")
    newest, before = AuditEntry.objects.order_by("-pk")[:2]
    assert (newest.action, newest.target, newest.after) == ("cleared", "another", {"cached_answers": "of all accounts"})
    assert (before.action, before.target, before.after) == ("cleared", "acme", {"cached_answers": MODEL})


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Say which"),
        (["--all", "--account", "acme"], "Say which"),
        (["--account", "nobody"], "No account is named nobody"),
        (["--model", "none"], "No model is named none"),
        (["--account", "acme", "--model", "none"], "No model is named none"),
    ],
)
def test_it_refuses_what_is_unclear(cast: Cast, arguments: list[str], told: str) -> None:
    before = Account.objects.get(name="acme").cache_generations
    with pytest.raises(CommandError, match=told):
        clear(*arguments)
    assert Account.objects.get(name="acme").cache_generations == before


def test_it_clears_from_the_pages_of_account_and_model_after_asking(callers: tuple[Api, Api]) -> None:
    site = logged_in(make_admin())
    account, model = Account.objects.get(name="globex"), Model.objects.get(public_name="another")
    for url in (f"/admin/accounts/account/{account.pk}/", f"/admin/inference/model/{model.pk}/"):
        assert "is billed" in site.get(f"{url}clear-cache/").content.decode()
    forget()
    assert "".join(outcomes(*callers)) == "HHHH"
    site.post(f"/admin/accounts/account/{account.pk}/clear-cache/", CONFIRMED)
    forget()
    assert "".join(outcomes(*callers)) == "HHMM"
    site.post(f"/admin/inference/model/{model.pk}/clear-cache/", CONFIRMED)
    forget()
    assert "".join(outcomes(*callers)) == "HMHM"


@pytest.mark.django_db
def test_it_lets_nobody_clear_who_may_only_look(cast: Cast) -> None:
    site = logged_in(make_staff("accounts.view_account"))
    account = cast.owner.key.account
    site.post(f"/admin/accounts/account/{account.pk}/clear-cache/", CONFIRMED)
    assert Account.objects.get(pk=account.pk).cache_generations == {}
