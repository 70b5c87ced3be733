"""The base of the management commands that export a table to a file or to standard output."""

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
from core.arguments import datetime_argument, require_order
from monitoring.export import Format, Row, encoded


class ExportCommand(BaseCommand):
    """Exports a table. A file is written as NAME.partial and renamed when it is complete."""

    #: `kind`: what is exported, in the audit log; `name`: the command's name.
    kind = name = ""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments that all exports share."""
        parser.add_argument("--format", choices=[str(each) for each in Format], default=str(Format.CSV))
        parser.add_argument("--from", dest="begin", type=datetime_argument, help="ISO date or date-time (UTC)")
        parser.add_argument("--to", dest="end", type=datetime_argument, help="the same; not included")
        parser.add_argument("--account", metavar="NAME", help="of this account only")
        parser.add_argument("--output", metavar="FILE", help="default: standard output")
        parser.add_argument("--gzip", action="store_true", help="compress; implied if FILE ends in .gz")

    def export(self, columns: Sequence[str], batches: Iterable[Sequence[Row]], options: dict[str, Any]) -> None:
        """Write the rows, print their number on standard error, and write an audit entry. Raises CommandError."""
        require_order(options["begin"], options["end"])
        file_format, output = Format(options["format"]), options["output"]
        told = ("format", "begin", "end", "account", "output", "key", "model", "endpoint", "unit", "by")
        details = {name: str(options[name]) for name in told if options.get(name)}
        audit_event(actor=f"command:{self.name}", action="exported", kind=self.kind, details=details)
        rows = 0

        def counted() -> Iterator[Sequence[Row]]:
            nonlocal rows
            for batch in batches:
                rows += len(batch)
                yield batch

        is_packed = options["gzip"] or str(output or "").endswith(".gz")
        with _opened(output) as file:
            for chunk in encoded(columns, counted(), file_format, is_packed=is_packed):
                file.write(chunk)
        self.stderr.write(f"Exported {rows:,} {self.kind}s.")


def account_id_of(name: str | None) -> int | None:
    """Return the id of the account of that name; None for no name. Raises CommandError if no account has it."""
    if not name:
        return None
    found = Account.objects.filter(name=name).values_list("pk", flat=True).first()
    if found is None:
        raise CommandError(f"No account is named {name}.")
    return found


@contextmanager
def _opened(output: str | None) -> Iterator[BinaryIO]:
    """Open the output. A closed pipe on standard output (`| head`) ends the command without an error."""
    if output is None:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit goes there
        return
    path, partial = Path(output), Path(f"{output}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"{path} can't be written: {error.strerror}") from None
