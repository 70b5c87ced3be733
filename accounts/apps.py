"""Django's configuration of the accounts app."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """The accounts app; importing its checks registers them."""

    name = "accounts"
    verbose_name = "Customers"

    def ready(self) -> None:
        """Register the system checks."""
        from accounts import checks  # noqa: F401
