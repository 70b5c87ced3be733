"""The audit log in the admin: read-only, filtered by who, what and when, page by page without counting."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import audit
from accounts.models import AuditEntry
from accounts.tests.factories import make_account, make_key

pytestmark = pytest.mark.django_db

LOG = "/admin/accounts/auditentry/"


def targets(client: Client, query: str = "") -> list[str]:
    """List what the entries on a page are about."""
    response = client.get(f"{LOG}?{query}")
    assert response.status_code == 200, response.headers
    return [entry.target for entry in response.context["cl"].result_list]


def entries(count: int) -> None:
    """Make so many entries, the first about n0."""
    account = make_account("any")
    AuditEntry.objects.all().delete()
    for number in range(count):
        entry = audit.audit_record(actor="admin:root", action="changed", target=account)
        AuditEntry.objects.filter(pk=entry.pk).update(target=f"n{number}")


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
    account = make_account("acme", contact="old@acme.test")
    account.contact = "<new>@acme.test"
    audit.audited_save(account, actor="admin:root")
    page = admin_site.get(f"{LOG}{AuditEntry.objects.latest('pk').pk}/change/").content.decode()
    assert "old@acme.test" in page
    assert "&lt;new&gt;@acme.test" in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("what=disabled", ["acme"]),
        ("kind=tier", ["gold"]),
        ("who=ada", ["gold"]),
        ("who=nobody", []),
        ("q=gold", ["gold"]),
        ("from=-1h", ["acme"]),
        ("until=-1h", ["gold"]),
        ("from=2001-01-01&until=2001-01-02", []),
    ],
)
def test_it_filters(admin_site: Client, query: str, found: list[str]) -> None:
    account = make_account("acme")
    AuditEntry.objects.all().delete()
    audit.audit_record(actor="admin:root", action="disabled", target=account)
    long_ago = timezone.now() - timedelta(hours=2)
    AuditEntry.objects.create(
        at=long_ago, actor="admin:ada", action="created", target_type="tier", target_id="1", target="gold"
    )
    assert targets(admin_site, query) == found


def test_it_answers_an_unreadable_moment_with_the_whole_list(admin_site: Client) -> None:
    response = admin_site.get(f"{LOG}?from=yesterday")
    assert (response.status_code, response.headers["Location"]) == (302, f"{LOG}?e=1")


def test_it_goes_to_older_entries_and_back(admin_site: Client) -> None:
    entries(120)
    first = admin_site.get(LOG).context["cl"]
    assert [first.result_list[0].target, first.result_list[-1].target] == ["n119", "n70"]
    second = admin_site.get(LOG + first.older_url).context["cl"]
    assert [second.result_list[0].target, second.result_list[-1].target] == ["n69", "n20"]
    third = admin_site.get(LOG + second.older_url).context["cl"]
    assert [third.result_list[0].target, third.result_list[-1].target] == ["n19", "n0"]
    assert not third.older_url
    back = admin_site.get(LOG + third.newer_url).context["cl"]
    assert [entry.target for entry in back.result_list] == [entry.target for entry in second.result_list]
    newest = admin_site.get(LOG + back.newer_url).context["cl"]
    assert newest.result_list[0].target == "n119"
    assert not newest.newer_url


def test_it_keeps_filters_from_page_to_page(admin_site: Client) -> None:
    entries(60)
    first = admin_site.get(f"{LOG}?what=changed").context["cl"]
    assert "what=changed" in first.older_url


def test_it_refuses_a_place_that_is_none(admin_site: Client) -> None:
    assert admin_site.get(f"{LOG}?older=nonsense").headers["Location"] == f"{LOG}?e=1"


def test_it_never_counts(admin_site: Client) -> None:
    entries(120)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        admin_site.get(LOG)
    sent = " ".join(query["sql"] for query in queries)
    assert "COUNT(" not in sent.upper()
    assert "OFFSET" not in sent.upper()
