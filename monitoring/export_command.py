"""What the commands that write a table to a file or to standard output share."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError

from accounts.audit import audit_event
from accounts.models import Account
from core.times import require_order, typed_moment
from monitoring.export import Format, Row, encoded, gzipped


class ExportCommand(BaseCommand):
    """Writes whole files only: one that is broken off keeps the name NAME.partial."""

    #: What is exported, for the audit log, and the name of the command.
    kind = name = ""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take what every export takes."""
        parser.add_argument("--format", choices=[str(each) for each in Format], default=str(Format.CSV))
        parser.add_argument("--from", dest="begin", type=typed_moment, help="ISO date or date-time (UTC)")
        parser.add_argument("--to", dest="end", type=typed_moment, help="the same; not included")
        parser.add_argument("--account", metavar="NAME", help="of this account only")
        parser.add_argument("--output", metavar="FILE", help="default: standard output")
        parser.add_argument("--gzip", action="store_true", help="compress; a FILE that ends in .gz says so itself")

    def export(self, columns: Sequence[str], batches: Iterable[Sequence[Row]], options: dict[str, Any]) -> None:
        """Write the rows, tell on standard error how many, and leave an audit entry."""
        require_order(options["begin"], options["end"])
        file_format, output = Format(options["format"]), options["output"]
        told = ("format", "begin", "end", "account", "output", "key", "model", "endpoint", "unit", "by")
        details = {name: str(options[name]) for name in told if options.get(name)}
        audit_event(actor=f"command:{self.name}", action="exported", kind=self.kind, details=details)
        counter = _Counter()
        chunks = encoded(columns, counter.counted(batches), file_format)
        if options["gzip"] or str(output or "").endswith(".gz"):
            chunks = gzipped(chunks)
        with _opened(output) as file:
            for chunk in chunks:
                file.write(chunk)
        self.stderr.write(f"Exported {counter.rows:,} {self.kind}s.")


class _Counter:
    """Counts rows as they pass."""

    rows = 0

    def counted(self, batches: Iterable[Sequence[Row]]) -> Iterator[Sequence[Row]]:
        """Pass batches on."""
        for batch in batches:
            self.rows += len(batch)
            yield batch


def account_id_of(name: str | None) -> int | None:
    """Find an account's id; None stays None. Raises CommandError if there is none of that name."""
    if not name:
        return None
    found = Account.objects.filter(name=name).values_list("pk", flat=True).first()
    if found is None:
        raise CommandError(f"No account is named {name}.")
    return found


@contextmanager
def _opened(output: str | None) -> Iterator[BinaryIO]:
    """Open what is written to. A reader of standard output that has had enough (`| head`) ends the command quietly."""
    if output is None:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at exit goes there
        return
    path, partial = Path(output), Path(f"{output}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"{path} can't be written: {error.strerror}") from None
