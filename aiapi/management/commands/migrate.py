"""Django's migrate, which refuses databases that can't be upgraded."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import migrate

from accounts.checks import require_current_database


class Command(migrate.Command):
    """Called by an operator, by every deployment, and by `prepare` for bin/run."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate; raise CommandError with one line for a database of an earlier release."""
        require_current_database()
        super().handle(*args, **options)
