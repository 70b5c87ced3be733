"""operations.serializers"""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from operations.health import Health


class HealthAnswer(serializers.Serializer[Any]):
    """What /health answers."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])
    checks = serializers.DictField(child=serializers.ChoiceField(choices=[str(state) for state in Health]))
    reasons = serializers.DictField(
        child=serializers.CharField(), required=False, help_text="Of parts that are not well, where it is known."
    )
    response_time_ms = serializers.FloatField()


class ProbeAnswer(serializers.Serializer[Any]):
    """What /health/live and /health/ready answer."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])
