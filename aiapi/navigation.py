"""The admin's sidebar, tabs, brand and command palette, for django-unfold (settings.UNFOLD).

An entry is shown to users who have its permission. The command palette finds lists and actions by their names, accounts
and keys by how their names begin, models, providers and tiers by any part of theirs, and requests by id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from unfold.dataclasses import SearchResult

from accounts.admin.base import change_url
from accounts.keys import SHOWN_PREFIX
from accounts.models import Account, ApiKey, Tier
from core.formats import utc_text
from inference.models import Model, Provider
from monitoring.models import VIEW_RECORDS, VIEW_ROLLUPS, Alert, RequestRecord
from monitoring.selectors import ids_with_prefix

#: Groups of entries: title, icon, URL name below `admin:`, permission ("": everybody), or one of several.
SIDEBAR = {
    "Overview": [
        ("Dashboard", "dashboard", "index", VIEW_RECORDS),
        ("Requests", "receipt_long", "monitoring_requestrecord_changelist", VIEW_RECORDS),
        ("Alerts", "notifications", "monitoring_alert_changelist", "monitoring.view_alert"),
    ],
    "Customers": [
        ("Accounts", "apartment", "accounts_account_changelist", "accounts.view_account"),
        ("API keys", "key", "accounts_apikey_changelist", "accounts.view_apikey"),
        ("Tiers", "layers", "accounts_tier_changelist", "accounts.view_tier"),
    ],
    "Models": [
        ("Models", "neurology", "inference_model_changelist", "inference.view_model"),
        ("Providers", "cloud", "inference_provider_changelist", "inference.view_provider"),
    ],
    "Finance": [
        ("Usage report", "bar_chart", "usage_report", f"{VIEW_ROLLUPS} {VIEW_RECORDS}"),
    ],
    "Security": [
        ("Audit log", "history", "accounts_auditentry_changelist", "accounts.view_auditentry"),
        ("Staff", "badge", "auth_user_changelist", "auth.view_user"),
        ("Roles", "admin_panel_settings", "auth_group_changelist", "auth.view_group"),
    ],
}
#: What an entry's list shows at first: the log of the last 24 hours.
QUERIES = {"monitoring_requestrecord_changelist": "?from=-24h"}
#: Models whose lists are tabs of one page: titles and names below `inference`.
MODEL_TABS = {"Models": "model", "Deployments": "deployment", "Prices": "price"}
#: What the command palette finds beside lists and objects: title, icon, URL name, permission.
ACTIONS = [
    ("Dashboard", "dashboard", "index", VIEW_RECORDS),
    ("Add account", "add", "accounts_account_add", "accounts.add_account"),
    ("Add key", "add", "accounts_apikey_add", "accounts.add_apikey"),
    ("Add tier", "add", "accounts_tier_add", "accounts.add_tier"),
    ("Add provider", "add", "inference_provider_add", "inference.add_provider"),
    ("Add model", "add", "inference_model_add", "inference.add_model"),
    ("Usage report", "bar_chart", "usage_report", f"{VIEW_ROLLUPS} {VIEW_RECORDS}"),
    ("Export usage", "download", "monitoring_requestrecord_export_usage", "monitoring.export_requestrecord"),
]
#: Other objects that it finds by a part of their name: kind, icon, model, field, permission.
NAMED: tuple[tuple[str, str, Any, str, str], ...] = (
    ("Model", "neurology", Model, "public_name", "inference.view_model"),
    ("Provider", "cloud", Provider, "name", "inference.view_provider"),
    ("Tier", "layers", Tier, "name", "accounts.view_tier"),
)
#: The most results of one kind in the command palette.
MOST = 8


def _is_allowed(request: HttpRequest, permission: str) -> bool:
    return not permission or any(map(request.user.has_perm, permission.split()))


def home(request: HttpRequest) -> HttpResponseBase:
    """Show the admin's first page: the dashboard, or the usage report to those who may see only that."""
    user = request.user
    if user.is_active and user.is_staff and user.has_perm(VIEW_ROLLUPS) and not user.has_perm(VIEW_RECORDS):
        return redirect("admin:usage_report")
    return admin.site.index(request)


def sidebar(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the groups that have an entry for the user; Alerts has the number of open ones."""
    groups = []
    links = {name: reverse(f"admin:{name}") for entries in SIDEBAR.values() for _, _, name, _ in entries}
    closest = max((len(link) for link in links.values() if request.path.startswith(link)), default=0)
    for title, entries in SIDEBAR.items():
        items = [
            {"title": text, "icon": icon, "link": f"{links[name]}{QUERIES.get(name, '')}", **_badge(name)}
            # The usage report is below the path of the log, which unfold would mark too.
            | ({"active": False} if request.path.startswith(links[name]) and len(links[name]) < closest else {})
            for text, icon, name, permission in entries
            if _is_allowed(request, permission)
        ]
        groups += [{"title": title, "items": items}] if items else []
    return groups


def _badge(name: str) -> dict[str, Any]:
    """Return the number of open alerts for their entry; nothing if there is none, and for other entries."""
    number = Alert.objects.filter(ended_at=None).count() if name.startswith("monitoring_alert") else 0
    return {"badge": str(number), "badge_variant": "danger"} if number else {}


def tabs(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the tabs above the lists of models, deployments and prices."""
    items = [
        {"title": title, "link": reverse(f"admin:inference_{name}_changelist")}
        for title, name in MODEL_TABS.items()
        if _is_allowed(request, f"inference.view_{name}")
    ]
    return [{"models": [f"inference.{name}" for name in MODEL_TABS.values()], "items": items}]


def environment(request: HttpRequest) -> list[str]:
    """Return the environment's name and the colour of its badge."""
    return [settings.ENVIRONMENT.capitalize(), "danger" if settings.IS_PRODUCTION else "info"]


def search(request: HttpRequest, term: str) -> list[SearchResult]:
    """Return what the command palette finds beside the lists, which unfold finds by their names."""
    return [*actions(request, term), *_objects(request, term)]


def actions(request: HttpRequest, term: str = "") -> Iterator[SearchResult]:
    """Yield the actions that a user may take and whose title contains a text in lower case."""
    for title, icon, name, permission in ACTIONS:
        if term in title.lower() and _is_allowed(request, permission):
            yield SearchResult(title, "Action", reverse(f"admin:{name}"), icon)


def _account_actions(request: HttpRequest, account: Account) -> Iterator[SearchResult]:
    of_account = {"account": account.name}
    for text, icon, name, permission, query in (
        ("Requests of", "receipt_long", "monitoring_requestrecord_changelist", VIEW_RECORDS, of_account),
        ("Usage of", "bar_chart", "usage_report", f"{VIEW_ROLLUPS} {VIEW_RECORDS}", of_account),
        ("Add key for", "add", "accounts_apikey_add", "accounts.add_apikey", {"account": account.pk}),
    ):
        if _is_allowed(request, permission):
            url = f"{reverse(f'admin:{name}')}?{urlencode(query)}"
            yield SearchResult(f"{text} {account.title}", "Action", url, icon)


def _objects(request: HttpRequest, term: str) -> Iterator[SearchResult]:
    typed = request.GET.get("s", term).strip()  # unfold's `term` has no capitals
    if request.user.has_perm("accounts.view_account"):
        named = Q(name__istartswith=typed) | Q(display_name__istartswith=typed)
        accounts = list(Account.objects.filter(named).order_by("name")[:MOST])
        for account in accounts:
            yield SearchResult(str(account), "Account", change_url(account), "apartment")
        if len(accounts) == 1:
            yield from _account_actions(request, accounts[0])
    if request.user.has_perm("accounts.view_apikey"):
        keys = ApiKey.objects.filter(Q(prefix__startswith=typed[:SHOWN_PREFIX]) | Q(name__istartswith=typed))
        for key in keys.select_related("account").order_by("name", "pk")[:MOST]:
            yield SearchResult(
                f"{key.account} / {key.name} ({key.masked})", f"Key, {key.state}", change_url(key), "key"
            )
    for kind, icon, model, field, permission in NAMED:
        if request.user.has_perm(permission):
            for found in model.objects.filter(**{f"{field}__icontains": typed}).order_by(field)[:MOST]:
                yield SearchResult(str(found), kind, change_url(found), icon)
    if request.user.has_perm(VIEW_RECORDS):
        for record in RequestRecord.objects.filter(Q(label=term) | Q(pk__in=ids_with_prefix(term)))[:MOST]:
            title = f"{record.status} {record.endpoint}, {record.account_name}, {utc_text(record.admitted_at)}"
            yield SearchResult(title, "Request", change_url(record), "receipt_long")
