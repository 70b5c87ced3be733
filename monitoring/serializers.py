"""Serializers of the answers of monitoring's endpoints."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from accounts.serializers import LimitUsageAnswer
from monitoring.models import RequestRecord


class StatsAnswer(serializers.Serializer[Any]):
    """The answer of /stats: requests to the model endpoints."""

    total_requests = serializers.IntegerField()
    cache_hits = serializers.IntegerField(help_text="Coalesced answers included.")
    cache_misses = serializers.IntegerField()
    cache_hit_rate = serializers.FloatField(
        help_text="Share of hits in hits and misses, three decimals; 0 if there were neither."
    )
    total_api_keys = serializers.IntegerField(help_text="Keys that work now, including those in a grace period.")
    requests_by_key = serializers.DictField(
        child=serializers.IntegerField(), help_text="By key name; for staff by `account/name`."
    )


class ErrorCounts(serializers.Serializer[Any]):
    """Requests that were not answered, by reason."""

    invalid = serializers.IntegerField(help_text="Refused as invalid: 4xx other than 429.")
    limited = serializers.IntegerField(help_text="Refused by a limit: 429.")
    failed = serializers.IntegerField(help_text="5xx.")


class Quantiles(serializers.Serializer[Any]):
    """Milliseconds, within 5 %."""

    p50 = serializers.FloatField()
    p95 = serializers.FloatField()
    p99 = serializers.FloatField()


class FiguresAnswer(serializers.Serializer[Any]):
    """Sums of requests. Money is a string in US dollars."""

    requests = serializers.IntegerField()
    # The stubs take it for the serializer's own attribute.
    errors = ErrorCounts()  # type: ignore[assignment]
    cache_hits = serializers.IntegerField(help_text="Coalesced answers included.")
    cache_misses = serializers.IntegerField()
    cache_hit_rate = serializers.FloatField(
        help_text="Share of hits in hits and misses, three decimals; 0 if there were neither."
    )
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField(help_text="Part of the input tokens.")
    output_tokens = serializers.IntegerField()
    cost = serializers.CharField(
        allow_null=True,
        help_text="Of requests whose price is known; null if none is. With unpriced ones, the true cost may be higher.",
    )
    unpriced_requests = serializers.IntegerField(help_text="Requests of models without a price, whose cost is unknown.")
    saved_cost = serializers.CharField(help_text="Cost that cached, coalesced and replayed answers avoided.")
    latency_ms = Quantiles(allow_null=True, help_text="Of answered and failed requests; null if there were none.")
    first_token_ms = Quantiles(allow_null=True, help_text="Of streams; null if there were none.")


class UsageEntry(FiguresAnswer):
    """The figures of one period, one group, or both. Periods and groups without requests have no entry."""

    start = serializers.DateTimeField(required=False)
    key = serializers.CharField(required=False)
    model = serializers.CharField(
        required=False, help_text="Empty if requests were refused before the model was known."
    )
    endpoint = serializers.CharField(required=False)


class UsageFigures(serializers.Serializer[Any]):
    """Usage of the account in a span."""

    to = serializers.DateTimeField(help_text="Excluded.")
    time_zone = serializers.CharField()
    group_by = serializers.ListField(child=serializers.CharField())
    totals = FiguresAnswer()
    series = UsageEntry(many=True)

    def get_fields(self) -> dict[str, Any]:
        """Add `from`, which is a Python keyword."""
        return {"from": serializers.DateTimeField(), **super().get_fields()}


class UsageAnswer(LimitUsageAnswer):
    """The answer of GET /usage."""

    usage = UsageFigures()


class RecordAnswer(serializers.ModelSerializer[RequestRecord]):
    """The answer of /requests/{id}: one request as it was answered and billed."""

    key = serializers.CharField(source="key_name")

    class Meta:
        model = RequestRecord
        fields = [
            "id",
            "label",
            "admitted_at",
            "key",
            "endpoint",
            "model",
            "status",
            "error_code",
            "cache",
            "input_tokens",
            "cached_tokens",
            "output_tokens",
            "cost",
            "saved_cost",
            "usage_source",
            "is_partial",
            "is_overrun",
            "latency_ms",
            "first_token_ms",
            "attempts",
            "count",
        ]
        read_only_fields = fields


class ServiceAnswer(serializers.Serializer[Any]):
    """The answer of /."""

    name = serializers.CharField()
    version = serializers.CharField()
    description = serializers.CharField()
    docs = serializers.CharField()
    health = serializers.CharField()
