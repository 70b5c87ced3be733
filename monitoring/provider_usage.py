"""The usage that a provider exports, by UTC day and model, compared with the records of calls to it.

OpenAI: the JSON of GET /v1/organization/usage/completions with `group_by=model` and days, or its CSV of the usage page.
Anthropic: the JSON of GET /v1/organizations/usage_report/messages grouped by model, or the Console's CSV.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.db.models import Q

from accounts.models import AuditEntry
from monitoring.models import RequestRecord

FORMATS = ("openai", "anthropic")
#: Where each figure is found; those of one tuple are added up. The first tuple that has one of its names counts.
FIGURES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "input_tokens": (
        ("uncached_input_tokens", "cache_read_input_tokens", "ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens"),
        (
            "usage_input_tokens_no_cache",
            "usage_input_tokens_cache_write_5m",
            "usage_input_tokens_cache_write_1h",
            "usage_input_tokens_cache_read",
        ),
        ("input_tokens",),  # OpenAI's, cached ones included
    ),
    "output_tokens": (("output_tokens",), ("usage_output_tokens",)),
    "requests": (("num_model_requests",),),
}
DAYS = ("usage_date_utc", "starting_at", "start_time_iso", "start_time", "date")
MODELS = ("model_version", "model")
#: The date at the end of a model's name.
DATED = re.compile(r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d)\Z")
#: How the audit log names a comparison.
KIND, RECONCILED = "provider usage", "compared"
#: Records named for each difference.
MOST_RECORDS = 20


class UnreadableUsage(Exception):
    """A file that is not a provider's export of usage by day and model; its text says why."""


@dataclass(slots=True)
class Sums:
    """What was used of a model on a day; `requests` is None if the provider does not say."""

    requests: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, requests: int | None, input_tokens: int, output_tokens: int) -> None:
        """Add usage."""
        self.requests = self.requests if requests is None else (self.requests or 0) + requests
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


@dataclass(slots=True)
class Line:
    """A model on a day: the provider's sums, those of the records, and records that may explain a difference."""

    day: date
    model: str
    theirs: Sums = field(default_factory=Sums)
    ours: Sums = field(default_factory=lambda: Sums(0))
    inexact: list[tuple[str, str]] = field(default_factory=list)

    @property
    def difference(self) -> int:
        """The tokens of the records that the provider's sums do not have; negative if the records lack some."""
        ours, theirs = self.ours, self.theirs
        return ours.input_tokens + ours.output_tokens - theirs.input_tokens - theirs.output_tokens


def parse_export(content: bytes) -> dict[tuple[date, str], Sums]:
    """Parse a provider's export; raises UnreadableUsage."""
    try:
        text = content.decode("utf-8-sig")
        rows = list(
            _json_rows(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else csv.DictReader(io.StringIO(text))
        )
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UnreadableUsage("It is neither JSON of a usage API nor CSV in UTF-8.") from error
    found: defaultdict[tuple[date, str], Sums] = defaultdict(Sums)
    for number, row in enumerate(rows, 1):
        try:
            day, model = _day(_first(row, DAYS)), _first(row, MODELS)
            figures = {name: _figure(row, places) for name, places in FIGURES.items()}
        except (ValueError, TypeError, OverflowError) as error:
            raise UnreadableUsage(f"Row {number} has a figure or a day that can't be read.") from error
        if day is None or not model or figures["input_tokens"] is None:
            needed = "a day, a model and tokens: group the export by model and day"
            raise UnreadableUsage(f"Row {number} lacks {needed}.")
        sums = found[day, undated(str(model))]
        sums.add(figures["requests"], figures["input_tokens"], figures["output_tokens"] or 0)
    if not found:
        raise UnreadableUsage("It has no usage.")
    return dict(found)


def compare(theirs: Mapping[tuple[date, str], Sums], *, provider: str) -> list[Line]:
    """Compare an export with the records of calls to a provider, from its first to its last day; by day and model.

    A call belongs to the day on which it was admitted; the provider may count one at midnight to the next.
    """
    lines = {key: Line(*key, theirs=sums) for key, sums in theirs.items()}
    days = [day for day, _ in theirs]
    begin, end = (datetime.combine(day, time(), UTC) for day in (min(days), max(days) + timedelta(days=1)))
    is_own = Q(deployment__startswith=f"{provider}/", admitted_at__gte=begin, admitted_at__lt=end)
    records = RequestRecord.objects.filter(is_own).exclude(usage_source="cache").order_by("admitted_at", "id")
    for record in records.iterator(chunk_size=2000):
        key = record.admitted_at.astimezone(UTC).date(), undated(record.deployment.partition("/")[2])
        line = lines.get(key) or lines.setdefault(key, Line(*key))
        line.ours.add(1, record.input_tokens, record.output_tokens)
        if (why := _inexactness(record)) and len(line.inexact) < MOST_RECORDS:
            line.inexact.append((record.label, why))
    return sorted(lines.values(), key=lambda line: (line.day, line.model))


def latest_comparisons(begin: datetime, end: datetime) -> list[tuple[datetime, dict[str, Any]]]:
    """Return when each provider was last compared on days of a span (`end` excluded), and what came of it."""
    first, last = str(begin.date()), str((end - timedelta(microseconds=1)).date())
    entries = AuditEntry.objects.filter(
        target_type=KIND, action=RECONCILED, after__first__lte=last, after__last__gte=first
    )
    found: dict[str, tuple[datetime, dict[str, Any]]] = {}
    for entry in entries.order_by("at", "id"):
        found[entry.after["provider"]] = entry.at, entry.after
    return list(found.values())


def undated(model: str) -> str:
    """Return a model's name without the date of its version."""
    return DATED.sub("", model)


def _inexactness(record: RequestRecord) -> str:
    """Return why a record's tokens may not be the provider's; empty if they are what it reported."""
    reasons = {"bound": "charged its bound", "estimated": "estimated"}
    why = [reasons.get(record.usage_source, "")]
    why += ["more than its bound"] if record.is_overrun else []
    why += [f"{record.attempts} attempts, perhaps elsewhere"] if record.attempts > 1 else []
    return ", ".join(filter(None, why))


def _json_rows(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the results in the pages of a usage API, each with its bucket's fields and its inner fields."""
    for page in value if isinstance(value, list) else [value]:
        for bucket in page["data"]:
            for result in bucket["results"]:
                yield {**bucket, **result, **(result.get("cache_creation") or {})}


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _figure(row: Mapping[str, Any], places: Sequence[Sequence[str]]) -> int | None:
    names = next((names for names in places if any(row.get(name) not in (None, "") for name in names)), None)
    if names is None:
        return None
    numbers = [int(str(row.get(name) or 0).replace(",", "")) for name in names]
    if min(numbers) < 0:
        raise ValueError("a negative figure")
    return sum(numbers)


def _day(value: Any) -> date | None:
    if value is None or isinstance(value, bool):
        return None
    if str(value).isdecimal():
        return datetime.fromtimestamp(int(value), UTC).date()
    at = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    return (at.astimezone(UTC) if at.tzinfo else at).date()
