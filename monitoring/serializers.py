"""The parameters and the answers of monitoring's endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers

from accounts.serializers import LimitUsageAnswer, StrictSerializer
from core.times import parse_datetime
from monitoring.models import RequestRecord
from monitoring.rollups.periods import EPOCH, MINUTE, QUARTER, Unit, buckets, datetime_of, floor, midnight
from monitoring.rollups.queries import TooOld, span_parts

GROUPS = ("key", "model", "endpoint")
#: The longest span by unit (None: not divided by time).
LONGEST = {
    Unit.HOUR: timedelta(days=31),
    Unit.DAY: timedelta(days=400),
    Unit.MONTH: timedelta(days=10 * 366),
    None: timedelta(days=10 * 366),
}
#: The longest span by day in a zone other than UTC: such days are summed from quarter hours, 96 times as many rows.
LONGEST_ELSEWHERE = timedelta(days=100)
#: Names (or beginnings) in the zone database that are not IANA zones: the server's own, and zones with leap seconds.
NO_ZONES = ("localtime", "Factory", "posix", "right/")
LATEST = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class UsageSpan:
    """A span of whole quarter hours, and how its series is grouped."""

    begin: datetime
    end: datetime
    zone: tzinfo
    unit: Unit | None
    group: str | None

    @property
    def group_by(self) -> list[str]:
        """Return the grouping of the series, time first."""
        return [str(each) for each in (self.unit, self.group) if each]


class StatsQuery(StrictSerializer):
    """GET /stats takes no parameters."""

    unknown_field = "Unknown parameter: it takes none."


class UsageQuery(StrictSerializer):
    """The parameters of GET /usage: `from`, `to`, `time_zone`, `group_by`."""

    unknown_field = "Unknown parameter: known are from, to, time_zone and group_by."
    time_zone = serializers.CharField(default="UTC")
    group_by = serializers.CharField(default=str(Unit.DAY), allow_blank=True)

    def get_fields(self) -> dict[str, Any]:
        """Add `from`, which is a Python keyword, and `to`."""
        moments = {name: serializers.CharField(required=False) for name in ("from", "to")}
        return {**super().get_fields(), **moments}

    def validate_time_zone(self, name: str) -> tzinfo:
        """Return the zone of an IANA name."""
        try:
            if name.startswith(NO_ZONES):
                raise LookupError(name)
            return ZoneInfo(name)
        except (LookupError, ValueError, OSError) as error:
            raise serializers.ValidationError("No such time zone: give an IANA name, such as Europe/Berlin.") from error

    def validate_group_by(self, text: str) -> tuple[Unit | None, str | None]:
        """Parse the comma list; return at most one unit and at most one group."""
        asked = [part.strip() for part in text.split(",") if part.strip()]
        units, groups = [Unit(part) for part in asked if part in set(Unit)], [part for part in asked if part in GROUPS]
        if len(units) + len(groups) < len(asked):
            raise serializers.ValidationError(f"Known are {', '.join([*Unit, *GROUPS])}.")
        if len(units) > 1 or len(groups) > 1:
            raise serializers.ValidationError(
                "At most one of hour, day and month, and at most one of key, model and endpoint."
            )
        return next(iter(units), None), next(iter(groups), None)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Return the UsageSpan as `span`."""
        zone, (unit, group) = attrs["time_zone"], attrs["group_by"]
        next_hour = datetime_of(floor(timezone.now(), 60) + 60)
        end = _moment("to", attrs["to"], zone) if "to" in attrs else next_hour
        month = datetime_of(midnight((end - MINUTE).astimezone(zone).date().replace(day=1), zone))
        begin = _moment("from", attrs["from"], zone) if "from" in attrs else month
        if begin >= end:
            raise serializers.ValidationError({"to": "It is not after `from`."})
        longest = LONGEST_ELSEWHERE if unit is Unit.DAY and str(zone) != "UTC" else LONGEST[unit]
        if end - begin > longest:
            by = f"by the {unit}" if unit else "in all"
            raise serializers.ValidationError({"from": f"At most {longest.days} days at once {by}."})
        divided = buckets(floor(begin, QUARTER), floor(end, QUARTER), unit, zone)
        try:
            span_parts(((first, last) for first, last, _ in divided))
        except TooOld as error:
            raise serializers.ValidationError({"from": str(error)}) from error
        return {"span": UsageSpan(begin, end, zone, unit, group)}


USAGE_PARAMETERS = [
    OpenApiParameter(name, str, description=description)
    for name, description in {
        "from": "A date or date-time on a whole quarter hour. Default: the beginning of the present month.",
        "to": "The same, excluded. Default: the end of the present hour.",
        "time_zone": "An IANA name: of days and months, and of times that name no offset. Default: UTC.",
        "group_by": "A comma list: at most one of hour (up to 31 days), day (400 days, 100 in a zone "
        "other than UTC) and month (10 years), and at most one of key, model and endpoint. Default: day.",
    }.items()
]


def _moment(name: str, text: str, zone: tzinfo) -> datetime:
    """Parse a date or date-time; it is in the zone unless it has an offset."""
    try:
        at = parse_datetime(text, zone)
    except ValueError as error:
        raise serializers.ValidationError(
            {name: "Write a date or date-time: 2026-11-24, 2026-11-24T15:00Z."}
        ) from error
    if not EPOCH <= at < LATEST:
        raise serializers.ValidationError({name: "Too far from the present."})
    if at != datetime_of(floor(at, QUARTER)):
        raise serializers.ValidationError({name: "Usage is kept by the quarter hour: give a whole one, such as 15:45."})
    return at


class RequestsQuery(StrictSerializer):
    """The parameters of GET /requests."""

    unknown_field = "Unknown parameter: known are limit and before."
    limit = serializers.IntegerField(min_value=1, max_value=100, default=25)
    before = serializers.UUIDField(required=False, help_text="The id of a request: older ones are listed.")


class StatsAnswer(serializers.Serializer[Any]):
    """The answer of /stats: requests to the model endpoints."""

    total_requests = serializers.IntegerField()
    cache_hits = serializers.IntegerField(help_text="Coalesced answers included.")
    cache_misses = serializers.IntegerField()
    cache_hit_rate = serializers.FloatField(
        help_text="Share of hits in hits and misses, three decimals; 0 if there were neither."
    )
    total_api_keys = serializers.IntegerField(help_text="Keys that work now, including those in a grace period.")
    requests_by_key = serializers.DictField(
        child=serializers.IntegerField(), help_text="By key name; for staff by `account/name`."
    )


class ErrorCounts(serializers.Serializer[Any]):
    """Requests that were not answered, by reason."""

    invalid = serializers.IntegerField(help_text="Refused as invalid: 4xx other than 429.")
    limited = serializers.IntegerField(help_text="Refused by a limit: 429.")
    failed = serializers.IntegerField(help_text="5xx.")


class Quantiles(serializers.Serializer[Any]):
    """Milliseconds, within 5 %."""

    p50 = serializers.FloatField()
    p95 = serializers.FloatField()
    p99 = serializers.FloatField()


class FiguresAnswer(serializers.Serializer[Any]):
    """Sums of requests. Money is a string in US dollars."""

    requests = serializers.IntegerField()
    # The stubs take it for the serializer's own attribute.
    errors = ErrorCounts()  # type: ignore[assignment]
    cache_hits = serializers.IntegerField(help_text="Coalesced answers included.")
    cache_misses = serializers.IntegerField()
    cache_hit_rate = serializers.FloatField(
        help_text="Share of hits in hits and misses, three decimals; 0 if there were neither."
    )
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField(help_text="Part of the input tokens.")
    output_tokens = serializers.IntegerField()
    cache_write_tokens = serializers.IntegerField(
        help_text="Part of the input tokens: stored in the provider's cache, at a price of their own."
    )
    reasoning_tokens = serializers.IntegerField(help_text="Part of the output tokens.")
    cost = serializers.CharField(
        allow_null=True,
        help_text="Of requests whose price is known; null if none is. With unpriced ones, the true cost may be higher.",
    )
    unpriced_requests = serializers.IntegerField(help_text="Requests of models without a price, whose cost is unknown.")
    saved_cost = serializers.CharField(help_text="Cost that cached, coalesced and replayed answers avoided.")
    latency_ms = Quantiles(allow_null=True, help_text="Of answered and failed requests; null if there were none.")
    first_token_ms = Quantiles(allow_null=True, help_text="Of streams; null if there were none.")


class UsageEntry(FiguresAnswer):
    """The figures of one period, one group, or both. Periods and groups without requests have no entry."""

    start = serializers.DateTimeField(required=False)
    key = serializers.CharField(required=False)
    model = serializers.CharField(
        required=False, help_text="Empty if requests were refused before the model was known."
    )
    endpoint = serializers.CharField(required=False)


class UsageFigures(serializers.Serializer[Any]):
    """Usage of the account in a span."""

    to = serializers.DateTimeField(help_text="Excluded.")
    time_zone = serializers.CharField()
    group_by = serializers.ListField(child=serializers.CharField())
    totals = FiguresAnswer()
    series = UsageEntry(many=True)

    def get_fields(self) -> dict[str, Any]:
        """Add `from`, which is a Python keyword."""
        return {"from": serializers.DateTimeField(), **super().get_fields()}


class UsageAnswer(LimitUsageAnswer):
    """The answer of GET /usage."""

    usage = UsageFigures()


class RecordAnswer(serializers.ModelSerializer[RequestRecord]):
    """The answer of /requests/{id}: one request as it was answered and billed."""

    key = serializers.CharField(source="key_name")

    class Meta:
        model = RequestRecord
        fields = read_only_fields = [
            *("id", "label", "admitted_at", "key", "endpoint", "model", "status", "error_code", "cache"),
            *("input_tokens", "cached_tokens", "output_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
            *("reasoning_tokens", "web_searches", "service_tier", "cost", "saved_cost", "usage_source"),
            *("is_partial", "is_overrun", "latency_ms", "first_token_ms", "attempts", "count"),
        ]


class RequestsAnswer(serializers.Serializer[Any]):
    """The answer of GET /requests."""

    requests = RecordAnswer(many=True, help_text="The newest first.")
    next = serializers.UUIDField(
        allow_null=True, help_text="The value of `before` for older ones; null: there are none."
    )


class ServiceAnswer(serializers.Serializer[Any]):
    """The answer of /."""

    name = serializers.CharField()
    version = serializers.CharField()
    description = serializers.CharField()
    docs = serializers.CharField()
    health = serializers.CharField()
