"""Move usage records into the database, send alerts, prune, and check rollups and ledgers every night."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand

from accounts.checks import require_current_database, require_state_store
from core.background import run_step, stop_requests
from operations.worker import PARTS, SingleRound, Worker


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
        """Work until SIGTERM, or do one round."""
        require_state_store()
        require_current_database()
        if options["once"] is not None:
            self._once(options["once"] or PARTS)
            return
        with stop_requests() as stopping:
            Worker(stopping).run()

    def _once(self, parts: Sequence[str]) -> None:
        """Do the parts in order, even if one fails; then exit with status 1."""
        once = SingleRound()
        steps = {"ingest": once.ingest, "check": once.check, "watch": once.watch, "prune": once.prune}
        chosen = [part for part in PARTS if part in parts]
        went_well = [run_step(partial(self._say, steps[part]), event=f"{part}_failed") for part in chosen]
        if not all(went_well):
            sys.exit(1)

    def _say(self, step: Callable[[], str]) -> None:
        self.stdout.write(step())
