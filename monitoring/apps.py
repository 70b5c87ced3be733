"""The monitoring app."""

from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    """The app by its name."""

    name = "monitoring"
