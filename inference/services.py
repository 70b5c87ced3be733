"""Writes of providers, models, deployments and prices. Each leaves its audit entry in the same transaction and takes
effect within 1 s: here at once after the commit, in other processes as their catalog ages.
"""

from __future__ import annotations

from django.db import transaction

from accounts.audit import audit_record, audited_delete, audited_save
from inference.catalog import catalog
from inference.models import Deployment, Model, Price, Provider, new_generation

CatalogRow = Provider | Model | Deployment | Price


def catalog_save(*, row: CatalogRow, actor: str) -> None:
    """Save a provider, model, deployment or price, new or changed.

    Raises django.core.exceptions.ValidationError, with messages that are fit to show, if it isn't valid. Cached answers
    of a model that were cleared meanwhile stay so.
    """
    with transaction.atomic():
        if isinstance(row, Model) and row.pk is not None:
            row.cache_generation = Model.objects.select_for_update().get(pk=row.pk).cache_generation
        row.full_clean()
        audited_save(row, actor=actor)
        transaction.on_commit(catalog.forget)


def catalog_delete(*, row: CatalogRow, actor: str) -> None:
    """Delete one of them with all that belongs to it; records of calls keep the names and costs.

    Raises django.db.models.ProtectedError for a provider that still has deployments.
    """
    with transaction.atomic():
        audited_delete(row, actor=actor)
        transaction.on_commit(catalog.forget)


def model_clear_cache(*, model: Model, actor: str) -> None:
    """Let no cached answer of a model be found any more, whoever's (see accounts.services.account_clear_cache)."""
    with transaction.atomic():
        model.cache_generation = new_generation()
        model.save(update_fields=["cache_generation"])
        audit_record(actor=actor, action="cleared", target=model, after={"cached_answers": "of all accounts"})
        transaction.on_commit(catalog.forget)
