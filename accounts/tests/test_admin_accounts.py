"""Accounts and tiers in the admin: changed, disabled after asking, not deleted while they have keys."""

from __future__ import annotations

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from accounts.key_cache import key_cache
from accounts.models import Account, AuditEntry, Tier
from accounts.tests.factories import Cast, latest, make_key

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
    with django_assert_max_num_queries(13):
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
