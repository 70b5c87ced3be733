"""Rebuild the rollups from the request log."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from monitoring.rollups.verify import add_span_arguments, rollups_rebuild, span_of


class Command(BaseCommand):
    """Safe at any time: workers and requests go on. What is right stays as it is."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --from and --to."""
        add_span_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Rebuild, and say how much was wrong."""
        fixed = sum(1 for _ in rollups_rebuild(*span_of(options)))
        self.stdout.write(f"Fixed {fixed:,} rows of the rollups." if fixed else "The rollups agree with the log.")
