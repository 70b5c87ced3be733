"""The query of the dashboard's address: a span and filters. Invalid parts are left out and reported as problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from django.db.models import Q

from accounts.models import Account, ApiKey
from core.times import DateOutOfRange, parse_datetime
from monitoring.models import Rollup
from monitoring.rollups.periods import EPOCH, ONE_DAY, Unit, buckets, datetime_of, minute_of
from monitoring.rollups.queries import Scope, quarters_since
from monitoring.rollups.store import PLATFORM_DAY

RANGES = {"1h": "1 h", "24h": "24 h", "7d": "7 d", "30d": "30 d"}
DEFAULT, OWN = "24h", "own"
FILTERS = ("account", "key", "model", "endpoint")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), ONE_DAY
LONGEST = 3660 * DAY
#: Up to these lengths a custom span is divided by hours, and by days.
BY_HOUR, BY_DAY = 7 * DAY, 100 * DAY


@dataclass(frozen=True, slots=True)
class Span:
    """A span (`end` excluded), and the `unit` that divides it: hours, days or months (UTC), or None for minutes.

    It is compared with the time before only up to `complete`, because the period after that is not over yet.
    """

    begin: datetime
    end: datetime
    complete: datetime
    unit: Unit | None

    @property
    def length(self) -> timedelta:
        """Return the length, which is also the distance to the time that it is compared with."""
        return self.end - self.begin

    @property
    def last_end(self) -> datetime:
        """Return the end of the last hour or day, also if it is not over: then its row of the rollups is read."""
        if self.unit in (None, Unit.HOUR) or not self.is_going_on:
            return self.end
        return self.reach

    @property
    def reach(self) -> datetime:
        """Return until when keys are ranked: if the span reaches now, to the end of the day."""
        return _ceiling(self.end, DAY) if self.is_going_on else self.end

    @property
    def is_going_on(self) -> bool:
        """Return whether the span ends in a period that is not over."""
        return self.complete < self.end

    def starts(self) -> list[datetime]:
        """Return the starts of the parts."""
        if self.unit is None:
            return [self.begin + MINUTE * number for number in range(self.length // MINUTE)]
        divided = buckets(minute_of(self.begin), minute_of(self.end), self.unit, UTC)
        return [datetime_of(start) for _, _, start in divided if start is not None]


@dataclass(frozen=True, slots=True)
class DashboardQuery:
    """A valid query; `problems` are sentences about parts of the address that were left out."""

    name: str
    span: Span
    scope: Scope
    filters: Mapping[str, str]
    problems: tuple[str, ...] = ()

    def query(self, **changes: str) -> str:
        """Return the dashboard's query string with changes. It contains names, and no secret."""
        own = {"from": f"{self.span.begin:%Y-%m-%dT%H:%M}", "to": f"{self.span.end:%Y-%m-%dT%H:%M}"}
        asked = {"range": self.name, **(own if self.name == OWN else {}), **self.filters, **changes}
        return "?" + urlencode({name: value for name, value in asked.items() if value})

    def log_query(self, **more: str) -> str:
        """Return the request log's query string for the records of this query."""
        ends = {"from": f"{self.span.begin:%Y-%m-%dT%H:%MZ}", "until": f"{self.span.end:%Y-%m-%dT%H:%MZ}"}
        return "?" + urlencode({**ends, **self.filters, **more})


class Wrong(ValueError):
    """A part of the address is invalid; the message says why."""


def read_address(address: Mapping[str, str], now: datetime) -> DashboardQuery:
    """Parse the parameters of the dashboard's address; replace or drop invalid ones, and raise nothing."""
    problems: list[str] = []
    name = address.get("range") or (OWN if address.get("from") else DEFAULT)
    try:
        span = _recent(name, now) if name in RANGES else _own(name, address, now)
    except Wrong as wrong:
        problems.append(f"{wrong} The last 24 hours are shown.")
        name, span = DEFAULT, _recent(DEFAULT, now)
    # PostgreSQL rejects strings with NUL.
    given = {each: text for each in FILTERS if (text := address.get(each, "").replace("\0", "").strip())}
    scope = _scope(given, problems)
    kept = None if scope.account_id is None else quarters_since()
    if kept is not None and span.begin < (since := datetime_of(kept)):
        end = _ceiling(span.end, DAY) if span.end < since else span.end
        unit = Unit.DAY if span.unit is Unit.HOUR else span.unit
        whole = Span(_floor(span.begin, DAY), end, min(end, span.complete), unit)
        if whole != span:
            problems.append(f"Before {since:%Y-%m-%d}, usage of accounts and keys is kept by the day only.")
            name, span = OWN, whole
    return DashboardQuery(name, span, scope, given, tuple(problems))


def _scope(given: dict[str, str], problems: list[str]) -> Scope:
    """Return the scope of the filters; remove those that can't be used, and add the reasons to `problems`."""

    def drop(name: str, problem: str) -> None:
        problems.append(problem)
        del given[name]

    account_id = key_id = None
    if account := given.get("account"):
        account_id = Account.objects.filter(name=account).values_list("pk", flat=True).first()
        if account_id is None:
            drop("account", f"No account is called “{account[:100]}”: all are shown.")
    if key := given.get("key"):
        keys = ApiKey.objects.filter(Q(name=key) | Q(prefix=key))
        if account_id is not None:
            keys = keys.filter(account_id=account_id)
        found = list(keys.values_list("pk", "account_id")[:2])
        if len(found) == 1:
            key_id, account_id = found[0]
        elif found:
            drop("key", f"Several keys are called “{key[:100]}”: name the account as well. All keys are shown.")
        else:
            drop("key", f"No key is called “{key[:100]}”: all are shown.")
    used = Rollup.objects.filter(grain=PLATFORM_DAY)
    for name, problem in (("model", "No request asked for a model"), ("endpoint", "No request went to an endpoint")):
        if (text := given.get(name)) and not used.filter(**{name: text}).exists():
            drop(name, f"{problem} “{text[:100]}”: all are shown.")
    return Scope(account_id=account_id, key_id=key_id, model=given.get("model"), endpoint=given.get("endpoint"))


def _own(name: str, address: Mapping[str, str], now: datetime) -> Span:
    """Return the span from `from` to `to`. Raises Wrong."""
    if name != OWN:
        raise Wrong(f"There is no range {name[:20]}.")
    ends = []
    for each in ("from", "to"):
        text = address.get(each, "")
        try:
            ends.append(parse_datetime(text))
        except DateOutOfRange:
            raise Wrong(f"“{text[:30]}” is too far away.") from None
        except ValueError:
            raise Wrong(f"“{text[:30]}” is no moment for “{each}”: write it like 2026-01-31T14:00.") from None
    begin, end = ends
    if not begin < end:
        raise Wrong("A range ends after it begins.")
    if begin < EPOCH:
        raise Wrong("A range begins in 1970 at the earliest.")
    if begin > now:
        raise Wrong("A range begins before now.")
    if end - begin > LONGEST:
        raise Wrong("A range is ten years long at most.")
    begin, end = _floor(begin), min(_ceiling(end), _ceiling(now))
    unit = Unit.HOUR if end - begin <= BY_HOUR else Unit.DAY if end - begin <= BY_DAY else Unit.MONTH
    return Span(begin, end, min(end, _floor(now)), unit)


def _recent(name: str, now: datetime) -> Span:
    if name == "1h":
        minute = now.replace(second=0, microsecond=0)
        return Span(minute - 59 * MINUTE, minute + MINUTE, minute, None)
    end, complete = _ceiling(now), _floor(now)
    if name == "30d":
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return Span(today - 29 * DAY, end, complete, Unit.DAY)
    return Span(end - (DAY if name == "24h" else 7 * DAY), end, complete, Unit.HOUR)


def _floor(moment: datetime, length: timedelta = HOUR) -> datetime:
    return moment - (moment - EPOCH) % length


def _ceiling(moment: datetime, length: timedelta = HOUR) -> datetime:
    return moment + (EPOCH - moment) % length
