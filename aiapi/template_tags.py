"""Template tags of pages in every app: `{% load calls %}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import template
from unfold.dataclasses import SearchResult

from aiapi import navigation
from aiapi.pages import first_call

register = template.Library()


@register.inclusion_tag("admin/curl.html", takes_context=True)
def curl(context: template.Context, key: str = "") -> dict[str, Any]:
    """Show a request to try as curl, with `key` or a variable for it."""
    return {"code": first_call(context["request"], key=key)[1]}


@register.simple_tag(takes_context=True)
def actions(context: template.Context) -> Iterator[SearchResult]:
    """Return what the command palette offers before anything is typed."""
    return navigation.actions(context["request"])
