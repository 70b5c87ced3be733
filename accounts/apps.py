"""The accounts app."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Give the limits their journal, and Django its checks."""

    name = "accounts"

    def ready(self) -> None:
        """Register the system checks and install the journal of the in-process limits."""
        from accounts import checks  # noqa: F401
        from accounts.journal import DatabaseJournal
        from accounts.limits import install

        install(journal=DatabaseJournal())
