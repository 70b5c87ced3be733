"""Compare the rollups with the request log, and the ledgers with both; list the differences."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.checks import require_state_store
from core.arguments import whole
from monitoring.reconciliation import TooManyWaiting, ledger_differences, ledger_months, ledgers_fix
from monitoring.rollups.periods import HOUR
from monitoring.rollups.verify import add_span_arguments, rollups_differences, span_of

#: Differences that are listed one by one.
LISTED = 50


class Command(BaseCommand):
    """The worker does the same every night. Ends with status 1 where something is wrong, or could not be looked at."""

    help = __doc__
    requires_system_checks = []  # they ask for secrets that this process does without; `serve` makes them

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --days, --from, --to and --fix-ledgers."""
        days_help = "look at so many days up to now (and at the months they are in)"
        parser.add_argument("--days", type=whole(1, 36_500), help=days_help)
        add_span_arguments(parser)
        parser.add_argument(
            "--fix-ledgers",
            "--mend-ledgers",  # its earlier name
            dest="fix_ledgers",
            action="store_true",
            help="correct each ledger by its difference, while everything is healthy",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Compare, and list the differences."""
        require_state_store()
        now = timezone.now()
        if options["days"]:
            options["begin"] = now - timedelta(days=options["days"])
        wrong = self._list(rollups_differences(*span_of(options)))
        if wrong:
            self.stderr.write(f"{wrong:,} rows of the rollups disagree with the log: run manage.py rebuild_rollups.")
        else:
            self.stdout.write("The rollups agree with the log.")
        if options["until"] is None:
            options["until"] = now + HOUR  # a ledger may hold something of today though the log has nothing
        # What ledgers are compared with is read from the rollups: by wrong ones none is corrected.
        if not self._are_ledgers_right(options, fix=options["fix_ledgers"] and not wrong) or wrong:
            sys.exit(1)

    def _are_ledgers_right(self, options: dict[str, Any], *, fix: bool) -> bool:
        try:
            wrong = list(ledger_differences(ledger_months(*span_of(options))))
            self._list(wrong)
            fixed = len(ledgers_fix(wrong)) if fix else 0
        except RedisError as error:
            cause = type(error).__name__
            self.stderr.write(f"The state store did not answer ({cause}): the ledgers could not be compared.")
            return False
        except TooManyWaiting:
            self.stderr.write("Too many records wait to be ingested: the ledgers could not be compared.")
            return False
        if fixed:
            self.stdout.write(f"Corrected {fixed:,} ledgers.")
        left = len(wrong) - fixed
        if left:
            self.stderr.write(f"{left:,} ledgers disagree with the records: see docs/operations.md, Rollups.")
        elif not wrong:
            self.stdout.write("The ledgers agree with the records.")
        return not left

    def _list(self, differences: Iterable[object]) -> int:
        """List the first of the differences one by one; return how many there are."""
        number = 0
        for number, difference in enumerate(differences, start=1):
            if number <= LISTED:
                self.stderr.write(str(difference))
        return number
