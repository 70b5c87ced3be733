"""Writes of providers, models, deployments and prices.

Each write adds an audit entry in the same transaction. It takes effect at the commit in this process, and within a
second in others, when their catalogs expire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Max

from accounts.audit import audit_record, audited_delete, audited_save
from inference.catalog import catalog
from inference.models import Deployment, Model, Price, Provider, new_generation

CatalogRow = Provider | Model | Deployment | Price


def catalog_save(*, row: CatalogRow, actor: str) -> None:
    """Save a new or changed provider, model, deployment or price.

    Raises django.core.exceptions.ValidationError, with messages for users, if the row is invalid. If a model's cached
    answers were cleared meanwhile, they stay cleared.
    """
    with transaction.atomic():
        if isinstance(row, Model) and row.pk is not None:
            row.cache_generation = Model.objects.select_for_update().get(pk=row.pk).cache_generation
        row.full_clean()
        audited_save(row, actor=actor)
        transaction.on_commit(catalog.forget)


@dataclass(frozen=True, slots=True)
class ModelAtProvider:
    """A model that a new provider serves: its deployment's names, and the fields of its prices, if known."""

    public_name: str
    kind: str
    context_size: int
    upstream_name: str
    output_parameter: str
    prices: Sequence[Mapping[str, Any]]


def provider_add(
    *, provider: Provider, models: Sequence[ModelAtProvider], actor: str, switches_on: bool = True
) -> None:
    """Save a new provider, deployments of models there, their prices, and the models that don't exist yet, or nothing.

    At a model that has deployments, the new one is asked after them. `switches_on`: a model that is switched off is
    switched on; otherwise it stays off.
    Raises ValidationError like catalog_save.
    """
    with transaction.atomic():
        catalog_save(row=provider, actor=actor)
        for each in models:
            model = Model.objects.filter(public_name=each.public_name).first()
            if model is None:
                model = Model(public_name=each.public_name, kind=each.kind, context_size=each.context_size)
            if switches_on:
                model.is_enabled = True
            catalog_save(row=model, actor=actor)
            last = model.deployments.aggregate(Max("order"))["order__max"]
            deployment = Deployment(
                model=model,
                provider=provider,
                upstream_name=each.upstream_name,
                output_parameter=each.output_parameter,
                order=0 if last is None else last + 1,
            )
            catalog_save(row=deployment, actor=actor)
            for price in each.prices:
                catalog_save(row=Price(deployment=deployment, **price), actor=actor)


def catalog_delete(*, row: CatalogRow, actor: str) -> None:
    """Delete a row with everything that belongs to it; usage records keep the names and costs.

    Raises django.db.models.ProtectedError for a provider with deployments.
    """
    with transaction.atomic():
        audited_delete(row, actor=actor)
        transaction.on_commit(catalog.forget)


def model_clear_cache(*, model: Model, actor: str) -> None:
    """Clear the cached answers of a model for all accounts (see accounts.services.account_clear_cache)."""
    with transaction.atomic():
        model.cache_generation = new_generation()
        model.save(update_fields=["cache_generation"])
        audit_record(actor=actor, action="cleared", target=model, after={"cached_answers": "of all accounts"})
        transaction.on_commit(catalog.forget)
