"""Parts of the request log's page: the histogram above the list, quick filters, and rows.

The histogram is read from the rollups where the filters allow it. Otherwise it counts the newest records that fit, so
its cost does not grow with the log.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

from accounts.admin.lists import KeysetChangeList, TimeFilter
from accounts.models import Account, ApiKey
from accounts.selectors import account_titles
from core.formats import NOTHING, exact_money, lately, milliseconds, money, utc_text
from core.money import nano
from monitoring.models import Outcome, RequestRecord, outcome_of
from monitoring.rollups.log import requests_by_period
from monitoring.rollups.periods import EPOCH, MINUTE, ONE_DAY, datetime_of, minute_of
from monitoring.rollups.queries import Scope, requests_by_outcome

#: Records that are searched for one page when no index fits the filters: some 30 ms; and those counted where one does.
SEARCHED, COUNTED = 50_000, 20_000
#: Minutes of a bar: the shortest that makes at most MOST_BARS.
WIDTHS = (1, 2, 5, 15, 30, 60, 180, 360, 720, 1440, 7 * 1440)
MOST_BARS = 62
#: The longest span; an earlier beginning is not shown.
LONGEST = MOST_BARS * WIDTHS[-1] * MINUTE
#: The outcomes as the value of the filter, from the bottom of a bar, and their names.
CLASSES = {Outcome.FAILED: "failed", Outcome.LIMITED: "limited", Outcome.INVALID: "refused", Outcome.OK: "ok"}
NAMES = {Outcome.FAILED: "5xx", Outcome.LIMITED: "429", Outcome.INVALID: "other 4xx", Outcome.OK: "2xx"}
SLOW_MS = 2000
#: The filters that buttons above the list show: names and values of parameters.
BUTTONS = {*(("status", value) for value in CLASSES.values()), ("slower", str(SLOW_MS))}
#: The least height of a part of a bar, of 100: one failure among thousands of requests must be seen.
LEAST_HEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class Bar:
    """The requests of one period: its place in the chart, what it says, the list of it, and its parts from below."""

    place: int
    text: str
    url: str
    parts: Sequence[tuple[str, float, float]]


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram by outcome. `note` says what was counted if that is not all; `counts` are of all outcomes.

    `begin` and `width` (minutes) let the page's script turn a place into a time.
    """

    begin: datetime
    end: datetime
    width: int
    number: int
    bars: Sequence[Bar]
    most: int
    counts: Mapping[str, int]
    note: str = ""

    @property
    def width_text(self) -> str:
        """Return the length of a bar in words."""
        days, minutes = divmod(self.width, 1440)
        if days:
            return "day" if days == 1 else f"{days} days"
        return f"{minutes} min" if minutes < 60 else "hour" if minutes == 60 else f"{minutes // 60} h"

    @property
    def ticks(self) -> list[str]:
        """Return the labels of the time axis: the beginning, the middle and the end."""
        form = "%H:%M" if self.end - self.begin <= ONE_DAY else "%-d %b %H:%M"
        middle = self.begin + (self.end - self.begin) / 2
        return [f"{at:{form}}" for at in (self.begin, middle, self.end)]


def histogram(changelist: KeysetChangeList, request: HttpRequest) -> Histogram | None:
    """Return the histogram of what a list shows, whichever of its pages; None for one id, and for no time at all."""
    now = timezone.now()
    begin, end = _span(changelist, now)
    if begin >= end or changelist.query:
        return None
    width = next((each for each in WIDTHS if (end - begin) / (each * MINUTE) <= MOST_BARS - 1), WIDTHS[-1])
    first = minute_of(begin) // width * width
    after = -(-(minute_of(end) + bool(end.second or end.microsecond)) // width) * width
    chosen, scope = _scope(changelist)
    note, is_partial = "", False
    if scope is not None and width >= WIDTHS[3]:
        found = requests_by_outcome(begin=first, end=after, width=width, scope=scope)
    else:
        records = changelist.counted(request, begin, COUNTED)
        found = requests_by_period(records.rows, width)
        is_partial = bool(changelist.filter_params.get("status"))  # the others were not read
        if records.since is not None:
            note = f"Only the newest were counted, back to {utc_text(records.since)}."
    by_place: defaultdict[int, Counter[str]] = defaultdict(Counter)
    counts = Counter[str]()
    for start, outcome, requests in found:
        by_place[(start - first) // width][outcome] += requests
        counts[outcome] += requests
    shown = [chosen] if chosen else list(CLASSES)
    most = max((sum(each[name] for name in shown) for each in by_place.values()), default=0)
    bars = [
        _bar(changelist, place, first + place * width, width, {name: each[name] for name in shown}, most)
        for place, each in sorted(by_place.items())
        if sum(each[name] for name in shown)
    ]
    number = max(1, (after - first) // width)
    return Histogram(
        datetime_of(first), datetime_of(after), width, number, bars, most, {} if is_partial else counts, note
    )


def _span(changelist: KeysetChangeList, now: datetime) -> tuple[datetime, datetime]:
    """Return the span of the time filter: a day up to now unless it says otherwise. Before 1970 it is empty."""
    begin, end = next(each for each in changelist.filter_specs if isinstance(each, TimeFilter)).span()
    end = max(EPOCH, min(end or now, now))
    return max(EPOCH, begin or end - ONE_DAY, end - LONGEST), end


def _scope(changelist: KeysetChangeList) -> tuple[str | None, Scope | None]:
    """Return the chosen outcome, and the scope of the filters; None for a scope that the rollups don't have."""
    given = {name: values[-1] for name, values in changelist.get_filters_params().items() if any(values)}
    wanted = given.pop("status", "")
    chosen = next((str(outcome) for outcome, value in CLASSES.items() if value == wanted), None)
    ids: dict[str, int] = {}
    for name, model, condition in (
        ("account", Account.objects, Q(name=given.get("account"))),
        ("key", ApiKey.objects, Q(name=given.get("key")) | Q(prefix=given.get("key"))),
    ):
        if given.pop(name, ""):
            found: list[int] = list(model.filter(condition).values_list("pk", flat=True)[:2])
            if len(found) != 1:
                return chosen, None
            ids[f"{name}_id"] = found[0]
    scope = Scope(model=given.pop("model", None), endpoint=given.pop("endpoint", None), **ids)
    is_known = not (wanted and chosen is None) and not set(given) - {"from", "until"}
    return chosen, scope if is_known else None


def _bar(changelist: KeysetChangeList, place: int, start: int, width: int, counts: Mapping[str, int], most: int) -> Bar:
    begin, end = datetime_of(start), datetime_of(start + width)
    parts, top = [], 100.0
    for name, number in counts.items():
        if number:
            height = max(LEAST_HEIGHT, 100 * number / most)
            top = max(0.0, top - height)
            parts.append((name, round(top, 2), round(height, 2)))
    said = ", ".join(f"{number:,} {NAMES[Outcome(name)]}" for name, number in reversed(list(counts.items())) if number)
    span = {"from": f"{begin:%Y-%m-%dT%H:%MZ}", "until": f"{end:%Y-%m-%dT%H:%MZ}"}
    text = f"{begin:%Y-%m-%d %H:%M} to {end:{'%H:%M' if width < 1440 else '%Y-%m-%d'}} UTC: {said}"
    return Bar(place, text, changelist.get_query_string(span), parts)


def quick_filters(changelist: KeysetChangeList, counts: Mapping[str, int]) -> Iterator[tuple[str, str, str, bool]]:
    """Yield class, text, URL (which removes one that is set) and whether it is set of each quick filter."""
    offered = [
        (str(outcome), f"{NAMES[outcome]}{f' {counts[outcome]:,}' if counts else ''}", "status", value)
        for outcome, value in CLASSES.items()
    ]
    for kind, text, name, value in [*offered, ("", f"slow ({SLOW_MS // 1000} s or more)", "slower", str(SLOW_MS))]:
        is_set = changelist.filter_params.get(name, [""])[-1] == value
        changes = (None, [name]) if is_set else ({name: value}, None)
        yield kind, text, changelist.get_query_string(*changes), is_set


@dataclass(frozen=True, slots=True)
class Row:
    """A record as the list shows it; `time` is relative within the last hour, and then that of the clock."""

    record: RequestRecord
    time: str
    outcome: str
    cost: str
    exact_cost: str
    latency: str
    account: str
    account_url: str
    model_url: str


def rows(changelist: KeysetChangeList) -> Iterator[Row]:
    """Yield the rows of a page; account and model link to the list of theirs."""
    now, titles = timezone.now(), account_titles(record.account_name for record in changelist.result_list)
    for record in changelist.result_list:
        amount = None if record.cost is None else nano(record.cost)
        yield Row(
            record,
            lately(record.admitted_at, now),
            outcome_of(record.status),
            "unknown" if amount is None else money(amount) if amount else NOTHING,
            "The model has no price." if amount is None else exact_money(amount),
            milliseconds(record.latency_ms),
            titles[record.account_name],
            changelist.get_query_string({"account": record.account_name}),
            changelist.get_query_string({"model": record.model}),
        )
