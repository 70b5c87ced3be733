"""Accounts and tiers in the admin: changed, disabled after asking, not deleted while they have keys."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from accounts.audit import audit_record
from accounts.key_cache import key_cache
from accounts.models import Account, AuditEntry, Tier
from accounts.tests.factories import Cast, latest, logged_in, make_account, make_key, make_staff

pytestmark = pytest.mark.django_db

KEYS, ACCOUNTS, TIERS = (f"/admin/accounts/{name}/" for name in ("apikey", "account", "tier"))
CONFIRMED = {"confirmed": "yes"}


def test_it_makes_and_deletes_an_account(admin_site: Client) -> None:
    admin_site.post(f"{ACCOUNTS}add/", {"name": "acme", "contact": "", "metadata": "{}", "max_keys": "3"})
    account = Account.objects.get()
    assert account.max_keys == 3
    assert (latest().actor, latest().action, latest().target) == ("admin:root", "created", "acme")
    admin_site.post(f"{ACCOUNTS}{account.pk}/delete/", {"post": "yes"})
    assert not Account.objects.exists()
    assert (latest().action, latest().target) == ("deleted", "acme")


@pytest.mark.parametrize(
    ("names", "slug"),
    [
        ({"display_name": "Acme Corp."}, "acme-corp"),
        ({"display_name": "Acme", "name": "other"}, "other"),
        ({"name": "only-a-slug"}, "only-a-slug"),
    ],
)
def test_it_makes_the_slug_from_the_name(admin_site: Client, names: dict[str, str], slug: str) -> None:
    admin_site.post(f"{ACCOUNTS}add/", {"contact": "", "metadata": "{}", **names})
    account = Account.objects.get()
    assert (account.name, account.display_name) == (slug, names.get("display_name", ""))
    assert str(account) == (f"{account.display_name} ({slug})" if account.display_name else slug)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "Enter a name, or a slug"),
        ({"display_name": "日本"}, "Enter a name, or a slug"),
        ({"display_name": "Globex"}, "already exists"),
        ({"name": "no slug"}, "valid “slug”"),
        ({"display_name": "a\u202eb"}, "Must be one line"),
    ],
)
def test_it_says_what_is_wrong_with_a_name(admin_site: Client, cast: Cast, names: dict[str, str], message: str) -> None:
    count = Account.objects.count()
    page = admin_site.post(f"{ACCOUNTS}add/", {"contact": "", "metadata": "{}", **names}).content.decode()
    assert message in page
    assert Account.objects.count() == count


def test_it_opens_a_new_account_but_closes_a_popup(admin_site: Client) -> None:
    management = {
        f"{prefix}-{name}_FORMS": "0" for prefix in ("model_budgets", "api_keys") for name in ("TOTAL", "INITIAL")
    }
    form = {"metadata": "{}", "_save": "Save", **management}
    opened = admin_site.post(f"{ACCOUNTS}add/", {"name": "fresh", **form})
    assert opened.headers["Location"] == f"{ACCOUNTS}{Account.objects.get(name='fresh').pk}/change/"
    closed = admin_site.post(f"{ACCOUNTS}add/?_popup=1", {"name": "popped", "_popup": "1", **form})
    assert closed.status_code == 200
    assert "data-popup-response" in closed.content.decode()


def test_it_shows_the_audit_entries_of_an_object_as_its_history(admin_site: Client, cast: Cast) -> None:
    account = make_account("initech", contact="old@initech.test")
    url = f"{ACCOUNTS}{account.pk}/"
    admin_site.post(f"{url}disable/", CONFIRMED)
    key = cast.owner.key
    admin_site.post(f"{KEYS}{key.pk}/revoke/", CONFIRMED)
    page = admin_site.get(f"{url}history/").content.decode()
    assert all(
        text in page for text in ("Created", "Disabled", "old@initech.test", "?who=admin%3Aroot", "Is active: yes →")
    )
    assert "Revoked" not in page
    of_owner = admin_site.get(f"{ACCOUNTS}{key.account_id}/history/").content.decode()
    revoked = f'Revoked API key <a class="text-primary-600 dark:text-primary-500" href="{KEYS}{key.pk}/change/">'
    assert revoked in of_owner
    history = admin_site.get(f"{KEYS}{key.pk}/history/").content.decode()
    assert "Revoked" in history
    assert ">root</a>" in history
    assert LogEntry.objects.count() == 0, "there is one history"
    viewer = logged_in(make_staff("accounts.view_account"))
    seen = viewer.get(f"{url}history/").content.decode()
    assert "Disabled" in seen
    assert not any(text in seen for text in ("?who=", "admin:root", "old@initech.test"))
    assert "Revoked" not in viewer.get(f"{ACCOUNTS}{key.account_id}/history/").content.decode()
    assert viewer.get(f"{KEYS}{key.pk}/history/").status_code == 403
    assert admin_site.get(f"{ACCOUNTS}4711/history/").status_code == 404


def test_it_pages_through_a_long_history_with_few_queries(
    admin_site: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    account = make_account("busy")
    for number in range(60):
        audit_record(actor="command:test", action="changed", target=account, after={"contact": f"n{number}"})
    with django_assert_max_num_queries(6):
        page = admin_site.get(f"{ACCOUNTS}{account.pk}/history/").content.decode()
    assert ("n59" in page, "n5<" in page, "Page 1 of 2" in page) == (True, False, True)
    assert "n5<" in admin_site.get(f"{ACCOUNTS}{account.pk}/history/?p=2").content.decode()


def test_it_offers_to_delete_only_what_can_be_deleted(admin_site: Client, cast: Cast) -> None:
    for url, is_offered in (
        (f"{ACCOUNTS}{cast.owner.key.account_id}/", False),
        (f"{ACCOUNTS}{make_account('empty').pk}/", True),
        (f"{TIERS}{cast.owner.key.tier_id}/", False),
    ):
        assert (f"{url}delete/" in admin_site.get(f"{url}change/").content.decode()) == is_offered, url


def test_it_changes_caps_through_the_log(admin_site: Client, cast: Cast) -> None:
    names = ("TOTAL_FORMS", "INITIAL_FORMS", "MIN_NUM_FORMS")
    inline = {f"{inline}-{name}": "0" for inline in ("api_keys", "model_budgets") for name in names}
    changes = {"name": "acme", "metadata": "{}", "requests_per_minute": "9", **inline}
    admin_site.post(f"{ACCOUNTS}{cast.owner.key.account_id}/change/", changes)
    assert (latest().before, latest().after) == ({"requests_per_minute": None}, {"requests_per_minute": 9})


def test_it_links_its_keys_and_leads_to_a_new_one(
    admin_site: Client, cast: Cast, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    url = f"{ACCOUNTS}{cast.owner.key.account_id}/"
    page = admin_site.get(f"{url}change/").content.decode()
    assert f"{KEYS}{cast.owner.key.pk}/change/" in page
    assert f"{KEYS}{cast.stranger.key.pk}/change/" not in page
    location = admin_site.get(f"{url}add-key/").headers["Location"]
    assert location == f"{KEYS}add/?account={cast.owner.key.account_id}"
    for _ in range(30):
        make_key(account=cast.owner.key.account)
    with django_assert_max_num_queries(14):
        admin_site.get(f"{url}change/")


def test_it_asks_before_it_disables_and_says_for_whom(admin_site: Client, cast: Cast) -> None:
    url = f"{ACCOUNTS}{cast.owner.key.account_id}/"
    page = admin_site.get(f"{url}disable/").content.decode()
    assert "2 keys of acme will get 401 within a second" in page
    assert cast.owner.key.masked in page
    assert cast.owner.works()
    admin_site.post(f"{url}disable/", CONFIRMED)
    assert (cast.owner.works(), cast.stranger.works()) == (False, True)
    assert "/enable/" in admin_site.get(f"{url}change/").content.decode()
    admin_site.post(f"{url}enable/", CONFIRMED)
    assert cast.owner.works()
    assert [entry.action for entry in AuditEntry.objects.order_by("-pk")[:2]] == ["enabled", "disabled"]


def test_it_deletes_no_account_and_no_tier_with_keys_and_says_why(admin_site: Client, cast: Cast) -> None:
    key = cast.stranger.key
    for url, why in (
        (
            f"{ACCOUNTS}{key.account_id}",
            "globex can&#x27;t be deleted: 1 API key belongs to it, revoked ones included. ",
        ),
        (f"{ACCOUNTS}{key.account_id}", "Disable it instead."),
        (f"{TIERS}{key.tier_id}", "Give its keys another tier first."),
    ):
        assert why in admin_site.post(f"{url}/delete/", {"post": "yes"}, follow=True).content.decode()
    assert Account.objects.filter(name="globex").exists()
    assert Tier.objects.exists()


def test_it_lists_accounts_and_tiers_with_few_queries(
    admin_site: Client, cast: Cast, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(20):
        make_key()
    with django_assert_max_num_queries(7):
        rows = admin_site.get(ACCOUNTS).context["cl"].result_list
    assert {row.name: row.usable_keys for row in rows}["acme"] == 2
    with django_assert_max_num_queries(6):
        assert "every model" in admin_site.get(TIERS).content.decode()


def test_it_changes_a_limit_of_a_tier_that_works_at_once_here(
    admin_site: Client, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    issued = make_key()
    key_cache.find(issued.plain)
    changes = {"name": "free", "requests_per_minute": "9", "max_output_tokens": "64", "models": "a, b"}
    with django_capture_on_commit_callbacks(execute=True):
        admin_site.post(f"{TIERS}{issued.key.tier_id}/change/", changes)
    identity = key_cache.find(issued.plain)
    assert identity is not None
    assert identity.limits.subjects[0].limits.requests_per_minute == 9
    assert identity.tier_models == {"a", "b"}
    assert (latest().action, latest().after["requests_per_minute"]) == ("changed", 9)
