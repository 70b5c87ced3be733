"""Compare the rollups with the request log, and tell where they disagree."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from datetime import timedelta
from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from monitoring.rollups.command import add_span_arguments, span_of
from monitoring.rollups.rebuild import rollups_differences

#: Differences that are told one by one.
TOLD = 50


class Command(BaseCommand):
    """For every night. Ends with status 1 where something is wrong; `rebuild_rollups` mends it."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --days, --from and --to."""
        parser.add_argument("--days", type=int, help="look at so many days up to now (and at the months they are in)")
        add_span_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Compare, and tell."""
        if options["days"]:
            options["begin"] = timezone.now() - timedelta(days=options["days"])
        differences = rollups_differences(*span_of(options))
        told = list(islice(differences, TOLD))
        for difference in told:
            self.stderr.write(str(difference))
        found = len(told) + sum(1 for _ in differences)
        if found:
            self.stderr.write(f"{found:,} rows of the rollups disagree with the log: run manage.py rebuild_rollups.")
            sys.exit(1)
        self.stdout.write("The rollups agree with the log.")
