"""Tables as files: CSV or JSON Lines, made batch by batch, so that memory does not grow with the table.

Moments are ISO 8601 in UTC, money is a decimal text. In CSV a text that a spreadsheet would take for a formula gets an
apostrophe in front (OWASP, CSV Injection); in JSON Lines every text is as it is.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

Row = Sequence[Any]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
GZIP_WINDOW = 31  # zlib: the largest window, with gzip's header (RFC 1952)


class Format(StrEnum):
    """What a file can be."""

    CSV = "csv"
    JSONL = "jsonl"

    @property
    def content_type(self) -> str:
        """The media type."""
        return "text/csv; charset=utf-8" if self is Format.CSV else "application/x-ndjson"


def encoded(columns: Sequence[str], batches: Iterable[Sequence[Row]], file_format: Format) -> Iterator[bytes]:
    """Encode batches of rows, a chunk for each; CSV begins with a line of the columns' names."""
    if file_format is Format.CSV:
        yield _csv([columns])
    for batch in batches:
        yield _csv(map(_cells, batch)) if file_format is Format.CSV else _json_lines(columns, batch)


def gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Compress chunks into one gzip file."""
    compressor = zlib.compressobj(wbits=GZIP_WINDOW)
    for chunk in chunks:
        packed = compressor.compress(chunk)
        if packed:
            yield packed
    yield compressor.flush()


def plain(value: Any) -> Any:
    """Make what JSON can hold of a value out of the database: moments, money and ids become texts."""
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


def _cells(row: Row) -> list[Any]:
    return [_cell(value) for value in row]


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return plain(value)
