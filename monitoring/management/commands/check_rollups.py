"""Compare the rollups with the request log, and the ledgers with both; list the differences."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.checks import require_state_store
from core.arguments import whole
from monitoring.reconciliation import TooManyWaiting, ledger_differences, ledger_months, ledgers_mend
from monitoring.rollups.periods import HOUR
from monitoring.rollups.verify import add_span_arguments, rollups_differences, span_of

#: Differences that are told one by one.
TOLD = 50


class Command(BaseCommand):
    """The worker does the same every night. Ends with status 1 where something is wrong, or could not be looked at."""

    help = __doc__
    requires_system_checks = []  # they ask for secrets that this process does without; `serve` makes them

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --days, --from, --to and --mend-ledgers."""
        days_help = "look at so many days up to now (and at the months they are in)"
        parser.add_argument("--days", type=whole(1, 36_500), help=days_help)
        add_span_arguments(parser)
        parser.add_argument(
            "--mend-ledgers",
            action="store_true",
            help="correct each ledger by its difference, while everything is healthy",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Compare, and tell."""
        require_state_store()
        now = timezone.now()
        if options["days"]:
            options["begin"] = now - timedelta(days=options["days"])
        are_right = self._compare_rollups(options)
        if options["until"] is None:
            options["until"] = now + HOUR  # a ledger may hold something of today though the log has nothing
        # What ledgers are compared with is read from the rollups: by wrong ones none is corrected.
        are_right = self._compare_ledgers(options, mend=options["mend_ledgers"] and are_right) and are_right
        if not are_right:
            sys.exit(1)

    def _compare_rollups(self, options: dict[str, Any]) -> bool:
        found = self._tell(rollups_differences(*span_of(options)))
        if found:
            self.stderr.write(f"{found:,} rows of the rollups disagree with the log: run manage.py rebuild_rollups.")
            return False
        self.stdout.write("The rollups agree with the log.")
        return True

    def _compare_ledgers(self, options: dict[str, Any], *, mend: bool) -> bool:
        try:
            wrong = list(ledger_differences(ledger_months(*span_of(options))))
            found = self._tell(iter(wrong))
            mended = len(ledgers_mend(wrong)) if mend else 0
        except RedisError as error:
            self.stderr.write(
                f"The state store did not answer ({type(error).__name__}): the ledgers could not be compared."
            )
            return False
        except TooManyWaiting:
            self.stderr.write("Too many records wait to be ingested: the ledgers could not be compared.")
            return False
        if mended:
            self.stdout.write(f"Corrected {mended:,} ledgers.")
        if found > mended:
            self.stderr.write(f"{found - mended:,} ledgers disagree with the records: see docs/operations.md, Rollups.")
            return False
        if not found:
            self.stdout.write("The ledgers agree with the records.")
        return True

    def _tell(self, differences: Iterator[object]) -> int:
        """Tell the first of the differences one by one; return how many there are."""
        told = list(islice(differences, TOLD))
        for difference in told:
            self.stderr.write(str(difference))
        return len(told) + sum(1 for _ in differences)
