"""The operations app: health, metrics, dashboard and alerts."""

from django.apps import AppConfig


class OperationsConfig(AppConfig):
    """The app's configuration. The app has no models: alerts' tables and permissions are monitoring's."""

    name = "operations"
