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
from monitoring.rollups.periods import EPOCH, HOUR, MINUTE, Unit, buckets, datetime_of, minute_of
from monitoring.rollups.periods import ONE_DAY as DAY
from monitoring.rollups.queries import Scope, quarters_since

RANGES = {"1h": "1 h", "24h": "24 h", "7d": "7 d", "30d": "30 d"}
DEFAULT, CUSTOM = "24h", "custom"
FILTERS = ("account", "key", "model", "endpoint")
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
    def before(self) -> tuple[datetime, datetime]:
        """Return the time that the complete part is compared with."""
        return self.begin - self.length, self.complete - self.length

    @property
    def reach(self) -> datetime:
        """Return until when rows of days are read: to the end of the day if the last period is not over."""
        return _ceiling(self.end, DAY) if self.complete < self.end else self.end

    def starts(self) -> list[datetime]:
        """Return the starts of the parts."""
        begin, end = minute_of(self.begin), minute_of(self.end)
        if self.unit is None:
            return [datetime_of(minute) for minute in range(begin, end)]
        return [datetime_of(start) for *_, start in buckets(begin, end, self.unit, UTC) if start is not None]


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
        ends = {"from": f"{self.span.begin:%Y-%m-%dT%H:%M}", "to": f"{self.span.end:%Y-%m-%dT%H:%M}"}
        asked = {"range": self.name, **(ends if self.name == CUSTOM else {}), **self.filters, **changes}
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
    name = address.get("range") or (CUSTOM if address.get("from") else DEFAULT)
    try:
        span = _recent(name, now) if name in RANGES else _custom(name, address, now)
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
            name, span = CUSTOM, whole
    return DashboardQuery(name, span, scope, given, tuple(problems))


def _scope(given: dict[str, str], problems: list[str]) -> Scope:
    """Return the scope of the filters; remove those that can't be used, and add the reasons to `problems`."""
    account_id = key_id = None
    reasons: dict[str, str] = {}
    if account := given.get("account"):
        account_id = Account.objects.filter(name=account).values_list("pk", flat=True).first()
        if account_id is None:
            reasons["account"] = f"No account is called “{account[:100]}”: all are shown."
    if key := given.get("key"):
        of_account = {} if account_id is None else {"account_id": account_id}
        keys = ApiKey.objects.filter(Q(name=key) | Q(prefix=key), **of_account).values_list("pk", "account_id")[:2]
        if len(keys) == 1:
            key_id, account_id = keys[0]
        elif keys:
            reasons["key"] = f"Several keys are called “{key[:100]}”: name the account as well. All keys are shown."
        else:
            reasons["key"] = f"No key is called “{key[:100]}”: all are shown."
    used = Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_DAY)
    for name, problem in (("model", "No request asked for a model"), ("endpoint", "No request went to an endpoint")):
        if (text := given.get(name)) and not used.filter(**{name: text}).exists():
            reasons[name] = f"{problem} “{text[:100]}”: all are shown."
    for name, reason in reasons.items():
        problems.append(reason)
        del given[name]
    return Scope(account_id=account_id, key_id=key_id, model=given.get("model"), endpoint=given.get("endpoint"))


def _custom(name: str, address: Mapping[str, str], now: datetime) -> Span:
    """Return the span from `from` to `to`. Raises Wrong."""
    if name != CUSTOM:
        raise Wrong(f"There is no range “{name[:20]}”.")
    ends = []
    for each in ("from", "to"):
        text = address.get(each, "")
        try:
            ends.append(parse_datetime(text))
        except DateOutOfRange:
            raise Wrong(f"“{text[:30]}” is too far away.") from None
        except ValueError:
            raise Wrong(f"“{text[:30]}” is not a time for “{each}”. Write it like 2026-01-31T14:00.") from None
    begin, end = ends
    for is_wrong, reason in (
        (begin >= end, "A range ends after it begins."),
        (begin < EPOCH, "A range begins in 1970 at the earliest."),
        (begin > now, "A range begins before now."),
        (end - begin > LONGEST, "A range is ten years long at most."),
    ):
        if is_wrong:
            raise Wrong(reason)
    begin, end = _floor(begin), min(_ceiling(end), _ceiling(now))
    unit = Unit.HOUR if end - begin <= BY_HOUR else Unit.DAY if end - begin <= BY_DAY else Unit.MONTH
    return Span(begin, end, min(end, _floor(now)), unit)


def _recent(name: str, now: datetime) -> Span:
    if name == "1h":
        minute = _floor(now, MINUTE)
        return Span(minute - 59 * MINUTE, minute + MINUTE, minute, None)
    end, complete = _ceiling(now), _floor(now)
    if name == "30d":
        return Span(_floor(now, DAY) - 29 * DAY, end, complete, Unit.DAY)
    return Span(end - (DAY if name == "24h" else 7 * DAY), end, complete, Unit.HOUR)


def _floor(at: datetime, length: timedelta = HOUR) -> datetime:
    return at - (at - EPOCH) % length


def _ceiling(at: datetime, length: timedelta = HOUR) -> datetime:
    return at + (EPOCH - at) % length
