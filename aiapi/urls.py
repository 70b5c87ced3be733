"""Where everything is. API paths work with and without a trailing slash, without a redirect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.urls import URLPattern, path, re_path

from inference.views import ChatView, SummarizeView

handler400 = "aiapi.errors.bad_request"
handler403 = "aiapi.errors.permission_denied"
handler404 = "aiapi.errors.not_found"
handler500 = "aiapi.errors.server_error"


def api(route: str, view: Callable[..., Any], name: str) -> URLPattern:
    """Make the pattern of an API path, with or without a trailing slash."""
    return re_path(rf"^{route}/?$", view, name=name)


urlpatterns = [
    api("chat", ChatView.as_view(), "chat"),
    api("summarize", SummarizeView.as_view(), "summarize"),
    path("admin/", admin.site.urls),
]
