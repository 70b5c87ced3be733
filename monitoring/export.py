"""Export the request log and usage as CSV or JSON Lines, in batches, so that memory does not grow with the table.

Datetimes are ISO 8601 in UTC, money is a decimal string. In CSV, a text that a spreadsheet would read as a formula is
prefixed with an apostrophe (OWASP, CSV Injection); JSON Lines holds every text unchanged.

The request log has one row a record, in order of time. Usage has one row for each period and each account, key, model
or endpoint.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
import zlib
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Max, Min, QuerySet

from accounts.audit import audit_event
from accounts.models import Account
from core.arguments import datetime_argument, require_order
from core.database import release_connections
from core.keyset import Place, stretch
from monitoring.models import RequestRecord, Rollup
from monitoring.rollups.figures import QUANTILES
from monitoring.rollups.periods import DAY, QUARTER, Unit, buckets, ceiling, datetime_of, floor
from monitoring.rollups.queries import CALLERS, EVERYTHING, Scope, span_parts, usage_series

Row = Sequence[Any]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
GZIP_WINDOW = 31  # zlib: the largest window, with gzip's header (RFC 1952)


class Format(StrEnum):
    """The file formats."""

    CSV = "csv"
    JSONL = "jsonl"

    @property
    def content_type(self) -> str:
        """Return the media type."""
        return "text/csv; charset=utf-8" if self is Format.CSV else "application/x-ndjson"


def encoded(
    columns: Sequence[str], batches: Iterable[Sequence[Row]], file_format: Format, *, is_packed: bool = False
) -> Iterator[bytes]:
    """Encode each batch of rows as one chunk; CSV begins with a line of column names. `is_packed`: compress by gzip."""
    compressor = zlib.compressobj(wbits=GZIP_WINDOW)

    def chunks() -> Iterator[bytes]:
        if file_format is Format.CSV:
            yield _csv([columns])
            yield from map(_csv, batches)
            return
        for batch in batches:
            lines = (dict(zip(columns, map(plain, row), strict=True)) for row in batch)
            texts = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines)
            yield "".join(f"{text}\n" for text in texts).encode()

    if not is_packed:
        yield from chunks()
        return
    for chunk in chunks():
        if packed := compressor.compress(chunk):
            yield packed
    yield compressor.flush()


def plain(value: Any) -> Any:
    """Convert a database value for JSON: datetimes, decimals and UUIDs become strings."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value) if isinstance(value, UUID) else value


def _csv(rows: Iterable[Row]) -> bytes:
    def cell(value: Any) -> Any:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str) and value.startswith(FORMULA_STARTS):
            return f"'{value}"
        return plain(value)

    buffer = io.StringIO()
    csv.writer(buffer).writerows([cell(value) for value in row] for row in rows)
    return buffer.getvalue().encode()


#: Columns of the file, and the model field of each.
COLUMNS = (
    *("id", "label", "admitted_at", "account", "account_id", "key", "key_id", "endpoint", "model", "deployment"),
    *("status", "error_code", "cache", "input_tokens", "cached_tokens", "output_tokens"),
    *("cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens", "web_searches", "service_tier"),
    *("cost", "saved_cost"),
    *("usage_source", "is_partial", "is_overrun", "latency_ms", "first_token_ms", "attempts", "stages", "failures"),
    "count",
)
FIELDS = tuple({"account": "account_name", "key": "key_name"}.get(column, column) for column in COLUMNS)
ID, ADMITTED_AT = COLUMNS.index("id"), COLUMNS.index("admitted_at")
#: Rows in a query. SQLite's driver does not release the GIL while it reads them: some milliseconds.
BATCH = 500


def records_within(
    begin: datetime | None = None, end: datetime | None = None, scope: Scope = EVERYTHING
) -> QuerySet[RequestRecord]:
    """Select the records of a scope that were admitted in a span (`end` excluded); None leaves that end open."""
    records = RequestRecord.objects.filter(**scope.columns)
    if begin is not None:
        records = records.filter(admitted_at__gte=begin)
    return records if end is None else records.filter(admitted_at__lt=end)


def record_batches(records: QuerySet[RequestRecord]) -> Iterator[Sequence[Row]]:
    """Read records in batches by (admitted_at, id), oldest first, up to the newest at the time of the call.

    Each batch is its own query, which continues after the last row of the one before. No connection is held between
    batches, so a slow download does not take one from requests; other threads run between batches too.
    """
    newest = stretch(records, "admitted_at", is_newer=False).values_list("admitted_at", "pk").first()
    if newest is None:
        return
    after, last = None, Place(*newest)
    while batch := list(stretch(records, "admitted_at", after, last).values_list(*FIELDS)[:BATCH]):
        after = Place(batch[-1][ADMITTED_AT], batch[-1][ID])
        release_connections()
        time.sleep(0)
        yield batch


#: Keys of Figures.as_answer whose values are plain numbers or strings.
PLAIN = (
    *("cache_hits", "cache_misses", "cache_hit_rate", "input_tokens", "cached_tokens", "output_tokens"),
    *("cache_write_tokens", "reasoning_tokens", "cost", "unpriced_requests", "saved_cost"),
)
#: The kind of the exported objects in the audit log.
KIND = "usage row"
TIMED = ("latency_ms", "first_token_ms")
ERRORS = ("invalid", "limited", "failed")


def usage_columns(by: str) -> tuple[str, ...]:
    """Return the column names of a usage file that is grouped by `by`."""
    times = (f"{name}_{quantile}" for name in TIMED for quantile in QUANTILES)
    return ("start", by, f"{by}_id", "requests", *(f"{name}_requests" for name in ERRORS), *PLAIN, *times)


def usage_batches(
    *, begin: datetime, end: datetime, unit: Unit, by: str, account_id: int | None = None
) -> Iterator[Sequence[Row]]:
    """Read usage of a span (UTC) from the rollups, one batch an hour, day or month; periods without requests have none.

    No connection is held between batches, so a slow download does not take one from requests. Raises TooOld at once.
    """
    days = Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_DAY).aggregate(first=Min("start"), last=Max("start"))
    if days["first"] is None:
        return iter(())
    # The span may begin in the year 1: only days that have rollups are divided.
    kept = max(floor(begin, QUARTER), days["first"]), min(ceiling(end, QUARTER), days["last"] + DAY)
    divided = list(buckets(*kept, unit, UTC))
    if by in CALLERS or account_id is not None:
        span_parts((first, last) for first, last, _ in divided)

    def rows(first: int, last: int, start: int) -> Sequence[Row]:
        """Return the rows of the period that begins at minute `start`, for its part from `first` to `last`."""
        begin, end = datetime_of(first), datetime_of(last)
        points = usage_series(begin=begin, end=end, scope=Scope(account_id=account_id), by=by)
        release_connections()
        time.sleep(0)  # let other threads run, also during a long span without requests
        answers = [(point, point.figures.as_answer()) for point in points]
        return [
            [
                datetime_of(start),
                point.group or "",
                point.group_id,
                answer["requests"],
                *(answer["errors"][name] for name in ERRORS),
                *(answer[name] for name in PLAIN),
                *((answer[name] or {}).get(quantile) for name in TIMED for quantile in QUANTILES),
            ]
            for point, answer in answers
        ]

    return (batch for first, last, start in divided if (batch := rows(first, last, start or first)))


class ExportCommand(BaseCommand):
    """The base of the commands that export a table. A file is written as NAME.partial and renamed when complete."""

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
        output = options["output"]
        named = ("format", "begin", "end", "account", "output", "key", "model", "endpoint", "unit", "by")
        details = {name: str(options[name]) for name in named if options.get(name)}
        audit_event(actor=f"command:{self.name}", action="exported", kind=self.kind, details=details)
        rows = 0

        def counted() -> Iterator[Sequence[Row]]:
            nonlocal rows
            for batch in batches:
                rows += len(batch)
                yield batch

        is_packed = options["gzip"] or str(output or "").endswith(".gz")
        with _opened(output) as file:
            for chunk in encoded(columns, counted(), Format(options["format"]), is_packed=is_packed):
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
