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
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import chain
from typing import Any
from uuid import UUID

from django.db.models import Max, Min, QuerySet

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
    chunks: Iterator[bytes] = (_json_lines(columns, batch) for batch in batches)
    if file_format is Format.CSV:
        chunks = chain([_csv([columns])], (_csv([_cell(value) for value in row] for row in batch) for batch in batches))
    return _gzipped(chunks) if is_packed else chunks


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(wbits=GZIP_WINDOW)
    for chunk in chunks:
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


def _json_lines(columns: Sequence[str], batch: Iterable[Row]) -> bytes:
    lines = (
        json.dumps(dict(zip(columns, map(plain, row), strict=True)), ensure_ascii=False, separators=(",", ":"))
        for row in batch
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _csv(rows: Iterable[Row]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return plain(value)


#: Columns of the file, and the model field of each.
FIELDS = {
    "id": "id",
    "label": "label",
    "admitted_at": "admitted_at",
    "account": "account_name",
    "account_id": "account_id",
    "key": "key_name",
    "key_id": "key_id",
    "endpoint": "endpoint",
    "model": "model",
    "deployment": "deployment",
    "status": "status",
    "error_code": "error_code",
    "cache": "cache",
    "input_tokens": "input_tokens",
    "cached_tokens": "cached_tokens",
    "output_tokens": "output_tokens",
    "cost": "cost",
    "saved_cost": "saved_cost",
    "usage_source": "usage_source",
    "is_partial": "is_partial",
    "is_overrun": "is_overrun",
    "latency_ms": "latency_ms",
    "first_token_ms": "first_token_ms",
    "attempts": "attempts",
    "stages": "stages",
    "failures": "failures",
    "count": "count",
}
COLUMNS = tuple(FIELDS)
ID, ADMITTED_AT = COLUMNS.index("id"), COLUMNS.index("admitted_at")
#: Rows in a query. SQLite's driver does not release the GIL while it reads them: some milliseconds.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of records: a scope, and a span (`end` excluded). None leaves that end of the span open."""

    begin: datetime | None = None
    end: datetime | None = None
    scope: Scope = EVERYTHING

    def records(self) -> QuerySet[RequestRecord]:
        """Return the selected records; the span is that of their admission."""
        records = RequestRecord.objects.filter(**self.scope.columns)
        if self.begin is not None:
            records = records.filter(admitted_at__gte=self.begin)
        return records if self.end is None else records.filter(admitted_at__lt=self.end)


def record_batches(records: QuerySet[RequestRecord]) -> Iterator[Sequence[Row]]:
    """Read records in batches by (admitted_at, id), oldest first, up to the newest at the time of the call.

    Each batch is its own query, which continues after the last row of the one before. No connection is held between
    batches, so a slow download does not take one from requests; other threads run between batches too.
    """
    newest = stretch(records, "admitted_at", is_newer=False).values_list("admitted_at", "pk").first()
    if newest is None:
        return
    after, last = None, Place(*newest)
    while batch := list(stretch(records, "admitted_at", after, last).values_list(*FIELDS.values())[:BATCH]):
        after = Place(batch[-1][ADMITTED_AT], batch[-1][ID])
        release_connections()
        time.sleep(0)
        yield batch


#: Keys of Figures.as_answer whose values are plain numbers or strings.
PLAIN = (
    "cache_hits",
    "cache_misses",
    "cache_hit_rate",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost",
    "unpriced_requests",
    "saved_cost",
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
    scope = Scope(account_id=account_id)
    return (rows for first, last, start in divided if (rows := _usage_rows(first, last, start or first, scope, by)))


def _usage_rows(first: int, last: int, start: int, scope: Scope, by: str) -> Sequence[Row]:
    """Return the rows of the period that begins at minute `start`, for its part from `first` to `last` (excluded)."""
    points = usage_series(begin=datetime_of(first), end=datetime_of(last), scope=scope, by=by)
    release_connections()
    time.sleep(0)  # let other threads run, also during a long span without requests
    rows = []
    for point in points:
        answer = point.figures.as_answer()
        rows.append(
            [
                datetime_of(start),
                point.group or "",
                point.group_id,
                answer["requests"],
                *(answer["errors"][name] for name in ERRORS),
                *(answer[name] for name in PLAIN),
                *((answer[name] or {}).get(quantile) for name in TIMED for quantile in QUANTILES),
            ]
        )
    return rows
