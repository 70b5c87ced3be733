"""The admin's sidebar and command palette: what users with few and with all permissions find there."""

from __future__ import annotations

from uuid import UUID

import pytest
from django.core.cache import cache
from django.test import Client
from django.utils import timezone

from accounts.tests.factories import logged_in, make_account, make_admin, make_key, make_staff, make_tier
from inference.models import Model, Provider
from monitoring.models import Alert
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _empty_palette() -> None:
    """Forget what the palette found before: unfold keeps results for five minutes."""
    cache.clear()


def shown(client: Client, url: str) -> str:
    """Return a page."""
    answer = client.get(url)
    assert answer.status_code == 200
    return answer.content.decode()


def found(client: Client, term: str) -> str:
    """Return what the command palette shows for a term."""
    return shown(client, f"/admin/search/?extended=1&s={term}")


def test_it_shows_only_what_a_user_may_see() -> None:
    page = shown(logged_in(make_staff("accounts.view_account")), "/admin/accounts/account/")
    assert ">Customers<" in "".join(page.split())
    assert "/admin/accounts/account/" in page
    for hidden in ("/admin/accounts/apikey/", "/admin/monitoring/", "/admin/inference/", "/admin/auth/"):
        assert hidden not in page


def test_the_menu_a_list_and_its_breadcrumb_have_one_name() -> None:
    client = logged_in(make_admin())
    for path, name in (
        ("accounts/apikey", "API keys"),
        ("accounts/auditentry", "Audit log"),
        ("auth/user", "Staff"),
        ("auth/group", "Roles"),
        ("monitoring/requestrecord", "Requests"),
    ):
        page = shown(client, f"/admin/{path}/")
        assert f"<title>{name} |" in " ".join(page.split()).replace("<title> ", "<title>"), path
        assert page.count(f">{name}</a>") == 1, "the breadcrumb"


def test_it_counts_open_alerts() -> None:
    client = logged_in(make_admin())
    assert "uppercase min-w-[18px]" not in shown(client, "/admin/accounts/tier/")
    for number in range(3):
        Alert.objects.create(
            kind=Alert.Kind.ERRORS, subject=f"errors {number}", title="t", text="t", began_at=timezone.now()
        )
    assert "uppercase min-w-[18px]" in shown(client, "/admin/accounts/tier/")


def test_it_finds_models_providers_and_tiers_by_a_part_of_their_name() -> None:
    tier, provider = (
        make_tier("business-plus"),
        Provider.objects.create(name="blue-cloud", base_url="https://a.example.com"),
    )
    model = Model.objects.create(public_name="assistant-large")
    client, few = logged_in(make_admin()), logged_in(make_staff("accounts.view_account"))
    for term, url in (
        ("plus", f"/admin/accounts/tier/{tier.pk}/change/"),
        ("cloud", f"/admin/inference/provider/{provider.pk}/change/"),
        ("large", f"/admin/inference/model/{model.pk}/change/"),
    ):
        assert url in found(client, term)
        assert url not in found(few, term)


def test_it_finds_accounts_keys_requests_and_actions() -> None:
    account = make_account("acme", display_name="Blue Ocean GmbH")
    client, issued = logged_in(make_admin()), make_key(account=account, name="Nightly")
    record = recorded(issued, label="req-42")
    for term in ("acm", "blue o"):
        assert f"/admin/accounts/account/{issued.key.account_id}/change/" in found(client, term)
    for term in ("night", issued.key.prefix):
        assert f"/admin/accounts/apikey/{issued.key.pk}/change/" in found(client, term)
    for term in ("req-42", record.id[:12]):
        assert f"/admin/monitoring/requestrecord/{UUID(record.id)}/change/" in found(client, term)
    assert "/admin/accounts/apikey/add/" in found(client, "add key")
    assert "Nothing found" in found(client, "nothing of this name")


def test_it_finds_nothing_without_permission() -> None:
    client, issued = logged_in(make_staff("accounts.view_tier")), make_key(account=make_account("acme"), name="nightly")
    recorded(issued, label="req-42")
    for term in ("acme", "nightly", issued.key.prefix, "req-42", "add key"):
        assert "Nothing found" in found(client, term)


def test_it_offers_what_can_be_done_with_the_only_account_that_is_found() -> None:
    make_account("globex", display_name="Globex Ltd")
    make_account("initech")
    make_account("intertrode")
    client = logged_in(make_staff("accounts.view_account", "accounts.add_apikey"))
    page = found(client, "glo")
    assert "Add key for Globex Ltd" in page
    assert "Requests of" not in page  # for those who may see them
    assert "Add key for" not in found(client, "i")


def test_it_offers_what_a_user_may_do_before_anything_is_typed() -> None:
    for client, offered, hidden in (
        (logged_in(make_admin()), ["Add account", "Add key", "Add provider", "Export usage"], []),
        (logged_in(make_staff("accounts.view_account", "accounts.add_account")), ["Add account"], ["Add key"]),
    ):
        page = shown(client, "/admin/accounts/account/")
        palette = page.partition('id="command-history"')[2].partition("Type to find")[0]
        assert [title for title in offered if f">{title}<" not in palette] == []
        assert [title for title in hidden if title in palette] == []


def test_it_says_that_nothing_was_found() -> None:
    assert "Nothing found for “no such &lt;thing&gt;”." in found(logged_in(make_admin()), "no such <thing>")
