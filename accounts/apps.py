"""The accounts app."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Give Django its checks."""

    name = "accounts"

    def ready(self) -> None:
        """Register the system checks."""
        from accounts import checks  # noqa: F401
