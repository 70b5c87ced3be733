"""The page that asks once before something dangerous: what will stop working, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.forms import Form
from django.http import HttpRequest
from django.template.response import TemplateResponse

from accounts.admin.typed import ModelAdmin

#: Affected objects that are named; of further ones their number is told.
NAMED = 20
CONFIRMED = "confirmed"


@dataclass(frozen=True)
class Confirmation:
    """What is asked. `hidden` are the fields that the page sends back beside `confirmed`."""

    title: str
    consequences: Sequence[str]
    submit: str
    affected: Sequence[Any] = ()
    form: Form | None = None
    is_dangerous: bool = True
    cancel_url: str = ""
    hidden: Mapping[str, Sequence[str]] = field(default_factory=dict)


def is_confirmed(request: HttpRequest) -> bool:
    """Say whether the request comes from the page's button."""
    return request.method == "POST" and CONFIRMED in request.POST


def ask(model_admin: ModelAdmin, request: HttpRequest, question: Confirmation) -> TemplateResponse:
    """Show the page."""
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.model._meta,
        "title": question.title,
        "question": question,
        "named": question.affected[:NAMED],
        "unnamed": max(0, len(question.affected) - NAMED),
        "confirmed": CONFIRMED,
    }
    return TemplateResponse(request, "admin/confirmation.html", context)


def selection(request: HttpRequest, action: str) -> dict[str, list[str]]:
    """Return the hidden fields that send a list's selection back to the action."""
    return {
        "action": [action],
        "select_across": [request.POST.get("select_across", "0")],
        ACTION_CHECKBOX_NAME: request.POST.getlist(ACTION_CHECKBOX_NAME),
    }
