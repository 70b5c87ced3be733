"""Writes of providers, models, deployments and prices. Each leaves its audit entry in the same transaction and takes
effect within 1 s: here at once after the commit, in other processes as their catalog ages.
"""

from __future__ import annotations

from django.db import transaction

from accounts.audit import audited_delete, audited_save
from inference.catalog import catalog
from inference.models import Deployment, Model, Price, Provider

CatalogRow = Provider | Model | Deployment | Price


def catalog_save(*, row: CatalogRow, actor: str) -> None:
    """Save a provider, model, deployment or price, new or changed.

    Raises django.core.exceptions.ValidationError, with messages that are fit to show, if it isn't valid.
    """
    with transaction.atomic():
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
