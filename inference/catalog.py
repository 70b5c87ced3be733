"""The models that can be called, cached in each worker for at most a second, so that a change takes effect in time."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from accounts.limits.types import Limits, LimitSet
from core.database import database_outage, query_promptly
from core.outage import Outage
from core.ttl_cache import TtlCache
from inference.models import Deployment, Model, Price, Provider, prices_in_force
from inference.prices import Ceiling, Rates
from inference.upstream import local_model

OPENAI_DEFAULT_MODEL = "gpt-3.5-turbo"
#: Most tokens of the prompt that Anthropic adds so that a model uses tools (it documents at most 804) or a schema.
ANTHROPIC_PROMPT = 2_000


@dataclass(frozen=True, slots=True)
class Route:
    """One deployment of a model: where to send a call, and the prices there (`rates` is None without a price)."""

    deployment_id: int
    name: str
    provider: str
    base_url: str
    api_key_variable: str
    extra_headers: tuple[tuple[str, str], ...]
    upstream_name: str
    output_parameter: str
    order: int
    weight: int
    rates: Rates | None
    is_azure: bool = False
    is_anthropic: bool = False
    #: The style of a provider whose calls need more than a fixed secret; empty for all others.
    signed_as: str = ""
    api_version: str = ""
    #: Whether connections are restricted to the addresses that a provider entered in the admin may have.
    is_guarded: bool = False
    provider_limits: LimitSet | None = None
    #: Whether a non-streamed call is stopped when its client disconnects.
    stops_when_client_leaves: bool = False

    @property
    def secret(self) -> str:
        """The provider's secret from the environment; empty if it has none."""
        return os.environ.get(self.api_key_variable, "") if self.api_key_variable else ""

    @property
    def headers(self) -> dict[str, str]:
        """The extra headers; a value `$NAME_API_KEY` is read from the environment, and left out if empty."""
        resolved = {
            name: os.environ.get(text[1:], "") if text.startswith("$") else text for name, text in self.extra_headers
        }
        return {name: text for name, text in resolved.items() if text}


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """An enabled model with its usable routes, ordered by `order`."""

    public_name: str
    kind: str
    context_size: int
    created: int
    routes: tuple[Route, ...]
    aliases: tuple[str, ...] = ()
    is_default: bool = False
    cache_generation: str = ""
    #: Most tokens that a provider adds to a prompt, besides those around its messages.
    added_tokens: int = 0
    routing: str = Model.Routing.WEIGHTED

    def ceiling(self, prompt_tokens: int, tier: Any = None) -> Ceiling:
        """Return the highest prices of a call with at most this prompt, among the routes whose price is known."""
        known = [route.rates.ceiling(prompt_tokens, tier) for route in self.routes if route.rates is not None]
        return Ceiling(*map(max, zip(*known, strict=True))) if known else Ceiling(0, 0, 0, 0)

    def routes_within(self, limits: LimitSet) -> tuple[Route, ...]:
        """Return the routes that a call may take; with a budget in money, only those with a price."""
        if not limits.has_cost_budget:
            return self.routes
        return tuple(route for route in self.routes if route.rates is not None)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The enabled models by public name, by public name or alias, and the default."""

    models: dict[str, CatalogModel]
    by_name: dict[str, CatalogModel]
    default: CatalogModel | None


class Catalog:
    """Finds models by public name or alias; reads the database at most once a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, outage: Outage | None = None) -> None:
        self._outage = outage or Outage(clock)
        self._catalog = TtlCache(
            self._load, grace=lambda: settings.AUTH_STALE_SECONDS, outage=self._outage, clock=clock
        )

    def find(self, name: str) -> CatalogModel | None:
        """Return an enabled model by its public name or an alias; None if there is none.

        Raises DependencyUnavailable if the database has been unavailable for AUTH_STALE_SECONDS and a second.
        """
        return self._catalog.get(None).by_name.get(name)

    def default(self) -> CatalogModel | None:
        """Return the model for calls that name none: the operators' default, or the environment's; may be None."""
        return self._catalog.get(None).default

    def models(self) -> dict[str, CatalogModel]:
        """Return all enabled models by public name."""
        return self._catalog.get(None).models

    def forget(self) -> None:
        """Read the database again at the next use."""
        self._catalog.clear()

    def _load(self, _: None) -> _Snapshot:
        models = query_promptly(_read_models, self._outage, failed="catalog_read_failed")
        by_name = {alias: model for model in models.values() for alias in model.aliases} | models
        chosen = next((model for model in models.values() if model.is_default), None)
        return _Snapshot(models, by_name, chosen or by_name.get(default_model_name()))


catalog = Catalog(outage=database_outage)


def deployment_names() -> set[str]:
    """Return the names of the deployments that calls may go to; raises DependencyUnavailable like the catalog."""
    return {route.name for model in catalog.models().values() for route in model.routes}


def default_model_name() -> str:
    """Return the name of the environment's model, which is used if operators chose no default."""
    if settings.OPENAI_MODEL:
        return str(settings.OPENAI_MODEL)
    return local_model.MODEL_NAME if uses_local_model() else OPENAI_DEFAULT_MODEL


def uses_local_model() -> bool:
    """Return whether the local model answers: neither a provider's secret nor its URL is configured."""
    return not settings.OPENAI_API_KEY and not settings.OPENAI_BASE_URL


def _read_models() -> dict[str, CatalogModel]:
    deployments = Deployment.objects.select_related("provider").filter(is_enabled=True, provider__is_enabled=True)
    routes: dict[int, list[Route]] = defaultdict(list)
    prices: dict[int, list[Price]] = defaultdict(list)
    for price in Price.objects.filter(prices_in_force(datetime.now(UTC))):
        prices[price.deployment_id].append(price)
    for deployment in deployments.order_by("order", "-weight", "id"):
        routes[deployment.model_id].append(
            _route(deployment, Rates.of(found) if (found := prices.get(deployment.pk)) else None)
        )
    return {
        model.public_name: CatalogModel(
            public_name=model.public_name,
            kind=model.kind,
            context_size=model.context_size,
            created=int(model.created_at.timestamp()),
            routes=tuple(routes[model.pk]),
            aliases=tuple(model.aliases),
            is_default=model.is_default,
            cache_generation=model.cache_generation,
            routing=model.routing,
            added_tokens=ANTHROPIC_PROMPT if any(route.is_anthropic for route in routes[model.pk]) else 0,
        )
        for model in Model.objects.filter(is_enabled=True)
    }


def provider_route(provider: Provider) -> Route:
    """Return a route to a provider without a model, to test its connection."""
    return _route(Deployment(provider=provider, upstream_name=""), None)


def _route(deployment: Deployment, rates: Rates | None) -> Route:
    provider = deployment.provider
    limits = Limits(provider.requests_per_minute, provider.tokens_per_minute, provider.concurrent_requests)
    return Route(
        deployment_id=deployment.pk or 0,
        name=f"{provider.name}/{deployment.upstream_name}",
        provider=provider.name,
        is_azure=provider.style == Provider.Style.AZURE,
        is_anthropic=provider.style == Provider.Style.ANTHROPIC,
        signed_as=provider.style if provider.style in (Provider.Style.VERTEX, Provider.Style.BEDROCK) else "",
        api_version=provider.api_version,
        is_guarded=not provider.from_environment,
        base_url=provider.base_url,
        api_key_variable=provider.api_key_variable,
        extra_headers=tuple(sorted(provider.extra_headers.items())),
        upstream_name=deployment.upstream_name,
        output_parameter=deployment.output_parameter,
        order=deployment.order,
        weight=deployment.weight,
        rates=rates,
        # without limits of its own, its calls skip the limits
        provider_limits=None if limits == Limits() else LimitSet.of_provider(provider.pk, limits),
        stops_when_client_leaves=provider.stops_when_client_leaves,
    )
