import re

import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import inference.models
import inference.validators


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Model",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "public_name",
                    models.CharField(
                        max_length=100,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                re.compile("^[A-Za-z0-9][A-Za-z0-9._:/@-]*\\Z"), "Letters, digits and . _ : / @ - only."
                            )
                        ],
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("chat", "Chat"), ("embedding", "Embedding")], default="chat", max_length=20
                    ),
                ),
                (
                    "context_size",
                    models.PositiveIntegerField(
                        default=8192,
                        help_text="Tokens of prompt and answer together.",
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "aliases",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text='Other names that callers can use, as a list: ["gpt-4", "default"].',
                        validators=[inference.validators.validate_aliases],
                    ),
                ),
                (
                    "is_default",
                    models.BooleanField(
                        default=False, help_text="Used for requests that name no model. It replaces OPENAI_MODEL."
                    ),
                ),
                ("is_enabled", models.BooleanField(default=True, help_text="Off: callers get 404 immediately.")),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "cache_generation",
                    models.CharField(
                        default=inference.models.new_generation,
                        editable=False,
                        help_text="A part of the keys of its cached answers.",
                        max_length=16,
                    ),
                ),
            ],
            options={
                "ordering": ["public_name"],
            },
        ),
        migrations.CreateModel(
            name="Provider",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "requests_per_minute",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="In any 60 seconds. Empty: no limit.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "tokens_per_minute",
                    models.PositiveBigIntegerField(
                        blank=True,
                        help_text="In any 60 seconds. Empty: no limit.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "concurrent_requests",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Open at the same time. Empty: no limit.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                ("name", models.SlugField(unique=True)),
                (
                    "style",
                    models.CharField(
                        choices=[("openai", "OpenAI and compatible"), ("azure", "Azure OpenAI")],
                        default="openai",
                        max_length=20,
                    ),
                ),
                (
                    "api_version",
                    models.CharField(
                        blank=True,
                        help_text="Azure only: the api-version parameter, such as 2024-10-21; v1 or preview for its v1 API.",
                        max_length=40,
                    ),
                ),
                (
                    "base_url",
                    models.CharField(
                        help_text="With /v1, such as https://api.openai.com/v1. For Azure: the URL of the resource, such as https://blue.openai.azure.com.",
                        max_length=500,
                    ),
                ),
                (
                    "api_key_variable",
                    models.CharField(
                        blank=True,
                        help_text="Environment variable that holds the secret; must end in _API_KEY. Empty: no secret is sent.",
                        max_length=100,
                        validators=[inference.validators.validate_api_key_variable],
                    ),
                ),
                (
                    "extra_headers",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        help_text='Sent with each call: {"X-Project": "blue"}. A value "$NAME_API_KEY" is read from the environment.',
                        validators=[inference.validators.validate_extra_headers],
                    ),
                ),
                (
                    "stops_when_client_leaves",
                    models.BooleanField(
                        default=False,
                        help_text="For your own GPUs. A cancelled call is charged its upper bound, because the provider reports no usage. Off: the call runs to its end, and its answer is cached if the tier allows it. Streams are always cancelled.",
                        verbose_name="cancel plain calls when the client disconnects",
                    ),
                ),
                (
                    "is_enabled",
                    models.BooleanField(default=True, help_text="Off: calls to this provider stop immediately."),
                ),
                (
                    "from_environment",
                    models.BooleanField(
                        default=False,
                        editable=False,
                        help_text="Created and updated by bootstrap from environment variables.",
                    ),
                ),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="Deployment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("upstream_name", models.CharField(help_text="The provider's name for the model.", max_length=200)),
                (
                    "output_parameter",
                    models.CharField(
                        choices=[("max_tokens", "Max Tokens"), ("max_completion_tokens", "Max Completion Tokens")],
                        default="max_tokens",
                        help_text="The provider's parameter for the most output tokens. OpenAI's newer models accept only max_completion_tokens.",
                        max_length=30,
                    ),
                ),
                ("order", models.PositiveSmallIntegerField(default=0)),
                (
                    "weight",
                    models.PositiveSmallIntegerField(
                        default=1, validators=[django.core.validators.MinValueValidator(1)]
                    ),
                ),
                ("is_enabled", models.BooleanField(default=True)),
                (
                    "model",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="deployments", to="inference.model"
                    ),
                ),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="deployments", to="inference.provider"
                    ),
                ),
            ],
            options={
                "ordering": ["model__public_name", "order", "-weight", "id"],
            },
        ),
        migrations.CreateModel(
            name="Price",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("valid_from", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "input_per_million",
                    models.DecimalField(
                        decimal_places=9, max_digits=19, validators=[django.core.validators.MinValueValidator(0)]
                    ),
                ),
                (
                    "cached_input_per_million",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        help_text="Empty: the input price.",
                        max_digits=19,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                    ),
                ),
                (
                    "output_per_million",
                    models.DecimalField(
                        decimal_places=9, max_digits=19, validators=[django.core.validators.MinValueValidator(0)]
                    ),
                ),
                (
                    "deployment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="prices", to="inference.deployment"
                    ),
                ),
            ],
            options={
                "ordering": ["deployment", "-valid_from"],
                "constraints": [models.UniqueConstraint(fields=("deployment", "valid_from"), name="price_unique")],
            },
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.UniqueConstraint(fields=("model", "provider", "upstream_name"), name="deployment_unique"),
        ),
    ]
