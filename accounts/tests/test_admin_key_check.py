"""The button "Test this key" on a key's page in the admin."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import ApiKey, AuditEntry
from accounts.tests.factories import Cast, make_key, make_staff, secret_part

pytestmark = pytest.mark.django_db

KEYS = "/admin/accounts/apikey/"
ADMITTED, REFUSED = "would be admitted now", "would be refused now"


def page(client: Client, key: ApiKey, **parameters: str) -> str:
    """Open the page."""
    response = client.get(f"{KEYS}{key.pk}/test/", parameters)
    assert response.status_code == 200
    return response.content.decode()


def test_it_says_that_a_key_would_be_admitted_and_under_which_limits(admin_site: Client, cast: Cast) -> None:
    assert f"{KEYS}{cast.owner.key.pk}/test/" in admin_site.get(f"{KEYS}{cast.owner.key.pk}/change/").content.decode()
    shown = page(admin_site, cast.owner.key)
    assert ADMITTED in shown
    assert "requests per minute, key" in shown
    assert "tier free" in shown
    assert secret_part(cast.owner.plain) not in shown


@pytest.mark.parametrize("who", ["revoked", "expired", "disabled"])
def test_it_says_why_a_key_would_be_refused(admin_site: Client, cast: Cast, who: str) -> None:
    key = getattr(cast, who).key
    shown = page(admin_site, key)
    assert REFUSED in shown
    assert "invalid_api_key" in shown
    assert f"{KEYS}{key.pk}/test/" in admin_site.get(f"{KEYS}{key.pk}/change/").content.decode()


def test_it_takes_an_address(admin_site: Client) -> None:
    key = make_key(allowed_ips=["192.0.2.0/28"]).key
    assert ADMITTED in page(admin_site, key, address="192.0.2.3")
    assert "address_denied" in page(admin_site, key, address="198.51.100.1")
    shown = page(admin_site, key, address='"><script>')
    assert "That is not an IP address." in shown
    assert '"><script>' not in shown


def test_it_changes_nothing(admin_site: Client, cast: Cast) -> None:
    before = AuditEntry.objects.count()
    page(admin_site, cast.owner.key)
    assert AuditEntry.objects.count() == before
    cast.owner.key.refresh_from_db()
    assert cast.owner.key.last_used_at is None


def test_it_is_for_those_who_may_see_the_key(cast: Cast) -> None:
    client, url = Client(), f"{KEYS}{cast.owner.key.pk}/test/"
    assert client.get(url).status_code == 302
    client.force_login(make_staff("accounts.view_account", name="other"))
    assert client.get(url).status_code == 403
    client.force_login(make_staff("accounts.view_apikey", name="viewer"))
    assert client.get(url).status_code == 200
    assert client.get(f"{KEYS}999999/test/").status_code == 404
