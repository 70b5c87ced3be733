"""Creation and update of the provider, models and prices that the environment's variables configure."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import transaction

from inference.catalog import default_model_name, provider_route, uses_local_model
from inference.fake_provider import OWNER
from inference.models import Deployment, Model, Price, Provider
from inference.services import catalog_save
from inference.upstream.client import upstream
from inference.upstream.errors import AttemptFailed
from inference.upstream.local_model import CONTEXT_TOKENS, MODEL_NAME

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_CONTEXT = 128_000
#: Models seeded besides the default model if the provider is OpenAI itself.
OPENAI_MODELS = ("gpt-4o-mini", "gpt-4.1-mini")
OPENAI_EMBEDDING_MODELS = ("text-embedding-3-small",)
LOCAL = "local"
FREE = {"input_per_million": Decimal(0), "output_per_million": Decimal(0)}
#: Timeout of a provider's list of models, in seconds.
LIST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Seeded:
    """The result of a seed: the provider's name (None: none is configured), and the models that it serves."""

    provider: str | None
    models: tuple[str, ...] = ()
    #: The provider's models without a price.
    unpriced: tuple[str, ...] = ()


def provider_seed(*, actor: str) -> Seeded:
    """Create or update the environment's provider and its models, and add missing prices.

    Prices come from a public list, or are 0 if the provider bills nothing; models of other servers get no price. A
    provider from an earlier environment is switched off; rows that operators entered stay. Raises
    django.core.exceptions.ValidationError if the environment's values are invalid.
    """
    seeded = _catalog_seed(actor=actor)
    of_provider = Deployment.objects.filter(provider__name=seeded.provider, prices=None)
    unpriced = list(of_provider.select_related("provider", "model"))
    provider = unpriced[0].provider if unpriced else None
    is_free = seeded.provider == LOCAL
    if provider is not None and not is_free and provider.base_url != OPENAI_URL:
        # A fake provider says so in its list. Any other server may bill: an operator enters its prices, 0 for own GPUs.
        listed = []
        with suppress(AttemptFailed):
            listed = upstream.models(provider_route(provider), seconds=LIST_SECONDS)
        is_free = bool(listed) and all(each.get("owned_by") == OWNER for each in listed)
    if not is_free:
        return replace(seeded, unpriced=tuple(deployment.model.public_name for deployment in unpriced))
    for deployment in unpriced:
        catalog_save(row=Price(deployment=deployment, **FREE), actor=actor)
    return seeded


@transaction.atomic
def _catalog_seed(*, actor: str) -> Seeded:
    name, url = "openai", settings.OPENAI_BASE_URL or OPENAI_URL
    variable = "OPENAI_API_KEY" if settings.OPENAI_API_KEY else ""
    if uses_local_model():
        name, url, variable = LOCAL, settings.LOCAL_MODEL_URL, ""
    for other in Provider.objects.filter(from_environment=True, is_enabled=True).exclude(name=name):
        other.is_enabled = False
        catalog_save(row=other, actor=actor)
    if not url:
        return Seeded(None)
    if name == LOCAL:  # its port is another one at each start, which is no change to tell in the audit log
        Provider.objects.filter(name=name, from_environment=True).update(base_url=url)
    provider = Provider.objects.filter(name=name).first() or Provider(name=name)
    provider.base_url, provider.api_key_variable = url, variable
    provider.from_environment = provider.is_enabled = True
    catalog_save(row=provider, actor=actor)
    chat = dict.fromkeys([default_model_name(), *(OPENAI_MODELS if url == OPENAI_URL else ())])
    embedding = OPENAI_EMBEDDING_MODELS if url == OPENAI_URL else ()
    for kind, names in ((Model.Kind.CHAT, chat), (Model.Kind.EMBEDDING, embedding)):
        for model in names:
            _seed_model(provider, model, kind, actor=actor)
    return Seeded(name, (*chat, *embedding))


def _seed_model(provider: Provider, name: str, kind: str, *, actor: str) -> None:
    model = Model.objects.filter(public_name=name).first()
    if model is None:
        context = CONTEXT_TOKENS if name == MODEL_NAME else OPENAI_CONTEXT
        model = Model(public_name=name, kind=kind, context_size=context)
        catalog_save(row=model, actor=actor)
    deployment = Deployment.objects.filter(model=model, provider=provider, upstream_name=name).first()
    if deployment is None:
        deployment = Deployment(model=model, provider=provider, upstream_name=name)
        if provider.base_url == OPENAI_URL:
            deployment.output_parameter = Deployment.OutputParameter.MAX_COMPLETION_TOKENS
        catalog_save(row=deployment, actor=actor)
    for price in [] if deployment.prices.exists() else listed_prices(name):
        catalog_save(row=Price(deployment=deployment, **price), actor=actor)


#: The fields of a price, and genai-prices' names of them.
LISTED = {
    "input_per_million": "input_mtok",
    "cached_input_per_million": "cache_read_mtok",
    "cache_write_per_million": "cache_write_mtok",
    "cache_write_1h_per_million": "cache_write_1h_mtok",
    "output_per_million": "output_mtok",
    "reasoning_per_million": "output_reasoning_mtok",
}


def listed_prices(model: str, url: str = OPENAI_URL) -> list[dict[str, Any]]:
    """Return the fields of a model's prices at the provider with this URL, by genai-prices' table, in US dollars.

    The first one is for all prompts, others are for longer ones. Empty if the table has no price of input tokens.
    """
    found = _listed(model, url)
    if found is None:
        return []
    known = found.get_prices(datetime.now(UTC))
    amounts = {field: value for field, name in LISTED.items() if (value := getattr(known, name)) is not None}
    if "input_per_million" not in amounts:
        return []
    sizes = {0, *(tier.start for value in amounts.values() for tier in getattr(value, "tiers", ()))}
    request = {"per_request": known.requests_kcount / 1000} if known.requests_kcount is not None else {}
    return [
        {"output_per_million": Decimal(0), "above_tokens": size, **request}
        | {field: _at(value, size) for field, value in amounts.items()}
        for size in sorted(sizes)
    ]


def _at(price: Any, size: int) -> Decimal:
    """Return a listed price, which may have steps, for prompts above a number of tokens."""
    steps = [tier.price for tier in getattr(price, "tiers", ()) if tier.start <= size]
    return Decimal(steps[-1] if steps else getattr(price, "base", price))


def listed_context(model: str, url: str) -> int | None:
    """Return a model's context size in tokens by the same table; None if it has none."""
    found = _listed(model, url)
    return None if found is None else found.context_window


def _listed(model: str, url: str) -> Any:
    from genai_prices.data_snapshot import get_snapshot  # loads its whole table, and most starts price nothing

    try:
        return get_snapshot().find_provider_model(model, None, None, url)[1]
    except LookupError:
        return None
