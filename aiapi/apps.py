"""The aiapi app."""

from django.apps import AppConfig


class AiApiConfig(AppConfig):
    """Register what the app adds to the others when Django starts."""

    name = "aiapi"

    def ready(self) -> None:
        """Register the app's system checks."""
        from aiapi import checks  # noqa: F401
