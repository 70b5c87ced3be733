"""Move usage records into the database, send alerts, prune, and check rollups and ledgers every night."""

from __future__ import annotations

import sys
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from accounts.checks import require_current_database, require_state_store
from core.background import run_step, stop_requests
from monitoring.ingester import Ingester
from monitoring.retention import prune_by_settings
from operations.alerts.conditions import HealthWatch
from operations.worker import Round, Worker

#: The parts of a round, in this order: the alerts then include the result of the check.
PARTS = ("ingest", "check", "watch", "prune")


class Command(BaseCommand):
    """Runs until SIGTERM, and finishes its batch. Several may run: one leads."""

    help = __doc__
    requires_system_checks = []  # they ask for secrets that this process does without; `serve` makes them

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --once."""
        once_help = "do one round of everything, or of the named parts, and end"
        parser.add_argument(
            "--once", nargs="*", choices=PARTS, metavar="PART", help=f"{once_help} ({', '.join(PARTS)})"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until SIGTERM; or do the parts of one round, even if one fails, and then exit with status 1."""
        require_state_store()
        require_current_database()
        if options["once"] is None:
            with stop_requests() as stopping:
                Worker(stopping).run()
            return
        self.round = Round(HealthWatch(bad_rounds=1, good_rounds=1))
        chosen = [part for part in PARTS if part in (options["once"] or PARTS)]
        went_well = [run_step(getattr(self, f"run_{part}"), event=f"{part}_failed") for part in chosen]
        if not all(went_well):
            sys.exit(1)

    def run_ingest(self) -> None:
        """Move the waiting records."""
        ingester = Ingester()
        written = ingester.run_once()
        ingester.leave()
        self.stdout.write(f"Ingested {written:,} records.")

    def run_check(self) -> None:
        """Compare rollups, ledgers and log."""
        self.round.reconciliation.check()
        self.stdout.write(self.round.reconciliation.wrong or "The rollups and the ledgers agree with the log.")

    def run_watch(self) -> None:
        """Check all conditions and send alerts, unless another worker leads."""
        began, sent = self.round.run()
        self.round.lock.give_back()
        others = "" if self.round.leads else "Another worker leads. "
        self.stdout.write(f"{others}{began} alerts began, {sent} deliveries arrived.")

    def run_prune(self) -> None:
        """Delete what the retention settings allow."""
        self.stdout.write(f"Pruned {prune_by_settings(wait=threading.Event().wait):,} rows.")
