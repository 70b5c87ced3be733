import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import accounts.validators


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Account",
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
                (
                    "monthly_token_budget",
                    models.PositiveBigIntegerField(
                        blank=True, help_text="Tokens per calendar month (UTC). Empty: no budget.", null=True
                    ),
                ),
                (
                    "monthly_cost_budget",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        help_text="US dollars per calendar month (UTC). Empty: no budget.",
                        max_digits=19,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                    ),
                ),
                ("name", models.SlugField(max_length=100, unique=True)),
                (
                    "contact",
                    models.EmailField(
                        blank=True, help_text="The e-mail address that gets budget alerts.", max_length=254
                    ),
                ),
                (
                    "is_active",
                    models.BooleanField(
                        default=True, help_text="Off: all keys of this account are refused immediately."
                    ),
                ),
                (
                    "max_keys",
                    models.PositiveIntegerField(
                        blank=True, help_text="The most usable keys at the same time. Empty: no limit.", null=True
                    ),
                ),
                (
                    "logs_content",
                    models.BooleanField(
                        default=False,
                        help_text="On: prompts and answers of this account are kept for CONTENT_RETENTION_HOURS. Users with the permission to view request contents can read them.",
                        verbose_name="log content",
                    ),
                ),
                ("metadata", models.JSONField(blank=True, default=dict)),
                (
                    "cache_generations",
                    models.JSONField(
                        default=dict,
                        editable=False,
                        help_text="A part of the keys of its cached answers, by model; '' stands for all models.",
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="Tier",
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
                ("cache_enabled", models.BooleanField(default=True, help_text="Whether answers are cached.")),
                (
                    "cache_any_temperature",
                    models.BooleanField(
                        default=False,
                        help_text="Whether /v1 answers are cached at any temperature. Off: only at temperature 0.",
                    ),
                ),
                (
                    "max_output_tokens",
                    models.PositiveIntegerField(
                        default=1024,
                        help_text="The most tokens in an answer. A request can ask for fewer.",
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "models",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text='Public names of the allowed models, as a list: ["gpt-3.5-turbo"]. Empty: every model.',
                        validators=[accounts.validators.validate_model_names],
                    ),
                ),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "monthly_token_budget",
                    models.PositiveBigIntegerField(
                        blank=True, help_text="Tokens per calendar month (UTC). Empty: no budget.", null=True
                    ),
                ),
                (
                    "monthly_cost_budget",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        help_text="US dollars per calendar month (UTC). Empty: no budget.",
                        max_digits=19,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                    ),
                ),
                ("name", models.CharField(max_length=100, validators=[accounts.validators.validate_line])),
                ("prefix", models.CharField(db_index=True, editable=False, max_length=16)),
                ("last_four", models.CharField(editable=False, max_length=4)),
                ("digest", models.CharField(editable=False, max_length=64, unique=True)),
                ("pepper_id", models.CharField(editable=False, max_length=32)),
                (
                    "scopes",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text="Empty: every scope except keys:manage.",
                        validators=[accounts.validators.validate_scopes],
                    ),
                ),
                (
                    "allowed_ips",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text='Addresses or networks, as a list: ["192.0.2.7", "2001:db8::/32"]. Empty: any address.',
                        validators=[accounts.validators.validate_networks],
                    ),
                ),
                (
                    "requests_per_minute_override",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Replaces the tier's limit.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "tokens_per_minute_override",
                    models.PositiveBigIntegerField(
                        blank=True,
                        help_text="Replaces the tier's limit.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "concurrent_requests_override",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Replaces the tier's limit.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "overrides_until",
                    models.DateTimeField(blank=True, help_text="When the overrides end. Empty: never.", null=True),
                ),
                (
                    "lineage_id",
                    models.BigIntegerField(
                        db_index=True,
                        editable=False,
                        help_text="The first of a chain of rotated keys. They share its limits and budgets.",
                        null=True,
                    ),
                ),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, editable=False, null=True)),
                ("last_used_at", models.DateTimeField(blank=True, editable=False, null=True)),
                (
                    "models",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text="Empty: every model of the tier.",
                        validators=[accounts.validators.validate_model_names],
                    ),
                ),
                (
                    "account",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="api_keys", to="accounts.account"
                    ),
                ),
                (
                    "maker",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        help_text="The key that created this one through /keys. Requests count against its limits and budgets as well.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="made_keys",
                        to="accounts.apikey",
                    ),
                ),
                (
                    "successor",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="predecessors",
                        to="accounts.apikey",
                    ),
                ),
                (
                    "tier",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="api_keys", to="accounts.tier"
                    ),
                ),
            ],
            options={
                "verbose_name": "API key",
                "ordering": ["account__name", "name"],
            },
        ),
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField(db_index=True, default=django.utils.timezone.now)),
                ("actor", models.CharField(help_text="admin:NAME, key:ACCOUNT/NAME or command:NAME", max_length=200)),
                ("action", models.CharField(max_length=50)),
                ("target_type", models.CharField(max_length=50)),
                ("target_id", models.CharField(max_length=50)),
                ("target", models.CharField(max_length=250)),
                ("before", models.JSONField(default=dict)),
                ("after", models.JSONField(default=dict)),
            ],
            options={
                "verbose_name_plural": "audit log",
                "ordering": ["-at", "-id"],
                "indexes": [models.Index(fields=["target_type", "target_id"], name="audit_target")],
            },
        ),
        migrations.CreateModel(
            name="IdempotentAnswer",
            fields=[
                (
                    "name",
                    models.CharField(
                        help_text="Digest of the API key and the Idempotency-Key.",
                        max_length=64,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "token",
                    models.CharField(
                        help_text="Identifies the request that may finish or delete the row.", max_length=32
                    ),
                ),
                ("fingerprint", models.CharField(help_text="Digest of the request.", max_length=64)),
                ("status", models.PositiveSmallIntegerField(help_text="Empty until there is an answer.", null=True)),
                ("headers", models.JSONField(default=dict)),
                ("body", models.BinaryField(default=b"")),
                ("cost", models.BigIntegerField(default=0, help_text="Nano-dollars that the original answer cost.")),
                ("expires_at", models.DateTimeField(db_index=True)),
                (
                    "key",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="accounts.apikey"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ModelBudget",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "monthly_token_budget",
                    models.PositiveBigIntegerField(
                        blank=True, help_text="Tokens per calendar month (UTC). Empty: no budget.", null=True
                    ),
                ),
                (
                    "monthly_cost_budget",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        help_text="US dollars per calendar month (UTC). Empty: no budget.",
                        max_digits=19,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                    ),
                ),
                (
                    "model",
                    models.CharField(
                        help_text="The model's public name. An alias is replaced by it.",
                        max_length=100,
                        validators=[
                            django.core.validators.RegexValidator("\\A[^\\s{}]+\\Z", "A name has no spaces or braces.")
                        ],
                    ),
                ),
                (
                    "lineage_id",
                    models.BigIntegerField(
                        editable=False,
                        help_text="The budget of the first of a chain of rotated keys. They share its ledger.",
                        null=True,
                    ),
                ),
                (
                    "account",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="model_budgets",
                        to="accounts.account",
                    ),
                ),
                (
                    "key",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="model_budgets",
                        to="accounts.apikey",
                    ),
                ),
            ],
            options={
                "verbose_name": "budget for a model",
                "verbose_name_plural": "budgets for a model",
                "ordering": ["model"],
                "constraints": [
                    models.UniqueConstraint(fields=("account", "model"), name="model_budget_unique_in_account"),
                    models.UniqueConstraint(fields=("key", "model"), name="model_budget_unique_for_key"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("account", None), ("key__isnull", False)),
                            models.Q(("account__isnull", False), ("key", None)),
                            _connector="OR",
                        ),
                        name="model_budget_of_key_or_account",
                    ),
                ],
            },
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.UniqueConstraint(fields=("account", "name"), name="api_key_name_unique_in_account"),
        ),
    ]
