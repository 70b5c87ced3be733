"""The Django app for what concerns the whole project: settings, system checks, pages, URLs and the server."""

from django.apps import AppConfig


class AiApiConfig(AppConfig):
    """The configuration of the aiapi app."""

    name = "aiapi"

    def ready(self) -> None:
        """Register the app's system checks."""
        from aiapi import checks  # noqa: F401
