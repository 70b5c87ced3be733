"""The page behind the button "Test this key": would it be admitted now, under which limits, and why not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.http import HttpRequest
from django.template.response import TemplateResponse

from accounts.addresses import parse_address
from accounts.admin.base import change_url, moment
from accounts.admin.typed import ModelAdmin
from accounts.explain import ExplainedLimit, explain_key
from accounts.models import ApiKey

HEADINGS = ("Limit", "Value", "Used", "Left", "Whole again", "Where it comes from")
TITLES = {"monthly_cost": "monthly cost (US dollars)"}
TEMPLATE = "admin/accounts/apikey/check.html"


def check_page(model_admin: ModelAdmin, request: HttpRequest, key: ApiKey) -> TemplateResponse:
    """Show what would become of a request with the key, from the address that the page's form may name."""
    address = request.GET.get("address", "").strip()
    is_address = not address or parse_address(address) is not None
    explained = explain_key(key, address=address if address and is_address else None)
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.model._meta,
        "title": f"Test of key {key.name}",
        "explained": explained,
        "headings": HEADINGS,
        "rows": [_row(limit) for limit in explained.limits],
        "address": address,
        "problem": "" if is_address else "That is not an IP address.",
        "key_url": change_url(key),
    }
    return TemplateResponse(request, TEMPLATE, context)


def _row(limit: ExplainedLimit) -> dict[str, Any]:
    resets = None if limit.reset is None else datetime.fromtimestamp(limit.reset, tz=UTC)
    return {
        "name": f"{TITLES.get(limit.name, limit.name.replace('_', ' '))}, {limit.whose}",
        "limit": "unlimited" if limit.limit is None else limit.limit,
        "used": "—" if limit.used is None else limit.used,
        "remaining": "—" if limit.remaining is None else limit.remaining,
        "reset": moment(resets, absent="—"),
        "source": limit.source,
    }
