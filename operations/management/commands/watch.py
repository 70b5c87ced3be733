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

from accounts.checks import require_state_store
from core.background import outlived, stop_requests
from monitoring.retention import prune_by_settings
from operations.alerts.conditions import HealthWatch
from operations.alerts.watch import Round

PRUNE_SECONDS = 3600.0


class Command(BaseCommand):
    """Runs until it is told to stop. Several may run: one watches and the others stand by, ready to take over."""

    help = __doc__
    requires_system_checks = []  # they ask for secrets that this process does without; `serve` makes them

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --once."""
        parser.add_argument("--once", action="store_true", help="go round once and end: for cron, and for trying it")

    def handle(self, *args: Any, **options: Any) -> None:
        """Go round once or until SIGTERM."""
        require_state_store()
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
        went_at = pruned_at = time.monotonic()

        def go_round() -> None:
            nonlocal went_at
            close_old_connections()
            outlived(round_.run, event="watch_failed")
            went_at = time.monotonic()

        def pause(seconds: float) -> bool:
            """Pause between two steps of pruning; it may take many minutes, in which others want to be alerted."""
            if time.monotonic() - went_at >= settings.WATCH_SECONDS:
                go_round()
            return stopping.wait(seconds)

        while not stopping.wait(settings.WATCH_SECONDS):
            go_round()
            if round_.watches and time.monotonic() - pruned_at >= PRUNE_SECONDS:
                pruned_at = time.monotonic()
                outlived(partial(prune_by_settings, wait=pause), event="pruning_failed")
