"""Template tags of pages in every app: `{% load calls %}`."""

from __future__ import annotations

from typing import Any

from django import template

from aiapi.pages import first_call

register = template.Library()


@register.inclusion_tag("admin/curl.html", takes_context=True)
def curl(context: template.Context, key: str = "") -> dict[str, Any]:
    """Show a request to try as curl, with `key` or a variable for it."""
    return {"code": first_call(context["request"], key=key)[1]}
