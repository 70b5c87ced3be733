"""Budgets for single models, on the pages of accounts and keys."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

from accounts import services
from accounts.admin.base import AuditedAdmin, actor_of
from accounts.admin.typed import TabularInline
from accounts.models import ModelBudget


class ModelBudgetInline(TabularInline):
    """The budgets of an account or a key for single models."""

    model = ModelBudget
    fields = ("model", "monthly_token_budget", "monthly_cost_budget")
    extra = 0
    per_page = 20
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelBudget]:
        """Read them with their owners, whom their names tell."""
        return super().get_queryset(request).select_related("account", "key")


class ModelBudgetsAdmin(AuditedAdmin):
    """Pages that hold budgets for single models; they take effect within a second."""

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Save and delete budgets by their services; whatever else an inline holds is for looking only."""
        for budget in formset.save(commit=False):
            services.model_budget_save(budget=budget, actor=actor_of(request))
        for budget in formset.deleted_objects:
            services.model_budget_delete(budget=budget, actor=actor_of(request))
