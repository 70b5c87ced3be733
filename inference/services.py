"""Writes of providers, models, deployments and prices. Each leaves its audit entry in the same transaction and takes
effect within 1 s: here at once after the commit, in other processes as their catalog ages.

What can't be saved raises django.core.exceptions.ValidationError with messages that are fit to show.
"""

from __future__ import annotations

from decimal import Decimal

from django.db import transaction

from accounts.audit import audited_save
from inference.catalog import catalog
from inference.models import Deployment, Model, Price, Provider


def provider_configure(*, name: str, base_url: str, api_key_variable: str, actor: str) -> Provider:
    """Keep the provider of that name as the environment has it, and return it; its other fields stay."""
    with transaction.atomic():
        provider = Provider.objects.filter(name=name).first() or Provider(name=name)
        provider.base_url, provider.api_key_variable, provider.from_environment = base_url, api_key_variable, True
        _save(provider, actor=actor)
        return provider


def model_ensure(*, public_name: str, actor: str, kind: str = Model.Kind.CHAT, context_size: int = 8192) -> Model:
    """Return the model of that public name, made if there is none; one that exists stays as it is."""
    with transaction.atomic():
        model = Model.objects.filter(public_name=public_name).first()
        if model is None:
            model = Model(public_name=public_name, kind=kind, context_size=context_size)
            _save(model, actor=actor)
        return model


def deployment_ensure(*, model: Model, provider: Provider, upstream_name: str, actor: str) -> Deployment:
    """Return the deployment of a model at a provider, made if there is none; one that exists stays as it is."""
    with transaction.atomic():
        deployment = Deployment.objects.filter(model=model, provider=provider, upstream_name=upstream_name).first()
        if deployment is None:
            deployment = Deployment(model=model, provider=provider, upstream_name=upstream_name)
            _save(deployment, actor=actor)
        return deployment


def price_ensure(
    *,
    deployment: Deployment,
    input_per_million: Decimal,
    output_per_million: Decimal,
    actor: str,
    cached_input_per_million: Decimal | None = None,
) -> Price:
    """Return the latest price of a deployment, made if it has none; US dollars per million tokens.

    Without a price of its own, cached input costs what input does.
    """
    with transaction.atomic():
        price = deployment.prices.order_by("-valid_from").first()
        if price is None:
            cached = input_per_million if cached_input_per_million is None else cached_input_per_million
            price = Price(
                deployment=deployment,
                input_per_million=input_per_million,
                cached_input_per_million=cached,
                output_per_million=output_per_million,
            )
            _save(price, actor=actor)
        return price


def _save(instance: Provider | Model | Deployment | Price, *, actor: str) -> None:
    instance.full_clean()
    audited_save(instance, actor=actor)
    transaction.on_commit(catalog.forget)
