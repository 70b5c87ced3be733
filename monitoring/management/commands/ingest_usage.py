"""Move usage records from Redis into the database."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import close_old_connections

from accounts.checks import require_state_store
from core.background import outlived, stop_requests
from monitoring.ingester import Ingester

IDLE_SECONDS = 0.2
TROUBLE_SECONDS = 1.0


class Command(BaseCommand):
    """Runs until it is told to stop; a batch that was begun is ended first."""

    help = __doc__
    requires_system_checks = []  # they ask for secrets that this process does without; `serve` makes them

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --once."""
        parser.add_argument("--once", action="store_true", help="move what is there, print how much, and end")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ingest once or until SIGTERM."""
        require_state_store()
        ingester = Ingester()
        if options["once"]:
            self.stdout.write(f"Ingested {ingester.run_once():,} records.")
            return
        with stop_requests() as stopping:
            while not stopping.is_set():
                stopping.wait(self._pause_after(ingester))

    def _pause_after(self, ingester: Ingester) -> float:
        """Do one round, and answer how long to wait before the next one (seconds). Trouble is logged and outlived."""
        close_old_connections()
        moved: list[int] = []
        if not outlived(lambda: moved.append(ingester.run_once()), event="ingest_failed"):
            return TROUBLE_SECONDS
        return 0.0 if any(moved) else IDLE_SECONDS
