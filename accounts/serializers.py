"""Request and response bodies of /usage and /keys."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from rest_framework import serializers

from accounts.limit_usage import LIVE, RECORDS
from accounts.limits.types import LimitName
from accounts.models import ApiKey
from accounts.services import MAX_GRACE
from accounts.validators import SCOPES, validate_line, validate_model_names, validate_networks

DAY_SECONDS = 24 * 3600
LIMIT_NAMES = [str(name) for name in LimitName]


class ForecastAnswer(serializers.Serializer[Any]):
    """What a monthly budget will have used when its month ends, at the pace of the last seven days."""

    expected = serializers.JSONField(help_text="In the unit of the limit.")
    reached = serializers.IntegerField(
        allow_null=True, help_text="When the limit is reached, in epoch seconds; null: not in this month, or already."
    )
    text = serializers.CharField(help_text="A sentence for people, with rounded figures.")


class LimitState(serializers.Serializer[Any]):
    """One limit of the key or its account. Amounts of money are strings in US dollars with nine decimals."""

    name = serializers.ChoiceField(choices=LIMIT_NAMES)
    owner = serializers.ChoiceField(
        choices=["key", "maker", "account", "key model", "maker model", "account model"],
        help_text="maker: a key that created this one through /keys, directly or through others.",
    )
    maker = serializers.CharField(required=False, help_text="The name of the maker, for its limits.")
    model = serializers.CharField(required=False, help_text="The model, for a budget for one model.")
    limit = serializers.JSONField(allow_null=True, help_text="null: no limit.")
    used = serializers.JSONField(allow_null=True, help_text="null: not counted without a limit, or unknown now.")
    remaining = serializers.JSONField(allow_null=True)
    reset = serializers.IntegerField(allow_null=True, help_text="When all of it is free again, in epoch seconds.")
    forecast = ForecastAnswer(required=False, help_text="Of a monthly budget that was used.")


class LimitUsageAnswer(serializers.Serializer[Any]):
    """The limits part of the answer to GET /usage."""

    account = serializers.CharField()
    key = serializers.CharField()
    tier = serializers.CharField()
    expires_at = serializers.DateTimeField(
        allow_null=True, help_text="When the key stops working: it expires, or its grace period ends. null: never."
    )
    scopes = serializers.ListField(child=serializers.CharField(), help_text="What the key may do.")
    month = serializers.CharField(help_text="The calendar month (UTC) of the budgets, as in 2026-11.")
    source = serializers.ChoiceField(  # type: ignore[assignment]  # the stubs mistake it for Field.source
        choices=[LIVE, RECORDS],
        help_text="records: the state store is down. Monthly amounts are those of the records written so far; the use "
        "of rates and slots is unknown.",
    )
    limits = LimitState(many=True)


class ModelBudgetBody(serializers.Serializer[Any]):
    """A monthly budget for one model. Amounts of money are strings in US dollars."""

    model = serializers.CharField(max_length=100, help_text="A public name.")
    monthly_token_budget = serializers.IntegerField(min_value=0, required=False, allow_null=True, default=None)
    monthly_cost_budget = serializers.DecimalField(
        max_digits=19, decimal_places=9, min_value=0, required=False, allow_null=True, default=None
    )


def _override(limit: str) -> serializers.IntegerField:
    return serializers.IntegerField(source=f"{limit}_override", allow_null=True, help_text="null: the tier's.")


class KeyAnswer(serializers.ModelSerializer[ApiKey]):
    """A key as shown to its account: without the secret."""

    tier = serializers.CharField(source="tier.name")
    requests_per_minute = _override("requests_per_minute")
    tokens_per_minute = _override("tokens_per_minute")
    concurrent_requests = _override("concurrent_requests")
    model_budgets = ModelBudgetBody(many=True)
    state = serializers.ChoiceField(choices=["active", "revoked", "expired", "disabled"], read_only=True)

    class Meta:
        model = ApiKey
        fields = [
            "id", "name", "prefix", "last_four", "tier", "state", "scopes", "models", "allowed_ips", "maker",
            "requests_per_minute", "tokens_per_minute", "concurrent_requests", "overrides_until",
            "monthly_token_budget", "monthly_cost_budget", "model_budgets",
            "created_at", "expires_at", "revoked_at", "last_used_at",
        ]  # fmt: skip
        read_only_fields = fields


class NewKeyAnswer(KeyAnswer):
    """A new key, with its secret: the only answer that contains it."""

    key = serializers.CharField(read_only=True, help_text="The secret. It is shown this once.")

    class Meta(KeyAnswer.Meta):
        fields = ["key", *KeyAnswer.Meta.fields]
        read_only_fields = fields


class StrictSerializer(serializers.Serializer[Any]):
    """A body without unknown fields: a misspelt restriction must not be ignored."""

    unknown_field = "Unknown field."

    def to_internal_value(self, data: Any) -> Any:
        """Refuse unknown fields, then validate the others."""
        unknown = sorted(set(data) - set(self.fields)) if isinstance(data, dict) else []
        if unknown:
            raise serializers.ValidationError({name[:100]: [self.unknown_field] for name in unknown[:20]})
        return super().to_internal_value(data)


class StrictModelBudget(StrictSerializer, ModelBudgetBody):
    """A monthly budget for one model in POST /keys: of tokens, of money, or both."""

    def validate(self, attrs: Any) -> Any:
        """Refuse a budget without an amount."""
        if attrs["monthly_token_budget"] is None and attrs["monthly_cost_budget"] is None:
            raise serializers.ValidationError("Set a budget of tokens, of money, or both.")
        return attrs


class TextField(serializers.CharField):
    """A string; numbers and booleans are refused, not converted."""

    default_error_messages = {"invalid": "Must be a text."}

    def to_internal_value(self, data: Any) -> str:
        """Return the string without surrounding white space; fail for other types."""
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class KeyRequest(StrictSerializer):
    """The body of POST /keys. Omitted fields are as for the calling key, except that keys:manage is not handed on."""

    name = TextField(max_length=100, validators=[validate_line], help_text="One line.")
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=list(SCOPES)),
        required=False,
        help_text="Omitted or empty: those of the calling key, without keys:manage, which has to be named.",
    )
    models = serializers.ListField(child=TextField(), required=False, validators=[validate_model_names])
    allowed_ips = serializers.ListField(child=TextField(), required=False)
    requests_per_minute = serializers.IntegerField(min_value=1, required=False)
    tokens_per_minute = serializers.IntegerField(min_value=1, required=False)
    concurrent_requests = serializers.IntegerField(min_value=1, required=False)
    monthly_token_budget = serializers.IntegerField(min_value=0, required=False)
    monthly_cost_budget = serializers.DecimalField(max_digits=19, decimal_places=9, min_value=0, required=False)
    model_budgets = StrictModelBudget(many=True, required=False)
    expires_at = serializers.DateTimeField(required=False)

    def validate_allowed_ips(self, value: list[str]) -> list[str]:
        """Accept addresses and networks only."""
        try:
            validate_networks(value)
        except DjangoValidationError as error:
            raise serializers.ValidationError(error.messages) from None
        return value


class RotateRequest(StrictSerializer):
    """The body of POST /keys/{id}/rotate."""

    grace_seconds = serializers.IntegerField(
        min_value=0,
        max_value=int(MAX_GRACE.total_seconds()),
        default=DAY_SECONDS,
        help_text="How long the old key keeps working.",
    )
