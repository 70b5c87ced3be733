"""The tables of the catalog: providers, models, the deployments of models at providers, and their prices."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from accounts.models import RequestLimits
from inference import validators
from inference.validators import (
    validate_aliases,
    validate_api_key_variable,
    validate_extra_headers,
    validate_provider_url,
)

MODEL_NAME = RegexValidator(validators.MODEL_NAME, "Letters, digits and . _ : / @ - only.")
#: Options of a price field. There is no default: 0 means free, and must be entered.
PRICE: dict[str, Any] = {"max_digits": 19, "decimal_places": 9, "validators": [MinValueValidator(0)]}

#: Options of a factor on prices.
FACTOR: dict[str, Any] = {
    "max_digits": 6,
    "decimal_places": 3,
    "null": True,
    "blank": True,
    "validators": [MinValueValidator(0)],
}


def new_generation() -> str:
    """Return a new random mark for cache keys, so that a deleted model's answers are not found under its name."""
    return secrets.token_hex(4)


class Provider(RequestLimits):
    """A server with OpenAI's or Anthropic's API. The row names the secret's environment variable, never the secret.

    Its limits are those that the provider grants, over all deployments, accounts, processes and nodes together.
    """

    class Style(models.TextChoices):
        OPENAI = "openai", "OpenAI and compatible"
        AZURE = "azure", "Azure OpenAI"
        ANTHROPIC = "anthropic", "Anthropic and compatible"
        VERTEX = "vertex", "Google Vertex AI, by Google's credentials"
        BEDROCK = "bedrock", "Amazon Bedrock, signed by AWS credentials"

    name = models.SlugField(max_length=50, unique=True)
    style = models.CharField(max_length=20, choices=Style.choices, default=Style.OPENAI)
    api_version = models.CharField(
        "API version",
        max_length=40,
        blank=True,
        help_text="Azure only: the api-version parameter, such as 2024-10-21; v1 or preview for its v1 API.",
    )
    base_url = models.CharField(
        "base URL",
        max_length=500,
        help_text="With /v1, such as https://api.openai.com/v1 or https://api.anthropic.com/v1. For Azure: the URL of "
        "the resource, such as https://blue.openai.azure.com.",
    )
    api_key_variable = models.CharField(
        "variable of the secret",
        max_length=100,
        blank=True,
        validators=[validate_api_key_variable],
        help_text="Environment variable that holds the secret; must end in _API_KEY. Empty: no secret is sent.",
    )
    extra_headers = models.JSONField(
        default=dict,
        blank=True,
        validators=[validate_extra_headers],
        help_text='Sent with each call: {"X-Project": "blue"}. A value "$NAME_API_KEY" is read from the environment.',
    )
    stops_when_client_leaves = models.BooleanField(
        "cancel plain calls when the client disconnects",
        default=False,
        help_text="For your own GPUs. A cancelled call is charged its upper bound, because the provider reports no "
        "usage. Off: the call runs to its end, and its answer is cached if the tier allows it. Streams are always "
        "cancelled.",
    )
    is_enabled = models.BooleanField("enabled", default=True, help_text="Off: calls to this provider stop immediately.")
    from_environment = models.BooleanField(
        default=False, editable=False, help_text="Created and updated by bootstrap from environment variables."
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def secret_variables(self) -> list[str]:
        """The names of the environment variables that hold the provider's secrets."""
        headers = [value.removeprefix("$") for value in self.extra_headers.values() if value.startswith("$")]
        return [name for name in (self.api_key_variable, *headers) if name]

    @property
    def missing_variables(self) -> list[str]:
        """Those of its secret variables that are not set on this server."""
        return [name for name in self.secret_variables if not os.environ.get(name)]

    def clean(self) -> None:
        """Refuse URLs of this machine or a cloud's metadata service, and what does not fit the style."""
        if not self.from_environment:
            validate_provider_url(self.base_url)
        if self.style == self.Style.AZURE and not self.api_version:
            raise ValidationError({"api_version": "Azure needs one, such as 2024-10-21."})
        if self.style in (self.Style.VERTEX, self.Style.BEDROCK) and self.api_key_variable:
            raise ValidationError({"api_key_variable": "This style has credentials of its own: leave it empty."})


class Model(models.Model):
    """A model that callers can name."""

    class Kind(models.TextChoices):
        CHAT = "chat"
        EMBEDDING = "embedding"

    class Routing(models.TextChoices):
        WEIGHTED = "weighted", "By weight, conversations stay"
        LEAST_BUSY = "least_busy", "Least busy"
        FASTEST = "fastest", "Fastest"

    public_name = models.CharField(max_length=100, unique=True, validators=[MODEL_NAME])
    kind = models.CharField(max_length=20, choices=Kind.choices, default=Kind.CHAT)
    context_size = models.PositiveIntegerField(
        default=8192, validators=[MinValueValidator(1)], help_text="Tokens of prompt and answer together."
    )
    routing = models.CharField(
        max_length=20,
        choices=Routing.choices,
        default=Routing.WEIGHTED,
        db_default=Routing.WEIGHTED,
        help_text="How a call chooses among deployments of one order. By weight, the calls of a conversation go to the "
        "same one, for the provider's prompt cache.",
    )
    aliases = models.JSONField(
        default=list,
        blank=True,
        validators=[validate_aliases],
        help_text='Other names that callers can use, as a list: ["gpt-4", "default"].',
    )
    is_default = models.BooleanField(
        "default", default=False, help_text="Used for requests that name no model. It replaces OPENAI_MODEL."
    )
    is_enabled = models.BooleanField("enabled", default=True, help_text="Off: callers get 404 immediately.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    cache_generation = models.CharField(
        max_length=16, default=new_generation, editable=False, help_text="A part of the keys of its cached answers."
    )

    class Meta:
        ordering = ["public_name"]

    def __str__(self) -> str:
        return self.public_name

    def clean(self) -> None:
        """Refuse names that another model already has, and a second default."""
        self.aliases = self.aliases or []  # a form's empty field is None
        others = Model.objects.exclude(pk=self.pk)
        taken = {name for other in others for name in (other.public_name, *other.aliases)}
        clashing = sorted(taken & {self.public_name, *self.aliases})
        if clashing:
            raise ValidationError(f"Another model has the name {', '.join(clashing)} already.")
        if self.is_default and others.filter(is_default=True).exists():
            raise ValidationError({"is_default": "Another model is the default: clear its flag first."})


class Deployment(models.Model):
    """A model at a provider. A lower order is tried first; within an order, the weight is the share of calls."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="deployments")
    provider = models.ForeignKey(Provider, on_delete=models.PROTECT, related_name="deployments")
    upstream_name = models.CharField("provider's name", max_length=200, help_text="The provider's name for the model.")

    class OutputParameter(models.TextChoices):
        MAX_TOKENS = "max_tokens"
        MAX_COMPLETION_TOKENS = "max_completion_tokens"

    output_parameter = models.CharField(
        max_length=30,
        choices=OutputParameter.choices,
        default=OutputParameter.MAX_TOKENS,
        help_text="The provider's parameter for the most output tokens. OpenAI's newer models accept only "
        "max_completion_tokens.",
    )
    order = models.PositiveSmallIntegerField(default=0)
    weight = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    is_enabled = models.BooleanField("enabled", default=True)

    class Meta:
        ordering = ["model__public_name", "order", "-weight", "id"]
        constraints = [models.UniqueConstraint(fields=["model", "provider", "upstream_name"], name="deployment_unique")]

    def __str__(self) -> str:
        return f"{self.provider}/{self.upstream_name}"


class Price(models.Model):
    """The prices of a deployment from `valid_from` on, in US dollars per million tokens; the latest in force counts.

    Rows with `above_tokens` hold for longer prompts, until a later row with the same number, or a new row for all
    prompts. Without a price in force, the cost of a deployment's calls is unknown, not 0.
    """

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="prices")
    valid_from = models.DateTimeField(default=timezone.now)
    above_tokens = models.PositiveIntegerField(
        "prompts above (tokens)",
        default=0,
        help_text="0: for all prompts. Otherwise the whole call has this price if its prompt is longer.",
    )
    input_per_million = models.DecimalField(**PRICE)
    cached_input_per_million = models.DecimalField(**PRICE, null=True, blank=True, help_text="Empty: the input price.")
    cache_write_per_million = models.DecimalField(
        **PRICE, null=True, blank=True, help_text="Stored in the provider's cache. Empty: the input price."
    )
    cache_write_1h_per_million = models.DecimalField(
        **PRICE, null=True, blank=True, help_text="Stored there for an hour. Empty: the price of other cache writes."
    )
    output_per_million = models.DecimalField(**PRICE)
    reasoning_per_million = models.DecimalField(**PRICE, null=True, blank=True, help_text="Empty: the output price.")
    per_request = models.DecimalField(**PRICE, null=True, blank=True, help_text="US dollars for each call.")
    per_search = models.DecimalField(
        **PRICE, null=True, blank=True, help_text="US dollars for each web search by the provider. Empty: refused."
    )
    flex_factor = models.DecimalField(
        **FACTOR, help_text="For service_tier flex, the prices of tokens times this. Empty: flex is refused."
    )
    priority_factor = models.DecimalField(
        **FACTOR, help_text="For service_tier priority, the prices of tokens times this. Empty: priority is refused."
    )

    class Meta:
        ordering = ["deployment", "-valid_from", "above_tokens"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "valid_from", "above_tokens"], name="price_unique")
        ]

    def __str__(self) -> str:
        return f"{self.deployment} from {self.valid_from:%Y-%m-%d}"


def prices_in_force(at: datetime) -> Q:
    """Return the condition of prices that hold at a time: they have begun, and no later one has replaced them.

    A price is replaced by one for prompts of the same length, or by one for all prompts.
    """
    replaces = Q(above_tokens=OuterRef("above_tokens")) | Q(above_tokens=0)
    later = Price.objects.filter(
        replaces, deployment=OuterRef("deployment"), valid_from__gt=OuterRef("valid_from"), valid_from__lte=at
    )
    return Q(valid_from__lte=at) & ~Q(Exists(later))
