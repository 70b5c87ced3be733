"""Accounts own keys, tiers set limits, and keys identify callers. Every change of these writes an audit entry.

A limit of null means no limit. Money is NUMERIC in US dollars here and integer nano-dollars in code.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from decimal import Decimal
from typing import Any
from unicodedata import normalize

from django.apps import apps
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from accounts.validators import validate_line, validate_model_names, validate_networks, validate_scopes
from core.formats import NOTHING, price_text, utc_text
from core.times import parse_datetime

#: The most generations of keys created through /keys, below a key that an operator created.
GENERATIONS = 3
#: How the audit log stores amounts of money and times.
MONEY, TIME = re.compile(r"\d+\.\d{9}"), re.compile(r"\d{4}-\d\d-\d\dT")
DOLLARS: dict[str, Any] = {"max_digits": 19, "decimal_places": 9, "validators": [MinValueValidator(0)]}


def public_model_name(name: str) -> str | None:
    """Return the public name of the model with this name or alias; None if there is none."""
    rows = apps.get_model("inference", "Model").objects.values_list("public_name", "aliases")
    return {each: public_name for public_name, aliases in rows for each in (public_name, *aliases)}.get(name)


class RequestLimits(models.Model):
    """Request limits, shared by tiers and accounts."""

    requests_per_minute = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="In any 60 seconds. Empty: no limit."
    )
    tokens_per_minute = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="In any 60 seconds. Empty: no limit."
    )
    concurrent_requests = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Open at the same time. Empty: no limit."
    )

    class Meta:
        abstract = True


class Budgets(models.Model):
    """Budgets of an account or a key for a calendar month (UTC)."""

    monthly_token_budget = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Tokens per calendar month (UTC). Empty: no budget."
    )
    monthly_cost_budget = models.DecimalField(
        null=True, blank=True, **DOLLARS, help_text="US dollars per calendar month (UTC). Empty: no budget."
    )

    class Meta:
        abstract = True


class Tier(RequestLimits):
    """The limits, models and cache settings of a class of keys."""

    name = models.SlugField(max_length=50, unique=True)
    cache_enabled = models.BooleanField(default=True, help_text="Whether answers are cached.")
    cache_any_temperature = models.BooleanField(
        default=False,
        help_text="Whether /v1 answers are cached at any temperature. Off: only at temperature 0.",
    )
    max_output_tokens = models.PositiveIntegerField(
        default=1024,
        validators=[MinValueValidator(1)],
        help_text="The most tokens in an answer. A request can ask for fewer.",
    )
    # Last, because from here on the name hides the module in this class's body.
    models = models.JSONField(
        default=list,
        blank=True,
        validators=[validate_model_names],
        help_text='Public names of the allowed models, as a list: ["gpt-3.5-turbo"]. Empty: every model.',
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Account(RequestLimits, Budgets):
    """The owner of keys, with caps and budgets over all of them together."""

    display_name = models.CharField(
        "name",
        max_length=100,
        blank=True,
        validators=[validate_line],
        help_text="Shown in the admin, such as Acme Corp.",
    )
    name = models.SlugField(
        "slug",
        max_length=100,
        unique=True,
        help_text="The name in the API, records and URLs. Empty: made from the name.",
    )
    contact = models.EmailField(blank=True, help_text="The e-mail address that gets budget alerts.")
    is_active = models.BooleanField(default=True, help_text="Off: all keys of this account are refused immediately.")
    max_keys = models.PositiveIntegerField(
        null=True, blank=True, help_text="The most usable keys at the same time. Empty: no limit."
    )
    logs_content = models.BooleanField(
        "log content",
        default=False,
        help_text="On: prompts and answers of this account are kept for CONTENT_RETENTION_HOURS. Users with the "
        "permission to view request contents can read them.",
    )
    metadata = models.JSONField(default=dict, blank=True)
    cache_generations = models.JSONField(
        default=dict,
        editable=False,
        help_text="A part of the keys of its cached answers, by model; '' stands for all models.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return f"{self.display_name} ({self.name})" if self.display_name else self.name

    @property
    def title(self) -> str:
        """The name to show: the slug where there is no other."""
        return self.display_name or self.name


class ApiKey(Budgets):
    """A credential of an account. The secret is shown once and never stored; only its HMAC digest is."""

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="api_keys")
    tier = models.ForeignKey(Tier, on_delete=models.PROTECT, related_name="api_keys")
    name = models.CharField(max_length=100, validators=[validate_line])
    prefix = models.CharField(max_length=16, editable=False, db_index=True)
    last_four = models.CharField(max_length=4, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    pepper_id = models.CharField(max_length=32, editable=False)
    scopes = models.JSONField(
        default=list, blank=True, validators=[validate_scopes], help_text="Empty: every scope except keys:manage."
    )
    allowed_ips = models.JSONField(
        default=list,
        blank=True,
        validators=[validate_networks],
        help_text='Addresses or networks, as a list: ["192.0.2.7", "2001:db8::/32"]. Empty: any address.',
    )
    requests_per_minute_override = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Replaces the tier's limit."
    )
    tokens_per_minute_override = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Replaces the tier's limit."
    )
    concurrent_requests_override = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Replaces the tier's limit."
    )
    overrides_until = models.DateTimeField(null=True, blank=True, help_text="When the overrides end. Empty: never.")
    successor = models.ForeignKey(
        "self", null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="predecessors"
    )
    lineage_id = models.BigIntegerField(
        null=True,
        editable=False,
        db_index=True,
        help_text="The first of a chain of rotated keys. They share its limits and budgets.",
    )
    maker = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="made_keys",
        help_text="The key that created this one through /keys. Requests count against its limits and budgets as well.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Last, because from here on the name hides the module in this class's body.
    models = models.JSONField(
        default=list, blank=True, validators=[validate_model_names], help_text="Empty: every model of the tier."
    )

    class Meta:
        ordering = ["account__name", "name"]
        verbose_name = "API key"
        constraints = [models.UniqueConstraint(fields=["account", "name"], name="api_key_name_unique_in_account")]

    def __str__(self) -> str:
        return f"{self.name} ({self.masked})"

    @property
    def title(self) -> str:
        """The name to show, with its account's."""
        return f"{self.account.title} / {self.name}"

    def clean(self) -> None:
        """Normalize the name to Unicode's NFC, so that names that look the same are the same."""
        self.name = normalize("NFC", self.name)

    @property
    def masked(self) -> str:
        """The visible part of the key: its prefix and last four characters."""
        return f"{self.prefix}…{self.last_four}"

    @property
    def limits_id(self) -> int:
        """The id under which the key's limits are counted. Rotation keeps it: a new key gets no fresh limits."""
        return self.lineage_id or self.pk

    @property
    def state(self) -> str:
        """The key's state now: `active`, `revoked`, `expired` or `disabled` (by its account)."""
        now = timezone.now()
        if self.revoked_at is not None and self.revoked_at <= now:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "active" if self.account.is_active else "disabled"

    @property
    def allowed_models(self) -> list[str] | None:
        """The models that both tier and key allow, which may be none; None: all."""
        if not self.models or not self.tier.models:
            return list(self.models or self.tier.models) or None
        return [name for name in self.models if name in self.tier.models]


class ModelBudget(Budgets):
    """A budget of a key, or of an account over all its keys, for one model in a calendar month (UTC)."""

    account = models.ForeignKey(Account, null=True, blank=True, on_delete=models.CASCADE, related_name="model_budgets")
    key = models.ForeignKey(ApiKey, null=True, blank=True, on_delete=models.CASCADE, related_name="model_budgets")
    model = models.CharField(
        max_length=100,
        validators=[RegexValidator(r"\A[^\s{}]+\Z", "A name has no spaces or braces.")],
        help_text="The model's public name. An alias is replaced by it.",
    )
    lineage_id = models.BigIntegerField(
        null=True,
        editable=False,
        help_text="The budget of the first of a chain of rotated keys. They share its ledger.",
    )

    class Meta:
        ordering = ["model"]
        verbose_name = "budget for a model"
        verbose_name_plural = "budgets for a model"
        constraints = [
            models.UniqueConstraint(fields=["account", "model"], name="model_budget_unique_in_account"),
            models.UniqueConstraint(fields=["key", "model"], name="model_budget_unique_for_key"),
            models.CheckConstraint(
                condition=models.Q(account=None, key__isnull=False) | models.Q(account__isnull=False, key=None),
                name="model_budget_of_key_or_account",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.key or self.account}: {self.model}"

    @property
    def ledger_id(self) -> int:
        """The id of its ledger. A budget that is deleted and created again gets a new one, seeded from the records."""
        return self.lineage_id or self.pk

    def clean(self) -> None:
        """Replace an alias by the model's name; refuse unknown models, a changed model, and a budget of nothing."""
        name = public_model_name(self.model)
        if name is None:
            raise ValidationError({"model": f"No model has the name or alias {self.model}."})
        self.model = name
        if self.monthly_token_budget is None and self.monthly_cost_budget is None:
            raise ValidationError("Set a budget of tokens, of money, or both.")
        stored = type(self).objects.filter(pk=self.pk).values_list("model", flat=True).first()
        if stored is not None and stored != name:
            raise ValidationError({"model": "The model of a budget can't be changed: add another budget."})


class AuditEntry(models.Model):
    """One change by an operator, a key or a command. Entries are never changed, and hold no secrets."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.CharField(max_length=200, help_text="admin:NAME, key:ACCOUNT/NAME or command:NAME")
    action = models.CharField(max_length=50)
    target_type = models.CharField(max_length=50)
    target_id = models.CharField(max_length=50)
    target = models.CharField(max_length=250)
    before = models.JSONField(default=dict)
    after = models.JSONField(default=dict)

    class Meta:
        ordering = ["-at", "-id"]
        verbose_name_plural = "audit log"
        indexes = [models.Index(fields=["target_type", "target_id"], name="audit_target")]

    def __str__(self) -> str:
        return f"{self.by} {self.action} {self.target_type} {self.target}"

    @property
    def by(self) -> str:
        """The actor for people: the user's name, `key acme/ci`, or `system (bootstrap)` for a command."""
        kind, _, name = self.actor.partition(":")
        return {"admin": name, "key": f"key {name}", "command": f"system ({name})"}.get(kind, self.actor)

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """The changed fields with their values before and after, as text; for a new object, the fields with a value."""
        names = [name for name in {**self.before, **self.after} if name in self.before or self.after[name]]
        return [(name.replace("_", " "), _shown(self.before, name), _shown(self.after, name)) for name in names]


def _shown(values: dict[str, Any], name: str) -> str:
    """Return a value of an entry for people: money as $25.00, a time as on other pages."""
    value = values.get(name)
    if value is None or value in ("", [], {}):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        if MONEY.fullmatch(value):
            return price_text(Decimal(value))
        with suppress(ValueError):
            return utc_text(parse_datetime(value)) if TIME.match(value) else value
        return value
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else json.dumps(value, ensure_ascii=False)


class IdempotentAnswer(models.Model):
    """A request's claim on its Idempotency-Key, and the answer that is kept for retries."""

    name = models.CharField(max_length=64, primary_key=True, help_text="Digest of the API key and the Idempotency-Key.")
    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, related_name="+")
    token = models.CharField(max_length=32, help_text="Identifies the request that may finish or delete the row.")
    fingerprint = models.CharField(max_length=64, help_text="Digest of the request.")
    status = models.PositiveSmallIntegerField(null=True, help_text="Empty until there is an answer.")
    headers = models.JSONField(default=dict)
    body = models.BinaryField(default=b"")
    cost = models.BigIntegerField(default=0, help_text="Nano-dollars that the original answer cost.")
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.name
