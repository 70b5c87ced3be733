"""The operations app."""

from django.apps import AppConfig


class OperationsConfig(AppConfig):
    """What operators look at; it has no models of its own."""

    name = "operations"
