"""Compute the cost of past calls anew, by the prices that now stand for their time, in records, sums and ledgers."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts.audit import audit_event
from accounts.checks import require_state_store
from core.arguments import datetime_argument, require_order
from core.formats import exact_money, quantity
from inference.models import Model
from inference.repricing import Outcome, Pruned, preview, records_of, reprice
from monitoring.ingester import ingest_backlog
from monitoring.models import RequestRecord
from monitoring.reconciliation import ledger_differences, ledger_months, ledgers_fix

#: Seconds between two transactions, so that requests get their turn.
PAUSE = 0.05


class Command(BaseCommand):
    """First enter the right price, valid from when it holds. The command says what changes before it does so."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the span, a model, and whether to ask."""
        form = "ISO date or date-time (UTC)"
        parser.add_argument("--from", dest="begin", type=datetime_argument, required=True, help=form)
        parser.add_argument("--to", dest="end", type=datetime_argument, required=True, help=f"{form}, not included")
        parser.add_argument("--model", metavar="NAME", default="", help="of this model only, by its public name")
        parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *args: Any, **options: Any) -> None:
        """Preview, ask, change, and compare the ledgers with the records."""
        begin, end, model = options["begin"], options["end"], options["model"]
        require_order(begin, end)
        if end > timezone.now():
            raise CommandError("--to must not be in the future.")
        if model and not (Model.objects.filter(public_name=model).exists() or _was_called(model)):
            raise CommandError(f"No model is named {model}.")
        require_state_store()
        if (timezone.now() - end).total_seconds() < ingest_backlog().seconds:
            raise CommandError("Records of this span still wait for the worker: try again when it has ingested them.")
        try:
            records = records_of(begin, end, model)
        except Pruned:
            raise CommandError("The log no longer has all records of this span, so it can't be repriced.") from None
        outcome = preview(records)
        self._print(outcome)
        if options["dry_run"]:
            return
        if outcome.records:
            if not options["yes"] and input("Change these costs? [y/N] ").strip().lower() not in ("y", "yes"):
                raise CommandError("Nothing was changed.")
            details = {"from": begin.isoformat(), "to": end.isoformat(), "model": model or "all"}
            details |= {"records": f"{outcome.records.total()}", "difference": f"{outcome.difference.total()}"}
            kind = str(RequestRecord._meta.verbose_name)
            audit_event(actor="command:reprice", action="repriced", kind=kind, details=details)
            done = reprice(records, wait=lambda: time.sleep(PAUSE))
            self.stdout.write(f"Changed {quantity(done.records.total(), 'record')}.")
        # Of an earlier run that was ended between the records and the ledgers, or of a call that came in between.
        fixed = ledgers_fix(ledger_differences(ledger_months(begin, end)))
        for difference in fixed:
            self.stdout.write(f"Corrected the {difference}.")

    def _print(self, outcome: Outcome) -> None:
        for account, number in sorted(outcome.records.items()):
            more = outcome.difference[account]
            sign = "+" if more > 0 else "-" if more < 0 else ""
            self.stdout.write(f"{account}: {quantity(number, 'record')}, {sign}{exact_money(abs(more))}")
        if not outcome.records:
            self.stdout.write("Every cost that can be computed is right.")
        for reason, number in sorted(outcome.kept.items()):
            self.stdout.write(f"Kept as they are: {quantity(number, 'record')} {reason}.")


def _was_called(model: str) -> bool:
    return RequestRecord.objects.filter(model=model).exists()
