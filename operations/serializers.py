"""Serializers of the answers of the health endpoints."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from operations.health import Health


class HealthAnswer(serializers.Serializer[Any]):
    """The answer of /health."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])
    checks = serializers.DictField(child=serializers.ChoiceField(choices=[str(state) for state in Health]))
    reasons = serializers.DictField(
        child=serializers.CharField(), required=False, help_text="Reasons by name of a failed check, if known."
    )
    response_time_ms = serializers.FloatField()


class ProbeAnswer(serializers.Serializer[Any]):
    """The answer of /health/live and /health/ready."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])
