"""The accounts app."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Register what the app adds to the others when Django starts."""

    name = "accounts"

    def ready(self) -> None:
        """Register the app's system checks."""
        from accounts import checks  # noqa: F401
