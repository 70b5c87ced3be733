"""Reads of models and deployments from the database, without the catalog's delay of up to a second."""

from __future__ import annotations

import os

from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from inference.models import Deployment, Price, Provider


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


def secret_variables(provider: Provider) -> list[str]:
    """Return the names of the environment variables that hold a provider's secrets."""
    headers = [value.removeprefix("$") for value in provider.extra_headers.values() if value.startswith("$")]
    return [name for name in (provider.api_key_variable, *headers) if name]


def missing_variables(provider: Provider) -> list[str]:
    """Return the names of a provider's secret variables that are not set on this server."""
    return [name for name in secret_variables(provider) if not os.environ.get(name)]
