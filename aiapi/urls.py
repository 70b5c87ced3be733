"""URL patterns. API paths work with and without a trailing slash, without a redirect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.urls import URLPattern, path, re_path

from accounts.api.keys import KeyDetailView, KeyRevokeView, KeyRotateView, KeysView
from aiapi.navigation import home
from aiapi.pages import DocsView, GuideView, OpenAPIView, PageView, RedocView, RootView
from inference.api.anthropic import CountTokensView, MessagesView
from inference.api.native import ChatView, SummarizeView
from inference.api.openai import (
    ChatCompletionsView,
    CompletionsView,
    EmbeddingsView,
    ModelsView,
    ModelView,
    ResponsesView,
    UnsupportedView,
)
from monitoring.views import RequestsView, RequestView, StatsView, UsageView
from operations.dashboard.setup import mark_setup, sample_data
from operations.dashboard.views import dashboard_sections
from operations.views import HealthView, LiveView, MetricsView, ReadyView

handler400 = "aiapi.errors.bad_request"
handler403 = "aiapi.errors.permission_denied"
handler404 = "aiapi.errors.not_found"
handler500 = "aiapi.errors.server_error"

admin.autodiscover()


def api(route: str, view: Callable[..., Any], name: str) -> URLPattern:
    """Return the URL pattern of an API path, with or without a trailing slash."""
    return re_path(rf"^{route}/?$", view, name=name)


urlpatterns = [
    path("", RootView.as_view(), name="root"),
    api("chat", ChatView.as_view(), "chat"),
    api("summarize", SummarizeView.as_view(), "summarize"),
    api("v1/chat/completions", ChatCompletionsView.as_view(), "v1-chat-completions"),
    api("v1/completions", CompletionsView.as_view(), "v1-completions"),
    api("v1/embeddings", EmbeddingsView.as_view(), "v1-embeddings"),
    api("v1/responses", ResponsesView.as_view(), "v1-responses"),
    api("v1/messages", MessagesView.as_view(), "v1-messages"),
    api("v1/messages/count_tokens", CountTokensView.as_view(), "v1-messages-count-tokens"),
    api("v1/models", ModelsView.as_view(), "v1-models"),
    api(r"v1/models/(?P<name>[^?]+?)", ModelView.as_view(), "v1-model"),
    re_path(r"^v1(/|$)", UnsupportedView.as_view(), name="v1-unsupported"),
    api("usage", UsageView.as_view(), "usage"),
    api("keys", KeysView.as_view(), "keys"),
    api(r"keys/(?P<key_id>\d{1,18})", KeyDetailView.as_view(), "key"),
    api(r"keys/(?P<key_id>\d{1,18})/revoke", KeyRevokeView.as_view(), "key-revoke"),
    api(r"keys/(?P<key_id>\d{1,18})/rotate", KeyRotateView.as_view(), "key-rotate"),
    api("stats", StatsView.as_view(), "stats"),
    api("requests", RequestsView.as_view(), "requests"),
    api(r"requests/(?P<name>[A-Za-z0-9._-]{1,64})", RequestView.as_view(), "request"),
    api("health", HealthView.as_view(), "health"),
    api("health/live", LiveView.as_view(), "health-live"),
    api("health/ready", ReadyView.as_view(), "health-ready"),
    api("metrics", MetricsView.as_view(), "metrics"),
    api("docs", DocsView.as_view(), "docs"),
    re_path(r"^docs/(?P<name>[a-z]{1,20})/$", GuideView.as_view(), name="guide"),
    api("redoc", RedocView.as_view(), "redoc"),
    api(r"openapi\.json", OpenAPIView.as_view(), "openapi"),
    path("account/", PageView.as_view(current="account"), name="account"),
    path("models/", PageView.as_view(current="models"), name="models"),
    path("playground/", PageView.as_view(current="playground"), name="playground"),
    path("admin/dashboard/", admin.site.admin_view(dashboard_sections), name="dashboard_sections"),
    path("admin/dashboard/setup/", admin.site.admin_view(mark_setup), name="dashboard_setup"),
    path("admin/dashboard/sample-data/", admin.site.admin_view(sample_data), name="dashboard_sample_data"),
    path("admin/", admin.site.admin_view(home)),
    path("admin/", admin.site.urls),
]
