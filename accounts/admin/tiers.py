"""Tiers in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from accounts import services
from accounts.admin.accounts import KeyedAdmin
from accounts.admin.typed import display
from accounts.forms import TierForm
from accounts.models import Tier

LIMIT_FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


@admin.register(Tier)
class TierAdmin(KeyedAdmin):
    """Tiers: a change reaches every key of the tier within a second."""

    form = TierForm
    list_display = ("name", *LIMIT_FIELDS, "max_output_tokens", "allowed_models", "cache_enabled", "keys")
    search_fields = ("name",)
    empty_value_display = "unlimited"
    instead = "Give its keys another tier first."
    fieldsets = (
        (None, {"fields": ("name",)}),
        ("Limits of each key", {"fields": (*LIMIT_FIELDS, "max_output_tokens")}),
        ("What its keys may use", {"fields": ("models", "cache_enabled", "cache_any_temperature")}),
    )

    def write(self, instance: Any, *, actor: str) -> None:
        """Save a tier."""
        services.tier_save(tier=instance, actor=actor)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Count each tier's keys in the same query."""
        counted: QuerySet[Any] = super().get_queryset(request).annotate(key_count=Count("api_keys"))
        return counted

    @display(description="models")
    def allowed_models(self, tier: Tier) -> str:
        """Show which models its keys may use."""
        return ", ".join(tier.models) or "every model"

    @display(description="keys", ordering="key_count")
    def keys(self, tier: Any) -> int:
        """Show how many keys it has, revoked ones included."""
        count: int = tier.key_count
        return count
