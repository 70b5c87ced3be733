"""The audit log in the admin: read-only, filtered by who, what and when, page by page without counting."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import audit
from accounts.admin.entries import AuditEntryAdmin
from accounts.models import AuditEntry, Tier
from accounts.tests.factories import logged_in, make_account, make_key, make_staff

pytestmark = pytest.mark.django_db

LOG = "/admin/accounts/auditentry/"


def test_it_changes_nothing(admin_site: Client) -> None:
    make_key()
    entry = AuditEntry.objects.latest("pk")
    count = AuditEntry.objects.count()
    assert admin_site.post(f"{LOG}add/", {}).status_code == 403
    assert admin_site.post(f"{LOG}{entry.pk}/change/", {"actor": "nobody"}).status_code == 403
    assert admin_site.post(f"{LOG}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
    admin_site.post(LOG, {"action": "delete_selected", "_selected_action": [entry.pk], "post": "yes"})
    assert AuditEntry.objects.count() == count
    assert AuditEntry.objects.get(pk=entry.pk).actor == entry.actor


def test_it_shows_before_and_after(admin_site: Client) -> None:
    account = make_account("acme", contact="old@acme.test", monthly_cost_budget=Decimal(25))
    account.contact, account.monthly_cost_budget, account.is_active = "<new>@acme.test", None, False
    audit.audited_save(account, actor="key:acme/ci")
    page = admin_site.get(f"{LOG}{AuditEntry.objects.latest('pk').pk}/change/").content.decode()
    assert "old@acme.test" in page
    assert "&lt;new&gt;@acme.test" in page
    assert all(text in page for text in (">$25.00<", ">yes<", ">no<", '?who=key%3Aacme%2Fci">key acme/ci</a>'))


def test_the_list_shows_what_was_created_with_its_values(admin_site: Client) -> None:
    audit.audited_save(Tier(name="gold", requests_per_minute=75), actor="admin:root")
    page = admin_site.get(f"{LOG}?kind=tier").content.decode()
    assert "requests per minute: 75" in page
    assert not [text for text in ("name: gold", "created at: ") if text in page]


def test_it_filters(admin_site: Client) -> None:
    account = make_account("acme")
    AuditEntry.objects.all().delete()
    audit.audit_record(actor="admin:root", action="disabled", target=account)
    gold = {"actor": "admin:ada", "action": "created", "target_type": "tier", "target_id": "1", "target": "gold"}
    AuditEntry.objects.create(at=timezone.now() - timedelta(hours=2), **gold)
    for query, found in (
        ("what=disabled", ["acme"]),
        ("kind=tier", ["gold"]),
        ("who=ada", ["gold"]),
        ("who=nobody", []),
        ("who=admin:roo", []),
        ("q=gold", ["gold"]),
        ("from=-1h", ["acme"]),
        ("until=-1h", ["gold"]),
        ("from=2001-01-01&until=2001-01-02", []),
    ):
        response = admin_site.get(f"{LOG}?{query}")
        assert response.status_code == 200, response.headers
        assert [entry.target for entry in response.context["cl"].result_list] == found, query


def test_it_links_an_entry_to_its_object_only_where_that_has_a_page_for_the_reader(admin_site: Client) -> None:
    kept, gone = make_account("kept"), make_account("gone")
    audit.audited_delete(gone, actor="admin:root")
    for client, links in (
        (admin_site, {f"/admin/accounts/account/{kept.pk}/change/"}),
        (logged_in(make_staff("accounts.view_auditentry")), set()),
    ):
        page = client.get(f"{LOG}?kind=account").content.decode()
        assert set(re.findall(r"/admin/accounts/account/[^/\"]+/change/", page)) == links
        assert "deleted account gone <" in page


@pytest.mark.parametrize("query", ["from=yesterday", "older=nonsense"])
def test_it_answers_an_unreadable_time_or_place_with_the_whole_list(admin_site: Client, query: str) -> None:
    response = admin_site.get(f"{LOG}?{query}")
    assert (response.status_code, response.headers["Location"]) == (302, f"{LOG}?e=1")


def test_it_goes_to_older_entries_and_back_and_never_counts(
    admin_site: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditEntryAdmin, "list_per_page", 50)
    account = make_account("any")
    AuditEntry.objects.all().delete()
    for number in range(120):
        entry = audit.audit_record(actor="admin:root", action="changed", target=account)
        AuditEntry.objects.filter(pk=entry.pk).update(target=f"n{number}")

    def page(url: str, *ends: str) -> Any:
        shown = admin_site.get(LOG + url).context["cl"]
        assert (shown.result_list[0].target, shown.result_list[-1].target) == ends
        return shown

    with CaptureQueriesContext(connection) as queries:
        first = page("?what=changed", "n119", "n70")
    sent = " ".join(query["sql"] for query in queries if "accounts_auditentry" in query["sql"]).upper()
    assert not [word for word in ("COUNT(", "OFFSET") if word in sent]
    assert "what=changed" in first.older_url, "filters are kept"
    third = page(page(first.older_url, "n69", "n20").older_url, "n19", "n0")
    assert not third.older_url
    back = page(third.newer_url, "n69", "n20")
    assert not page(back.newer_url, "n119", "n70").newer_url


def test_it_folds_many_changes_of_one_actor_in_a_minute(admin_site: Client) -> None:
    account = make_account("any")
    AuditEntry.objects.all().delete()
    at = timezone.now().replace(second=30)
    for seconds, actor in enumerate(["admin:ada"] * 2 + ["command:demo"] * 5):
        entry = audit.audit_record(actor=actor, action="changed", target=account)
        AuditEntry.objects.filter(pk=entry.pk).update(at=at - timedelta(minutes=2, seconds=seconds))
    page = admin_site.get(LOG)
    assert [(len(group.entries), group.is_folded) for group in page.context["groups"]] == [(2, False), (5, True)]
    html = page.content.decode()
    assert "system (demo) made 5 changes in a minute: changed 5 accounts" in html
    assert len(re.findall(rf'href="{LOG}\d+/change/"', html)) == 7, "folded ones are there as well"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("", "Nothing was changed yet."),
        ("from=2026-11-30&until=2026-12-01", "Nobody changed anything on 30 November 2026."),
        ("from=-7d", "Nobody changed anything in the last 7 days."),
        ("from=2026-11-30T02:00Z", "Nobody changed anything in this time."),
        ("from=-7d&who=ada", "No change fits these filters."),
        ("q=gold", "No change fits these filters."),
    ],
)
def test_it_says_in_a_sentence_that_nothing_is_there(admin_site: Client, query: str, told: str) -> None:
    assert AuditEntry.objects.all().delete()
    assert told in admin_site.get(f"{LOG}?{query}").content.decode()


def test_it_leads_from_an_entry_to_the_next(admin_site: Client) -> None:
    account = make_account("any")
    AuditEntry.objects.all().delete()
    first, second, third = [audit.audit_record(actor="admin:root", action="changed", target=account) for _ in range(3)]
    page = admin_site.get(f"{LOG}{second.pk}/change/").content.decode()
    assert f'href="{LOG}{third.pk}/change/">← Newer' in page
    assert f'href="{LOG}{first.pk}/change/">Older' in page
    assert "Newer:" not in admin_site.get(f"{LOG}{third.pk}/change/").content.decode()
