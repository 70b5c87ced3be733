"""Reads for the API: statistics, usage, and single records."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db.models import Sum

from accounts.models import ApiKey
from accounts.selectors import api_key_count
from core.ttl_cache import TtlCache
from monitoring.models import RequestRecord, Rollup
from monitoring.rollups.figures import Figures
from monitoring.rollups.queries import Scope, caller_names, usage_series
from monitoring.serializers import UsageSpan


def stats(*, account_id: int | None) -> dict[str, Any]:
    """Return the answer of GET /stats: requests to model endpoints of one account, or of all (None).

    Keys have their present name, deleted keys the recorded one; over all accounts it is `account/name`. Keys of the
    same name are added up. It is read from the keys' months: their number does not grow with that of requests. With
    many keys, the answer over all accounts may be a second old.
    """
    if account_id is None and has_many_keys():
        return recent_stats.get(None)
    return _stats(account_id)


def _stats(account_id: int | None) -> dict[str, Any]:
    scope = {} if account_id is None else {"account_id": account_id}
    months = Rollup.objects.filter(grain=Rollup.Grain.KEY_MONTH, **scope).order_by()
    by_key = months.values_list("key_id").annotate(*map(Sum, ("requests", "hits", "coalesced", "misses")))
    requests, hits, misses = dict[int, int](), 0, 0
    for key_id, asked, *cached, missed in by_key:
        requests[key_id] = int(asked)
        hits += int(sum(cached))  # a coalesced answer cost no upstream call of its own: it counts as a hit
        misses += int(missed)
    names = caller_names("key", set(requests), months, with_account=account_id is None)
    by_name = Counter[str]()
    for key_id, count in requests.items():
        by_name[names[key_id]] += count
    return {
        "total_requests": by_name.total(),
        "cache_hits": hits,
        "cache_misses": misses,
        "cache_hit_rate": round(hits / (hits + misses), 3) if hits + misses else 0.0,
        "total_api_keys": api_key_count(account_id=account_id, at=datetime.now(UTC)),
        "requests_by_key": dict(by_name.most_common()),
    }


MANY_KEYS = 1000


def has_many_keys() -> bool:
    """Return whether there are so many keys that sums over all of them are kept for a while."""
    return ApiKey.objects.count() >= MANY_KEYS


recent_stats: TtlCache[int | None, dict[str, Any]] = TtlCache(_stats, max_age=1.0, from_end=True)


def account_usage(account_id: int, span: UsageSpan) -> dict[str, Any]:
    """Return an account's usage in a span for GET /usage: totals, and a series in the span's grouping."""
    points = usage_series(
        begin=span.begin,
        end=span.end,
        scope=Scope(account_id=account_id),
        unit=span.unit,
        zone=span.zone,
        by=span.group,
    )
    return {
        "from": span.begin.astimezone(span.zone).isoformat(),
        "to": span.end.astimezone(span.zone).isoformat(),
        "time_zone": str(span.zone),
        "group_by": span.group_by,
        "totals": Figures.sum_of(point.figures for point in points).as_answer(),
        "series": [
            {
                **({"start": point.start.isoformat()} if point.start else {}),
                **({span.group: point.group} if span.group else {}),
                **point.figures.as_answer(),
            }
            for point in points
        ],
    }


def request_records(*, account_id: int, limit: int, before: UUID | None = None) -> list[RequestRecord] | None:
    """Return an account's newest records, or those older than one of them; None if the account has no such record."""
    own = RequestRecord.objects.filter(account_id=account_id)
    if before is not None:
        last = own.filter(pk=before).first()
        if last is None:
            return None
        at = last.admitted_at
        own = own.filter(admitted_at__lte=at).exclude(admitted_at=at, id__gte=before)
    return list(own.order_by("-admitted_at", "-id")[:limit])


def request_record(*, account_id: int, name: str) -> RequestRecord | None:
    """Return an account's record by id, or the newest with that label (X-Request-ID); None if there is none.

    With Redis, a record can be found once it is ingested, shortly after the call.
    """
    own = RequestRecord.objects.filter(account_id=account_id)
    with suppress(ValueError):
        found = own.filter(pk=UUID(name)).first()
        if found is not None:
            return found
    return own.filter(label=name).order_by("-admitted_at", "-id").first()


#: Digits of an id's beginning that are needed to search for it, and the records that are found at most.
SHORTEST_PREFIX, MOST_OF_A_PREFIX = 4, 200


def ids_with_prefix(text: str) -> list[UUID]:
    """Return the ids that begin with some hexadecimal digits (dashes don't count), the newest first."""
    digits = text.replace("-", "").lower()
    if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_PREFIX},32}}", digits):
        return []
    ids = RequestRecord.objects.filter(pk__gte=UUID(digits.ljust(32, "0")), pk__lte=UUID(digits.ljust(32, "f")))
    return list(ids.order_by("-pk").values_list("pk", flat=True)[:MOST_OF_A_PREFIX])
