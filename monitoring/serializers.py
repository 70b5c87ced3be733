"""What the endpoints of monitoring answer."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from monitoring.health import Health
from monitoring.models import RequestRecord


class StatsAnswer(serializers.Serializer[Any]):
    """What /stats answers, over the model endpoints."""

    total_requests = serializers.IntegerField()
    cache_hits = serializers.IntegerField(help_text="Coalesced answers included.")
    cache_misses = serializers.IntegerField()
    cache_hit_rate = serializers.FloatField(help_text="Hits of hits and misses, three decimals; 0 without either.")
    total_api_keys = serializers.IntegerField(help_text="Keys that are not revoked.")
    requests_by_key = serializers.DictField(
        child=serializers.IntegerField(), help_text="By the key's name; for staff by `account/name`."
    )


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


class HealthAnswer(serializers.Serializer[Any]):
    """What /health answers."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])
    checks = serializers.DictField(child=serializers.ChoiceField(choices=[str(state) for state in Health]))
    response_time_ms = serializers.FloatField()


class ProbeAnswer(serializers.Serializer[Any]):
    """What /health/live and /health/ready answer."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])


class ServiceAnswer(serializers.Serializer[Any]):
    """What / answers."""

    name = serializers.CharField()
    version = serializers.CharField()
    description = serializers.CharField()
    docs = serializers.CharField()
    health = serializers.CharField()
