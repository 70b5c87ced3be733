"""Write usage by time and by account, key, model or endpoint to a file or to standard output."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management import CommandError
from django.utils import timezone

from monitoring.export import KIND, ExportCommand, account_id_of, usage_batches, usage_columns
from monitoring.rollups.periods import Unit, month_begin
from monitoring.rollups.queries import GROUPS, TooOld


class Command(ExportCommand):
    """Reads the sums, not the log: they reach back further than the records do."""

    help = __doc__
    kind, name = KIND, "export_usage"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take how to split it."""
        super().add_arguments(parser)
        parser.add_argument("--unit", choices=[str(unit) for unit in Unit], default=str(Unit.DAY), help="of time (UTC)")
        parser.add_argument("--by", choices=list(GROUPS), default="account", help="one row for each of them")

    def handle(self, *args: Any, **options: Any) -> None:
        """Export; without --from, the present month so far."""
        now = timezone.now()
        try:
            batches = usage_batches(
                begin=options["begin"] or month_begin(now),
                end=options["end"] or now,
                unit=Unit(options["unit"]),
                by=options["by"],
                account_id=account_id_of(options["account"]),
            )
        except TooOld as error:
            raise CommandError(str(error)) from error
        self.export(usage_columns(options["by"]), batches, options)
