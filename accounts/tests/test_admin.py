"""Keys in the admin: made, shown once, tested, rotated, revoked, by those who may."""

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
    times = {f"{name}_{part}": "" for name in ("expires_at", "overrides_until") for part in (0, 1)}
    return {"name": "ci", "scopes": [], "models": "", "allowed_ips": "", **times, **changes}


def add(client: Client, account: Account, **changes: Any) -> Any:
    """Make a key in the admin."""
    return client.post(f"{KEYS}add/", form(account=account.pk, tier=make_tier().pk, **changes))


def change(client: Client, key: ApiKey, **changes: Any) -> Any:
    """Change a key on its page."""
    inline = {f"model_budgets-{name}": "0" for name in ("TOTAL_FORMS", "INITIAL_FORMS", "MIN_NUM_FORMS")}
    return client.post(f"{KEYS}{key.pk}/change/", form(name=key.name, tier=key.tier_id, **inline, **changes))


def issued_in(response: Any) -> str:
    """Find the key that a page shows."""
    found = ISSUED.search(response.content.decode())
    assert found, response.content.decode()
    return found[1]


def page_of(client: Client, url: str, **parameters: str) -> str:
    """Return the text of a page."""
    response = client.get(url, parameters)
    assert response.status_code == 200
    return response.content.decode()


def test_it_shows_a_new_key_once_and_keeps_it_nowhere(admin_site: Client) -> None:
    budget = {"monthly_token_budget": "1000", "monthly_cost_budget": "2.50"}
    shown_at = add(admin_site, make_account(), **budget).headers["Location"]
    before = stored_text() + str(dict(admin_site.session.items()))
    cookies_before = "".join(cookie.value for cookie in admin_site.cookies.values())
    stranger = logged_in(make_staff("accounts.view_apikey"))
    assert "ak_" not in stranger.get(shown_at).headers["Location"]
    response = admin_site.get(shown_at)
    plain = issued_in(response)
    assert secret_part(plain) not in before + cookies_before + shown_at
    assert "A new key is shown only once" in admin_site.get(shown_at, follow=True).content.decode()
    page = response.content.decode()
    assert all(
        text in page
        for text in ("it will not be shown again", "Expires", "$2.50 and 1,000 tokens", "/v1/chat/completions")
    )
    assert "no-store" in response.headers["Cache-Control"]
    assert key_cache.find(plain)
    assert (latest().actor, latest().action, latest().target_type) == ("admin:root", "created", "API key")
    url = f"{KEYS}{ApiKey.objects.get().pk}/"
    pages = [page_of(admin_site, each) for each in (KEYS, f"{url}change/", f"{url}history/")]
    cookies = [cookie.value for cookie in admin_site.cookies.values()]
    kept = "".join([*pages, page_of(admin_site, "/admin/accounts/auditentry/"), *cookies, stored_text()])
    assert secret_part(plain) not in kept + str(dict(admin_site.session.items()))


def test_a_visit_without_the_cookie_leaves_a_new_key_to_be_shown(admin_site: Client) -> None:
    shown_at = add(admin_site, make_account()).headers["Location"]
    pad = admin_site.cookies.pop("issued_key")
    assert admin_site.get(shown_at).status_code == 302
    admin_site.cookies["issued_key"] = pad.value
    assert key_cache.find(issued_in(admin_site.get(shown_at)))


def test_it_says_what_the_account_of_a_new_key_has_left(admin_site: Client) -> None:
    account = make_account(display_name="Acme", monthly_cost_budget=30)
    shown = page_of(admin_site, f"{KEYS}add/", account=str(account.pk))
    assert " has $30.00 of $30.00 left this month." in shown


def test_it_takes_every_setting_of_a_new_key(admin_site: Client) -> None:
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
    assert f"{key.expires_at}".startswith("2099-01-31 12:00")


@pytest.mark.parametrize(
    ("expires", "days"), [("never", None), ("30", 30), ("90", 90), ("365", 365), ("custom", 7), ("", 7)]
)
def test_it_offers_usual_times_of_expiry(admin_site: Client, expires: str, days: int | None) -> None:
    week = timezone.now() + timedelta(days=7)
    add(admin_site, make_account(), expires=expires, expires_at_0=f"{week:%Y-%m-%d}", expires_at_1=f"{week:%H:%M:%S}")
    expires_at = ApiKey.objects.get().expires_at
    left = None if expires_at is None else round((expires_at - timezone.now()) / timedelta(days=1))
    assert left == days


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expires": "custom"}, "Enter a date and a time"),
        ({"expires": "someday"}, "Select a valid choice"),
        ({"name": ""}, "This field is required"),
        ({"name": "taken"}, "already exists"),
        ({"allowed_ips": "somewhere"}, "somewhere is not an address"),
        ({"scopes": ["everything"]}, "Select a valid choice"),
        ({"expires_at_0": "2001-01-01", "expires_at_1": "00:00"}, "This time is in the past"),
        ({"requests_per_minute_override": "0"}, "greater than or equal to 1"),
        ({}, "Account acme has its maximum of usable keys (1)"),
    ],
)
def test_it_says_what_is_wrong_with_a_new_key(admin_site: Client, changes: dict[str, Any], message: str) -> None:
    account = make_account("acme", max_keys=1)
    make_key(account=account, name="taken")
    assert message in add(admin_site, account, **changes).content.decode()
    assert ApiKey.objects.count() == 1


def test_it_changes_settings_and_nothing_else_at_once(
    admin_site: Client, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    issued = make_key()
    key_cache.find(issued.plain)
    with django_capture_on_commit_callbacks(execute=True):
        change(admin_site, issued.key, scopes=["usage"], models="a\r\nb", account=make_account().pk)
    changed, before = ApiKey.objects.get(), issued.key
    assert (changed.scopes, changed.models) == (["usage"], ["a", "b"])
    assert (changed.digest, changed.account_id) == (before.digest, before.account_id)
    entry = latest()
    assert (entry.before, entry.after) == ({"scopes": [], "models": []}, {"scopes": ["usage"], "models": ["a", "b"]})
    identity = key_cache.find(issued.plain)
    assert identity is not None
    assert identity.scopes == {"usage"}
    change(admin_site, changed, scopes=["usage"], models="a\r\nb\r\n")
    assert latest() == entry, "no entry without a change"


def test_it_revokes_after_asking(admin_site: Client, cast: Cast) -> None:
    url = f"{KEYS}{cast.owner.key.pk}/"
    page = page_of(admin_site, f"{url}revoke/")
    assert "Every request with this key of account acme will get 401 within a second." in page
    assert f"acme / owner ({cast.owner.key.masked})" in page
    assert cast.owner.works()
    response = admin_site.post(f"{url}revoke/", CONFIRMED, follow=True)
    assert "1 key revoked: refused everywhere within a second." in response.content.decode()
    assert (cast.owner.works(), cast.colleague.works()) == (False, True)
    assert (latest().actor, latest().action) == ("admin:root", "revoked")
    page = page_of(admin_site, f"{url}change/")
    assert not [action for action in ("/revoke/", "/rotate/") if action in page], "nothing is left to do"


def test_it_revokes_the_selected_keys_after_asking_and_deletes_none(admin_site: Client, cast: Cast) -> None:
    chosen = [str(issued.key.pk) for issued in (cast.owner, cast.stranger)]
    selection = {"action": "revoke_selected", "select_across": "0", ACTION_CHECKBOX_NAME: chosen}
    page = admin_site.post(KEYS, selection).content.decode()
    assert "Revoke 2 keys?" in page
    assert "Every request with these keys of 2 accounts" in page
    assert cast.owner.works()
    admin_site.post(KEYS, {**selection, **CONFIRMED})
    assert [issued.works() for issued in (cast.owner, cast.colleague, cast.stranger)] == [False, True, False]
    url = f"{KEYS}{cast.owner.key.pk}/"
    assert admin_site.post(f"{url}delete/", {"post": "yes"}).status_code == 403
    assert f"{url}delete/" not in page_of(admin_site, f"{url}change/")
    admin_site.post(KEYS, {"action": "delete_selected", ACTION_CHECKBOX_NAME: chosen, "post": "yes"})
    assert ApiKey.objects.filter(pk__in=chosen).count() == 2


def test_it_rotates_for_a_period_that_it_offers_and_shows_the_successor_once(admin_site: Client, cast: Cast) -> None:
    url, count = f"{KEYS}{cast.owner.key.pk}/rotate/", ApiKey.objects.count()
    assert "The old key keeps working for" in page_of(admin_site, url)
    admin_site.post(url, {**CONFIRMED, "grace": "999999999"})
    assert ApiKey.objects.count() == count
    response = admin_site.post(url, {**CONFIRMED, "grace": "3600"}, follow=True)
    plain = issued_in(response)
    assert key_cache.find(plain)
    assert cast.owner.works()
    assert secret_part(plain) not in stored_text()
    assert f"owner ({cast.owner.key.masked}), which works until" in response.content.decode()
    expired = f"{KEYS}{cast.expired.key.pk}/rotate/"
    page = admin_site.post(expired, {**CONFIRMED, "grace": "0"}, follow=True).content.decode()
    assert "is expired: only a key that works can be rotated." in page


def test_it_lists_and_filters_keys_with_few_queries(
    admin_site: Client, cast: Cast, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    leaving = make_key(account=cast.owner.key.account, name="leaving").key
    ApiKey.objects.filter(pk=leaving.pk).update(revoked_at=timezone.now() + timedelta(hours=1))
    page = page_of(admin_site, KEYS)
    assert all(text in page for text in ("acme", "globex", cast.owner.key.masked, "revoked", "expired", "never"))
    for query, names in (
        ("state=active", ["colleague", "owner", "stranger"]),
        ("state=revoked", ["revoked"]),
        ("state=expired", ["expired"]),
        ("state=disabled", ["disabled"]),
        ("state=in+grace", ["leaving"]),
        ("account=globex", ["stranger"]),
        ("account=globex&state=revoked", []),
        ("q=owner", ["owner"]),
        (f"q={cast.owner.key.prefix}", ["owner"]),
    ):
        found = admin_site.get(f"{KEYS}?{query}").context["cl"].result_list
        assert sorted(key.name for key in found) == names, query
    for _ in range(20):
        make_key()
    with django_assert_max_num_queries(9):
        admin_site.get(KEYS)


def test_it_cuts_a_whole_key_that_was_pasted(admin_site: Client, cast: Cast) -> None:
    response = admin_site.get(KEYS, {"q": cast.owner.plain, "state": "active"})
    assert response.headers["Location"] == f"{KEYS}?q={cast.owner.key.prefix}&state=active"
    assert 'maxlength="12"' in page_of(admin_site, response.headers["Location"])


def test_it_tests_a_key_and_changes_nothing(admin_site: Client, cast: Cast) -> None:
    before = AuditEntry.objects.count()
    for who in ("owner", "revoked", "expired", "disabled"):
        key = getattr(cast, who).key
        url = f"{KEYS}{key.pk}/test/"
        assert url in page_of(admin_site, f"{KEYS}{key.pk}/change/")
        shown = page_of(admin_site, url)
        texts = ["would be admitted now"] if who == "owner" else ["would be refused now", "invalid_api_key"]
        assert not [text for text in [*texts, "Requests in the last minute (key)", "tier free"] if text not in shown]
        assert secret_part(cast.owner.plain) not in shown
    assert AuditEntry.objects.count() == before
    cast.owner.key.refresh_from_db()
    assert cast.owner.key.last_used_at is None
    url = f"{KEYS}{make_key(allowed_ips=['192.0.2.0/28']).key.pk}/test/"
    assert "would be admitted now" in page_of(admin_site, url, address="192.0.2.3")
    assert "address_denied" in page_of(admin_site, url, address="198.51.100.1")
    shown = page_of(admin_site, url, address='"><script>')
    assert "That is not an IP address." in shown
    assert '"><script>' not in shown


@pytest.mark.parametrize("url", [KEYS, ACCOUNTS, TIERS, "/admin/accounts/auditentry/"])
def test_it_lets_nobody_in_without_a_log_in_and_a_permission(url: str) -> None:
    response = Client().get(url)
    assert (response.status_code, response.headers["Location"]) == (302, f"/admin/login/?next={url}")
    assert logged_in(make_staff()).get(url).status_code == 403


def test_it_lets_those_who_may_look_only_look_and_those_who_may_change_revoke(cast: Cast) -> None:
    client = logged_in(make_staff("accounts.view_apikey", "accounts.view_account", name="viewer"))
    key, account = f"{KEYS}{cast.owner.key.pk}/", f"{ACCOUNTS}{cast.owner.key.account_id}/"
    assert [client.get(f"{key}{page}/").status_code for page in ("change", "test")] == [200, 200]
    for url in (key, account):
        page = page_of(client, f"{url}change/")
        assert [text for text in ("Details</a>", "Settings</a>", "Change limits") if text in page] == ["Details</a>"]
    for url in (f"{key}revoke/", f"{key}rotate/", f"{account}disable/", f"{account}add-key/", f"{KEYS}add/"):
        assert client.post(url, {**CONFIRMED, "grace": "0"}).status_code == 403, url
    client.post(KEYS, {"action": "revoke_selected", ACTION_CHECKBOX_NAME: [cast.owner.key.pk], **CONFIRMED})
    assert cast.owner.works()
    assert logged_in(make_staff("accounts.view_account", name="other")).get(f"{key}test/").status_code == 403
    client = logged_in(make_staff("accounts.view_apikey", "accounts.change_apikey", name="changer"))
    client.post(f"{key}revoke/", CONFIRMED)
    assert not cast.owner.works()
    assert latest().actor == "admin:changer"


def test_it_refuses_a_forged_form(admin_site: Client, cast: Cast) -> None:
    forger = Client(enforce_csrf_checks=True)
    forger.cookies = admin_site.cookies
    assert forger.post(f"{KEYS}{cast.owner.key.pk}/revoke/", CONFIRMED).status_code == 403
    assert cast.owner.works()


@pytest.mark.parametrize("object_id", ["4711", "nonsense"])
def test_it_has_no_page_for_what_is_not_there(admin_site: Client, object_id: str) -> None:
    actions = (
        "apikey/{}/rotate/",
        "apikey/{}/revoke/",
        "apikey/{}/test/",
        "account/{}/disable/",
        "account/{}/add-key/",
    )
    for path in (*actions, "openreservation/"):
        assert admin_site.get(f"/admin/accounts/{path.format(object_id)}").status_code == 404, path
    for page in (KEYS, ACCOUNTS, TIERS):
        assert admin_site.get(f"{page}{object_id}/change/").headers["Location"] == "/admin/"
