"""Where answers come from: providers, the models callers name, the deployments that serve them, and their prices."""

from __future__ import annotations

from typing import Any

from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from inference.validators import validate_api_key_variable, validate_extra_headers, validate_provider_url

MODEL_NAME = RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*\Z", "Letters, digits and . _ : / @ - only.")
PRICE: dict[str, Any] = {"max_digits": 19, "decimal_places": 9, "default": 0, "validators": [MinValueValidator(0)]}


class Provider(models.Model):
    """A server that speaks OpenAI's protocol. It knows the name of its secret's variable, never the secret."""

    name = models.SlugField(max_length=50, unique=True)
    base_url = models.CharField(max_length=500, help_text="Up to and with /v1, such as https://api.openai.com/v1.")
    api_key_variable = models.CharField(
        max_length=100,
        blank=True,
        validators=[validate_api_key_variable],
        help_text="Environment variable that holds the secret; must end in _API_KEY. Empty: no secret is sent.",
    )
    extra_headers = models.JSONField(
        default=dict,
        blank=True,
        validators=[validate_extra_headers],
        help_text='Sent with each call: {"X-Project": "blue"}; a value "$NAME_API_KEY" is read from the environment.',
    )
    is_enabled = models.BooleanField(default=True, help_text="Off: nothing is sent there, at once.")
    from_environment = models.BooleanField(
        default=False, editable=False, help_text="Set up by bootstrap from the environment, which keeps it up to date."
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse addresses that would let an operator reach this machine or its cloud's metadata."""
        if not self.from_environment:
            validate_provider_url(self.base_url)


class Model(models.Model):
    """A model as callers name it."""

    class Kind(models.TextChoices):
        CHAT = "chat"
        EMBEDDING = "embedding"

    public_name = models.CharField(max_length=100, unique=True, validators=[MODEL_NAME])
    kind = models.CharField(max_length=20, choices=Kind.choices, default=Kind.CHAT)
    context_size = models.PositiveIntegerField(
        default=8192, validators=[MinValueValidator(1)], help_text="Prompt and answer together, in tokens."
    )
    is_enabled = models.BooleanField(default=True, help_text="Off: callers get 404, at once.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["public_name"]

    def __str__(self) -> str:
        return self.public_name


class Deployment(models.Model):
    """A model at a provider. Lower order is tried first; within one order, weight decides how often."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="deployments")
    provider = models.ForeignKey(Provider, on_delete=models.PROTECT, related_name="deployments")
    upstream_name = models.CharField(max_length=200, help_text="What the provider calls the model.")

    class OutputParameter(models.TextChoices):
        MAX_TOKENS = "max_tokens"
        MAX_COMPLETION_TOKENS = "max_completion_tokens"

    output_parameter = models.CharField(
        max_length=30,
        choices=OutputParameter.choices,
        default=OutputParameter.MAX_TOKENS,
        help_text="How the server calls the longest answer; OpenAI's newer models know max_completion_tokens only.",
    )
    order = models.PositiveSmallIntegerField(default=0)
    weight = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    is_enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["model__public_name", "order", "-weight", "id"]
        constraints = [models.UniqueConstraint(fields=["model", "provider", "upstream_name"], name="deployment_unique")]

    def __str__(self) -> str:
        return f"{self.provider}/{self.upstream_name}"


class Price(models.Model):
    """What a deployment costs from a moment on, in US dollars per million tokens; the latest that has begun counts."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="prices")
    valid_from = models.DateTimeField(default=timezone.now)
    input_per_million = models.DecimalField(**PRICE)
    cached_input_per_million = models.DecimalField(**PRICE)
    output_per_million = models.DecimalField(**PRICE)

    class Meta:
        ordering = ["deployment", "-valid_from"]
        constraints = [models.UniqueConstraint(fields=["deployment", "valid_from"], name="price_unique")]

    def __str__(self) -> str:
        return f"{self.deployment} from {self.valid_from:%Y-%m-%d}"
