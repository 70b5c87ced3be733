"""Keys in the admin: made, shown once, rotated, revoked, by those who may."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from accounts.key_cache import key_cache
from accounts.models import Account, ApiKey, AuditEntry
from accounts.tests.factories import (
    Cast,
    latest,
    logged_in,
    make_account,
    make_key,
    make_revoked_key,
    make_staff,
    make_tier,
    secret_part,
    stored_text,
)

pytestmark = pytest.mark.django_db

KEYS, ACCOUNTS, TIERS = (f"/admin/accounts/{name}/" for name in ("apikey", "account", "tier"))
CONFIRMED = {"confirmed": "yes"}
ISSUED = re.compile(r'id="issued-key"[^>]*value="(ak_[^"]+)"')


def form(**changes: Any) -> dict[str, Any]:
    """Return what the page that makes a key sends."""
    empty = ("expires_at", "overrides_until")
    return {
        "name": "ci",
        "scopes": [],
        "models": "",
        "allowed_ips": "",
        **{f"{name}_{part}": "" for name in empty for part in (0, 1)},
        **changes,
    }


def add(client: Client, account: Account, **changes: Any) -> Any:
    """Make a key in the admin."""
    return client.post(f"{KEYS}add/", form(account=account.pk, tier=make_tier().pk, **changes))


def issued_in(response: Any) -> str:
    """Find the key that a page shows."""
    found = ISSUED.search(response.content.decode())
    assert found, response.content.decode()
    return found[1]


def staff(*permissions: str) -> Client:
    """Return a browser of somebody with these permissions."""
    return logged_in(make_staff(*permissions))


class TestMakingKeys:
    def test_it_shows_a_new_key_once(self, admin_site: Client) -> None:
        response = add(admin_site, make_account())
        plain = issued_in(response)
        assert response.status_code == 200
        assert "it will not be shown again" in response.content.decode()
        assert "no-store" in response.headers["Cache-Control"]
        assert key_cache.find(plain)
        key = ApiKey.objects.get()
        for url in (KEYS, f"{KEYS}{key.pk}/change/", f"{KEYS}{key.pk}/history/", "/admin/accounts/auditentry/"):
            assert secret_part(plain) not in admin_site.get(url).content.decode()

    def test_it_keeps_the_key_nowhere(self, admin_site: Client) -> None:
        plain = issued_in(add(admin_site, make_account()))
        cookies = " ".join(cookie.value for cookie in admin_site.cookies.values())
        sessions = str(dict(admin_site.session.items()))
        assert secret_part(plain) not in stored_text() + cookies + sessions

    def test_it_takes_every_setting(self, admin_site: Client) -> None:
        add(
            admin_site,
            make_account(),
            scopes=["chat", "usage"],
            models="gpt-4o-mini\ngpt-4.1",
            allowed_ips="192.0.2.7, 2001:db8::/32",
            expires_at_0="2099-01-31",
            expires_at_1="12:00",
            monthly_token_budget="1000",
            monthly_cost_budget="2.50",
            requests_per_minute_override="7",
        )
        key = ApiKey.objects.get()
        assert (key.scopes, key.models) == (["chat", "usage"], ["gpt-4o-mini", "gpt-4.1"])
        assert key.allowed_ips == ["192.0.2.7", "2001:db8::/32"]
        assert (key.monthly_token_budget, str(key.monthly_cost_budget)) == (1000, "2.500000000")
        assert key.requests_per_minute_override == 7
        assert key.expires_at is not None
        assert key.expires_at.year == 2099

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": ""}, "This field is required"),
            ({"allowed_ips": "somewhere"}, "somewhere is not an address"),
            ({"scopes": ["everything"]}, "Select a valid choice"),
            ({"expires_at_0": "2001-01-01", "expires_at_1": "00:00"}, "This time is in the past"),
            ({"requests_per_minute_override": "0"}, "greater than or equal to 1"),
        ],
    )
    def test_it_says_what_is_wrong(self, admin_site: Client, changes: dict[str, Any], message: str) -> None:
        response = add(admin_site, make_account(), **changes)
        assert message in response.content.decode()
        assert not ApiKey.objects.exists()

    def test_it_says_that_an_account_has_all_its_keys(self, admin_site: Client) -> None:
        account = make_account("acme", max_keys=1)
        make_key(account=account)
        assert "Account acme already has 1 usable keys" in add(admin_site, account).content.decode()

    def test_it_says_that_a_name_is_taken(self, admin_site: Client) -> None:
        issued = make_key(name="ci")
        assert "already exists" in add(admin_site, issued.key.account).content.decode()

    def test_it_is_audited_as_the_administrator(self, admin_site: Client) -> None:
        add(admin_site, make_account())
        assert (latest().actor, latest().action, latest().target_type) == ("admin:root", "created", "API key")


class TestChangingKeys:
    def change(self, client: Client, key: ApiKey, **changes: Any) -> Any:
        """Change a key on its page."""
        inline = {f"model_budgets-{name}": "0" for name in ("TOTAL_FORMS", "INITIAL_FORMS", "MIN_NUM_FORMS")}
        return client.post(f"{KEYS}{key.pk}/change/", form(name=key.name, tier=key.tier_id, **inline, **changes))

    def test_it_changes_settings_and_nothing_else(self, admin_site: Client) -> None:
        issued = make_key()
        self.change(admin_site, issued.key, scopes=["chat"], models="m")
        changed = ApiKey.objects.get()
        assert (changed.scopes, changed.models, changed.digest) == (["chat"], ["m"], issued.key.digest)
        assert (latest().before, latest().after) == (
            {"scopes": [], "models": []},
            {"scopes": ["chat"], "models": ["m"]},
        )

    def test_it_leaves_no_entry_where_nothing_changed(self, admin_site: Client) -> None:
        key = make_key(models=["a", "b"]).key
        count = AuditEntry.objects.count()
        self.change(admin_site, key, models="a\r\nb\r\n")
        assert AuditEntry.objects.count() == count

    def test_it_moves_no_key_to_another_account(self, admin_site: Client) -> None:
        key, other = make_key().key, make_account()
        self.change(admin_site, key, account=other.pk)
        assert ApiKey.objects.get().account_id == key.account_id

    def test_it_takes_effect_here_at_once(
        self, admin_site: Client, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
    ) -> None:
        issued = make_key()
        key_cache.find(issued.plain)
        with django_capture_on_commit_callbacks(execute=True):
            self.change(admin_site, issued.key, scopes=["usage"])
        identity = key_cache.find(issued.plain)
        assert identity is not None
        assert identity.scopes == {"usage"}


class TestRevoking:
    def test_it_asks_first_and_says_what_stops(self, admin_site: Client, cast: Cast) -> None:
        page = admin_site.get(f"{KEYS}{cast.owner.key.pk}/revoke/").content.decode()
        assert "Every request with this key of account acme will get 401 within a second." in page
        assert f"acme / owner ({cast.owner.key.masked})" in page
        assert cast.owner.works()

    def test_it_revokes_one(self, admin_site: Client, cast: Cast) -> None:
        response = admin_site.post(f"{KEYS}{cast.owner.key.pk}/revoke/", CONFIRMED, follow=True)
        assert "1 key revoked: refused everywhere within a second." in response.content.decode()
        assert (cast.owner.works(), cast.colleague.works()) == (False, True)
        assert (latest().actor, latest().action) == ("admin:root", "revoked")

    def test_it_revokes_the_selected_ones_after_asking(self, admin_site: Client, cast: Cast) -> None:
        chosen = [str(issued.key.pk) for issued in (cast.owner, cast.stranger)]
        selection = {"action": "revoke_selected", "select_across": "0", ACTION_CHECKBOX_NAME: chosen}
        page = admin_site.post(KEYS, selection).content.decode()
        assert "Revoke 2 keys?" in page
        assert "Every request with these keys of 2 accounts" in page
        assert cast.owner.works()
        admin_site.post(KEYS, {**selection, **CONFIRMED})
        assert [issued.works() for issued in (cast.owner, cast.colleague, cast.stranger)] == [False, True, False]

    def test_it_offers_nothing_on_a_revoked_key(self, admin_site: Client) -> None:
        key = make_revoked_key(make_account()).key
        page = admin_site.get(f"{KEYS}{key.pk}/change/").content.decode()
        assert "/revoke/" not in page
        assert "/rotate/" not in page

    def test_it_never_deletes(self, admin_site: Client, cast: Cast) -> None:
        url = f"{KEYS}{cast.owner.key.pk}/"
        assert admin_site.post(f"{url}delete/", {"post": "yes"}).status_code == 403
        assert f"{url}delete/" not in admin_site.get(f"{url}change/").content.decode()
        selection = {"action": "delete_selected", ACTION_CHECKBOX_NAME: [cast.owner.key.pk], "post": "yes"}
        admin_site.post(KEYS, selection)
        assert ApiKey.objects.filter(pk=cast.owner.key.pk).exists()


class TestRotating:
    def test_it_asks_for_the_grace_period(self, admin_site: Client, cast: Cast) -> None:
        page = admin_site.get(f"{KEYS}{cast.owner.key.pk}/rotate/").content.decode()
        assert "The old key keeps working for" in page

    def test_it_shows_the_successor_once(self, admin_site: Client, cast: Cast) -> None:
        response = admin_site.post(f"{KEYS}{cast.owner.key.pk}/rotate/", {**CONFIRMED, "grace": "3600"})
        plain = issued_in(response)
        assert key_cache.find(plain)
        assert cast.owner.works()
        assert secret_part(plain) not in stored_text()
        assert f"owner ({cast.owner.key.masked}), which works until" in response.content.decode()

    def test_it_accepts_only_the_periods_offered(self, admin_site: Client, cast: Cast) -> None:
        count = ApiKey.objects.count()
        admin_site.post(f"{KEYS}{cast.owner.key.pk}/rotate/", {**CONFIRMED, "grace": "999999999"})
        assert ApiKey.objects.count() == count

    def test_it_says_why_a_key_can_not_be_rotated(self, admin_site: Client, cast: Cast) -> None:
        url = f"{KEYS}{cast.expired.key.pk}/rotate/"
        page = admin_site.post(url, {**CONFIRMED, "grace": "0"}, follow=True).content.decode()
        assert "is expired: only a key that works can be rotated." in page


class TestListOfKeys:
    def test_it_shows_who_when_and_what(self, admin_site: Client, cast: Cast) -> None:
        page = admin_site.get(KEYS).content.decode()
        assert all(text in page for text in ("acme", "globex", cast.owner.key.masked, "revoked", "expired", "never"))

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("state=active", ["colleague", "owner", "stranger"]),
            ("state=revoked", ["revoked"]),
            ("state=expired", ["expired"]),
            ("state=disabled", ["disabled"]),
            ("state=in+grace", ["leaving"]),
            ("account=globex", ["stranger"]),
            ("account=globex&state=revoked", []),
            ("q=owner", ["owner"]),
        ],
    )
    def test_it_filters(self, admin_site: Client, cast: Cast, query: str, names: list[str]) -> None:
        leaving = make_key(account=cast.owner.key.account, name="leaving").key
        ApiKey.objects.filter(pk=leaving.pk).update(revoked_at=timezone.now() + timedelta(hours=1))
        found = admin_site.get(f"{KEYS}?{query}").context["cl"].result_list
        assert sorted(key.name for key in found) == names

    def test_it_finds_a_key_by_its_prefix(self, admin_site: Client, cast: Cast) -> None:
        found = admin_site.get(KEYS, {"q": cast.owner.key.prefix}).context["cl"].result_list
        assert [key.pk for key in found] == [cast.owner.key.pk]

    def test_it_cuts_a_whole_key_that_was_pasted(self, admin_site: Client, cast: Cast) -> None:
        response = admin_site.get(KEYS, {"q": cast.owner.plain, "state": "active"})
        assert response.headers["Location"] == f"{KEYS}?q={cast.owner.key.prefix}&state=active"
        page = admin_site.get(response.headers["Location"]).content.decode()
        assert 'maxlength="12"' in page

    def test_it_asks_the_database_as_often_for_many_as_for_few(
        self, admin_site: Client, cast: Cast, django_assert_max_num_queries: DjangoAssertNumQueries
    ) -> None:
        for _ in range(20):
            make_key()
        with django_assert_max_num_queries(9):
            admin_site.get(KEYS)


PAGES = (KEYS, ACCOUNTS, TIERS, "/admin/accounts/auditentry/")


class TestPermissions:
    @pytest.mark.parametrize("url", PAGES)
    def test_it_lets_nobody_in_without_a_log_in(self, url: str) -> None:
        response = Client().get(url)
        assert (response.status_code, response.headers["Location"]) == (302, f"/admin/login/?next={url}")

    @pytest.mark.parametrize("url", PAGES)
    def test_it_lets_staff_without_permission_see_nothing(self, url: str) -> None:
        assert staff().get(url).status_code == 403

    def test_it_lets_those_who_may_look_only_look(self, cast: Cast) -> None:
        client = staff("accounts.view_apikey", "accounts.view_account")
        key, account = f"{KEYS}{cast.owner.key.pk}/", f"{ACCOUNTS}{cast.owner.key.account_id}/"
        assert client.get(f"{key}change/").status_code == 200
        forbidden = [f"{key}revoke/", f"{key}rotate/", f"{account}disable/", f"{account}add-key/", f"{KEYS}add/"]
        assert {url: client.post(url, {**CONFIRMED, "grace": "0"}).status_code for url in forbidden} == dict.fromkeys(
            forbidden, 403
        )
        selection = {"action": "revoke_selected", ACTION_CHECKBOX_NAME: [cast.owner.key.pk], **CONFIRMED}
        client.post(KEYS, selection)
        assert cast.owner.works()

    def test_it_lets_those_who_may_change_keys_revoke(self, cast: Cast) -> None:
        client = staff("accounts.view_apikey", "accounts.change_apikey")
        client.post(f"{KEYS}{cast.owner.key.pk}/revoke/", CONFIRMED)
        assert not cast.owner.works()
        assert latest().actor == "admin:staff"

    def test_it_refuses_a_forged_form(self, admin_site: Client, cast: Cast) -> None:
        forger = Client(enforce_csrf_checks=True)
        forger.cookies = admin_site.cookies
        assert forger.post(f"{KEYS}{cast.owner.key.pk}/revoke/", CONFIRMED).status_code == 403
        assert cast.owner.works()

    @pytest.mark.parametrize(
        "path", ["apikey/{}/rotate/", "apikey/{}/revoke/", "account/{}/disable/", "account/{}/add-key/"]
    )
    @pytest.mark.parametrize("object_id", ["4711", "nonsense"])
    def test_it_answers_404_for_what_is_not_there(self, admin_site: Client, path: str, object_id: str) -> None:
        assert admin_site.get(f"/admin/accounts/{path.format(object_id)}").status_code == 404

    @pytest.mark.parametrize("page", [KEYS, ACCOUNTS, TIERS])
    @pytest.mark.parametrize("object_id", ["4711", "nonsense"])
    def test_it_leads_from_an_unknown_page_to_the_index(self, admin_site: Client, page: str, object_id: str) -> None:
        assert admin_site.get(f"{page}{object_id}/change/").headers["Location"] == "/admin/"

    def test_it_opens_no_door_to_reservations(self, admin_site: Client) -> None:
        assert admin_site.get("/admin/accounts/openreservation/").status_code == 404
