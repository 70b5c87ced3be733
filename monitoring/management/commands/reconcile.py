"""Compare the usage that a provider exports, by day and model, with the records of calls to it."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from accounts.audit import audit_event
from core.formats import NOTHING
from monitoring.provider_usage import FORMATS, KIND, RECONCILED, Line, UnreadableUsage, compare, parse_export


class Command(BaseCommand):
    """Prints a line for each day and model, and for each difference the records that may explain it."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take whose export it is, and the file."""
        parser.add_argument("format", choices=FORMATS, help="whose export it is")
        parser.add_argument("file", type=Path, help="JSON of the usage API, or CSV of the console")
        parser.add_argument("--provider", help="the provider's name here; without it, that of the format")

    def handle(self, *args: Any, **options: Any) -> None:
        """Compare, print, and note the outcome for the usage report."""
        provider = options["provider"] or options["format"]
        try:
            theirs = parse_export(options["file"].read_bytes())
        except OSError as error:
            raise CommandError(f"{options['file']} can't be read: {error.strerror}.") from error
        except UnreadableUsage as error:
            raise CommandError(f"{options['file']}: {error}") from error
        lines = compare(theirs, provider=provider)
        if not any(line.ours.requests for line in lines):
            raise CommandError(f"No records of calls to the provider '{provider}' on these days: see --provider.")
        self._print(lines)
        differing = [line for line in lines if line.difference]
        total = sum(line.theirs.input_tokens + line.theirs.output_tokens for line in lines)
        details = {
            "provider": provider,
            "first": str(lines[0].day),
            "last": str(lines[-1].day),
            "tokens": total,
            "difference": sum(line.difference for line in lines),
            "differing": len(differing),
            "compared": len(lines),
        }
        audit_event(actor="command:reconcile", action=RECONCILED, kind=KIND, details=details)
        self.stdout.write(
            f"{len(differing)} of {len(lines)} lines differ, by {details['difference']:+,} tokens in all."
        )

    def _print(self, lines: list[Line]) -> None:
        form = "{:10}  {:32}  {:>17}  {:>25}  {:>25}  {:>12}"
        self.stdout.write(
            form.format("day", "model", "requests", "input tokens", "output tokens", "difference")
            + "\n(the provider's / ours)"
        )
        for line in lines:
            theirs, ours = line.theirs, line.ours
            requests = NOTHING if theirs.requests is None else f"{theirs.requests:,}"
            pairs = [
                f"{requests} / {ours.requests:,}",
                f"{theirs.input_tokens:,} / {ours.input_tokens:,}",
                f"{theirs.output_tokens:,} / {ours.output_tokens:,}",
            ]
            self.stdout.write(form.format(str(line.day), line.model, *pairs, f"{line.difference:+,}"))
            if line.difference:
                for label, why in line.inexact:
                    self.stdout.write(f"            {label}: {why}")
