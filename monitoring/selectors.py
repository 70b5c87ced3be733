"""What the records say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.db.models import Max, Q, Sum

from accounts.models import ApiKey
from monitoring.models import RequestRecord

#: A coalesced answer cost no upstream call of its own: it counts as a hit.
HITS = (RequestRecord.Cache.HIT, RequestRecord.Cache.COALESCED)


def stats(*, account_id: int | None) -> dict[str, Any]:
    """Count requests to model endpoints, of one account or (None) of all, as GET /stats answers them.

    Keys are shown by their present name, and by the recorded one where the key is gone (two of one name are added up);
    over all accounts as `account/name`.
    """
    scope = {} if account_id is None else {"account_id": account_id}
    rows = list(
        RequestRecord.objects.filter(**scope)
        .values("key_id")
        .annotate(
            requests=Sum("count"),
            hits=Sum("count", filter=Q(cache__in=HITS), default=0),
            misses=Sum("count", filter=Q(cache=RequestRecord.Cache.MISS), default=0),
            account=Max("account_name"),
            name=Max("key_name"),
        )
        .order_by("-requests")
    )
    hits, misses = sum(row["hits"] for row in rows), sum(row["misses"] for row in rows)
    return {
        "total_requests": sum(row["requests"] for row in rows),
        "cache_hits": hits,
        "cache_misses": misses,
        "cache_hit_rate": round(hits / (hits + misses), 3) if hits + misses else 0.0,
        "total_api_keys": ApiKey.objects.filter(revoked_at=None, **scope).count(),
        "requests_by_key": _requests_by_key(rows, with_account=account_id is None),
    }


def request_record(*, account_id: int, name: str) -> RequestRecord | None:
    """Find an account's record by its id, or the newest under a label (X-Request-ID); None if it has none by that name.

    A record is here once it was ingested, which takes a moment where Redis keeps it first.
    """
    own = RequestRecord.objects.filter(account_id=account_id)
    with suppress(ValueError):
        found = own.filter(pk=UUID(name)).first()
        if found is not None:
            return found
    return own.filter(label=name).order_by("-id").first()


def _requests_by_key(rows: Iterable[Mapping[str, Any]], *, with_account: bool) -> dict[str, int]:
    keys = ApiKey.objects.filter(pk__in=[row["key_id"] for row in rows])
    present = {pk: (account, name) for pk, account, name in keys.values_list("pk", "account__name", "name")}
    requests: Counter[str] = Counter()
    for row in rows:
        account, name = present.get(row["key_id"], (row["account"], row["name"]))
        requests[f"{account}/{name}" if with_account else name] += row["requests"]
    return dict(requests)
