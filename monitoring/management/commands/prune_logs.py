"""Delete old request records and rollups, expired content and kept answers, in small batches."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from redis.exceptions import RedisError

from core.arguments import whole
from core.background import stop_requests
from monitoring.retention import (
    old_records,
    prune_content,
    prune_idempotent_answers,
    prune_records,
    prune_rollups,
    record_cutoff,
    rollup_cutoff,
)


class Command(BaseCommand):
    """Can be stopped at any time (Ctrl-C, SIGTERM) and run again: each step is whole."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --days and --dry-run."""
        parser.add_argument(
            "--days",
            type=whole(1, 36_500),
            help="days that records are kept, the last two always (default: LOG_RETENTION_DAYS)",
        )
        parser.add_argument("--dry-run", action="store_true", help="count the records, and delete nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prune, and say what was done."""
        with stop_requests() as stopping:
            if not options["dry_run"]:
                content = prune_content(wait=stopping.wait)
                self.stdout.write(f"Pruned the content of {content.rows:,} requests that had expired ({content}).")
                answers = prune_idempotent_answers(wait=stopping.wait)
                self.stdout.write(f"Pruned {answers.rows:,} answers kept under Idempotency-Keys ({answers}).")
                before = rollup_cutoff(settings.ROLLUP_RETENTION_DAYS)
                if before is not None:
                    rollups = prune_rollups(before, wait=stopping.wait)
                    self.stdout.write(f"Pruned {rollups.rows:,} rollups from before {before:%Y-%m-%d} ({rollups}).")
            days = settings.LOG_RETENTION_DAYS if options["days"] is None else options["days"]
            if days < 1:
                raise CommandError("Records are kept forever: LOG_RETENTION_DAYS is 0. Give --days, 1 or more.")
            try:
                cutoff = record_cutoff(days)
            except RedisError as error:
                cause = f"The state store did not answer ({type(error).__name__})"
                raise CommandError(f"{cause}: which records may be deleted is unknown.") from error
            from_before = f"records from before {cutoff.at:%Y-%m-%d %H:%M} UTC"
            if options["dry_run"]:
                self.stdout.write(f"Would prune {old_records(cutoff.at).count():,} {from_before}.")
            else:
                pruned = prune_records(cutoff.at, wait=stopping.wait)
                self.stdout.write(f"Pruned {pruned.rows:,} {from_before} ({pruned}).")
            if cutoff.is_protected:
                self.stdout.write(
                    f"Those from then to {cutoff.wanted:%Y-%m-%d %H:%M} UTC stay for now: calls of the last two days, "
                    "and of the two before the oldest record that waits to be ingested, may still be corrected."
                )
