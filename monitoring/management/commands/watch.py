"""Watch over budgets, errors, providers and the ingester, and send alerts; prune what has had its time."""

from __future__ import annotations

import threading
import time
from argparse import ArgumentParser
from functools import partial
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import close_old_connections

from accounts.loops import outlived
from monitoring.alerts.conditions import HealthWatch
from monitoring.alerts.watch import Round
from monitoring.retention import prune_by_settings
from monitoring.stopping import stop_requests

PRUNE_SECONDS = 3600.0


class Command(BaseCommand):
    """Runs until it is told to stop. Several may run: one watches and the others stand by, ready to take over."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --once."""
        parser.add_argument("--once", action="store_true", help="go round once and end: for cron, and for trying it")

    def handle(self, *args: Any, **options: Any) -> None:
        """Go round once or until SIGTERM."""
        if options["once"]:
            self._once()
            return
        with stop_requests() as stopping:
            round_ = Round()
            self._loop(round_, stopping)
            outlived(round_.turn.give_back, event="watch_failed")

    def _once(self) -> None:
        round_ = Round(HealthWatch(bad_rounds=1, good_rounds=1))
        began, sent = round_.run()
        round_.turn.give_back()
        others = "" if round_.watches else "Another process watches. "
        self.stdout.write(f"{others}{began} alerts began, {sent} deliveries arrived.")

    def _loop(self, round_: Round, stopping: threading.Event) -> None:
        """Go round; pruning has a turn each hour, the first after one. Trouble of any kind is logged and outlived."""
        pruned_at = time.monotonic()
        while not stopping.wait(settings.WATCH_SECONDS):
            close_old_connections()
            outlived(round_.run, event="watch_failed")
            if round_.watches and time.monotonic() - pruned_at >= PRUNE_SECONDS:
                pruned_at = time.monotonic()
                outlived(partial(prune_by_settings, wait=stopping.wait), event="pruning_failed")
