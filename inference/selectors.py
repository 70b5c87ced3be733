"""Reads of models and deployments from the database, without the catalog's delay of up to a second."""

from __future__ import annotations

from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from inference.models import Deployment, Price


def deployments_without_price() -> QuerySet[Deployment]:
    """Return the enabled deployments without a price in force, ordered by model."""
    usable = Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    begun = Price.objects.filter(deployment=OuterRef("pk"), valid_from__lte=timezone.now())
    return usable.filter(~Exists(begun)).select_related("model", "provider").order_by("model__public_name", "pk")


def models_without_price() -> dict[str, str]:
    """Return the models with deployments that lack a price, each with the names of these deployments."""
    found: dict[str, list[str]] = {}
    for deployment in deployments_without_price():
        found.setdefault(deployment.model.public_name, []).append(str(deployment))
    return {model: ", ".join(names) for model, names in found.items()}
