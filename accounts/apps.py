"""Django's configuration of the accounts app."""

from django.apps import AppConfig, apps


class AccountsConfig(AppConfig):
    """The accounts app; importing its checks registers them."""

    name = "accounts"
    verbose_name = "Customers"

    def ready(self) -> None:
        """Register the system checks, and name Django's users and groups as the sidebar does."""
        from accounts import checks  # noqa: F401

        apps.get_app_config("auth").verbose_name = "Security"
