"""What the endpoints of monitoring answer."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from accounts.serializers import StandingAnswer
from monitoring.models import RequestRecord


class StatsAnswer(serializers.Serializer[Any]):
    """What /stats answers, over the model endpoints."""

    total_requests = serializers.IntegerField()
    cache_hits = serializers.IntegerField(help_text="Coalesced answers included.")
    cache_misses = serializers.IntegerField()
    cache_hit_rate = serializers.FloatField(help_text="Hits of hits and misses, three decimals; 0 without either.")
    total_api_keys = serializers.IntegerField(
        help_text="Keys that work now: those in a grace period too, and none that is expired."
    )
    requests_by_key = serializers.DictField(
        child=serializers.IntegerField(), help_text="By the key's name; for staff by `account/name`."
    )


class ErrorCounts(serializers.Serializer[Any]):
    """Requests that were not answered, by why."""

    invalid = serializers.IntegerField(help_text="Refused as they were: 4xx other than 429.")
    limited = serializers.IntegerField(help_text="Refused by a limit: 429.")
    failed = serializers.IntegerField(help_text="5xx.")


class Quantiles(serializers.Serializer[Any]):
    """Milliseconds, within 5 %."""

    p50 = serializers.FloatField()
    p95 = serializers.FloatField()
    p99 = serializers.FloatField()


class FiguresAnswer(serializers.Serializer[Any]):
    """What requests add up to. Money is a text in US dollars."""

    requests = serializers.IntegerField()
    # The stubs take it for the serializer's own attribute.
    errors = ErrorCounts()  # type: ignore[assignment]
    cache_hits = serializers.IntegerField(help_text="Coalesced answers included.")
    cache_misses = serializers.IntegerField()
    cache_hit_rate = serializers.FloatField(help_text="Hits of hits and misses, three decimals; 0 without either.")
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField(help_text="Part of the input tokens.")
    output_tokens = serializers.IntegerField()
    cost = serializers.CharField(
        allow_null=True,
        help_text="Of requests whose price is known; null where none is. With others, it is at least that.",
    )
    unpriced_requests = serializers.IntegerField(help_text="Requests of models without a price, whose cost is unknown.")
    saved_cost = serializers.CharField(help_text="What cached, coalesced and replayed answers would have cost.")
    latency_ms = Quantiles(allow_null=True, help_text="Of what was answered or failed; null where nothing was.")
    first_token_ms = Quantiles(allow_null=True, help_text="Of streams; null where there was none.")


class UsageEntry(FiguresAnswer):
    """One bucket of time, one group, or one of both. Where nothing was asked, there is no entry."""

    start = serializers.DateTimeField(required=False)
    key = serializers.CharField(required=False)
    model = serializers.CharField(required=False, help_text="Empty: refused before a model was known.")
    endpoint = serializers.CharField(required=False)


class UsageFigures(serializers.Serializer[Any]):
    """What the account used in a span of time."""

    to = serializers.DateTimeField(help_text="Excluded.")
    time_zone = serializers.CharField()
    group_by = serializers.ListField(child=serializers.CharField())
    totals = FiguresAnswer()
    series = UsageEntry(many=True)

    def get_fields(self) -> dict[str, Any]:
        """Add the field whose name Python reserves."""
        return {"from": serializers.DateTimeField(), **super().get_fields()}


class UsageAnswer(StandingAnswer):
    """What GET /usage answers."""

    usage = UsageFigures()


class RecordAnswer(serializers.ModelSerializer[RequestRecord]):
    """What /requests/{id} answers: one request as it was answered and billed."""

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
    """What / answers."""

    name = serializers.CharField()
    version = serializers.CharField()
    description = serializers.CharField()
    docs = serializers.CharField()
    health = serializers.CharField()
