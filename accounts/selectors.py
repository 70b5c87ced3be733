"""Reads of accounts, tiers and keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

from django.db import connection
from django.db.models import Q, QuerySet

from accounts.keys import SHOWN_PREFIX
from accounts.models import GENERATIONS, Account, ApiKey, ModelBudget, Tier

#: Separates the prefix and the last four characters of a masked key.
ELLIPSIS = "…"


#: Selects accounts, keys and model budgets with a monthly budget.
HAS_BUDGET = Q(monthly_token_budget__isnull=False) | Q(monthly_cost_budget__isnull=False)


def tier_names() -> list[str]:
    """List the names of all tiers, sorted."""
    return list(Tier.objects.order_by("name").values_list("name", flat=True))


def account_titles(names: Iterable[str]) -> dict[str, str]:
    """Return the names to show of accounts by their slugs; records hold only these, also of deleted accounts."""
    wanted = set(names)
    named = Account.objects.filter(name__in=wanted).exclude(display_name="")
    return {name: name for name in wanted} | dict(named.values_list("name", "display_name"))


def api_key_list(*, account: str | None = None) -> QuerySet[ApiKey]:
    """List keys with their accounts and tiers, of all accounts or of the one with this name."""
    keys = ApiKey.objects.select_related("account", "tier").order_by("account__name", "name")
    keys = keys.prefetch_related("model_budgets")
    return keys if account is None else keys.filter(account__name=account)


def api_keys_usable(*, account: Account, at: datetime) -> QuerySet[ApiKey]:
    """List an account's keys that are neither revoked nor expired at a time; keys in a grace period are usable."""
    return account.api_keys.filter(is_usable(at))


def api_key_count(*, account_id: int | None, at: datetime) -> int:
    """Count the keys of one account, or of all (None), that work at a time; keys of disabled accounts don't."""
    keys = ApiKey.objects.filter(is_usable(at), account__is_active=True)
    return (keys if account_id is None else keys.filter(account_id=account_id)).count()


def api_keys_current(*, at: datetime) -> QuerySet[ApiKey]:
    """List the keys of all active accounts that work at a time and have not been replaced."""
    keys = ApiKey.objects.select_related("account", "tier")
    return keys.filter(is_usable(at), revoked_at=None, account__is_active=True)


def model_budgets_current(*, at: datetime) -> QuerySet[ModelBudget]:
    """List the model budgets of the keys of api_keys_current, and of active accounts.

    Budgets of a replaced key are left out: it shares the ledger of its successor, but its amounts are outdated.
    """
    owned = Q(account__is_active=True) | Q(key__in=api_keys_current(at=at).values("pk"))
    return ModelBudget.objects.select_related("account", "key__account").filter(owned)


def is_usable(at: datetime, to_key: str = "") -> Q:
    """Select keys that are neither revoked nor expired at a time; `to_key` leads to them from another model."""
    revoked, expires = (
        Q((f"{to_key}{end}", None)) | Q((f"{to_key}{end}__gt", at)) for end in ("revoked_at", "expires_at")
    )
    return revoked & expires


def api_key_makers(keys: Iterable[ApiKey]) -> dict[int, list[ApiKey]]:
    """Map the id of each key to the keys that created it, the nearest first, with their tiers.

    A maker that was replaced is represented by the last key of its lineage, which has the current limits.
    """
    made_by = {key.pk: key.maker_id for key in keys}
    tiers = ["maker__" * generation + "tier" for generation in range(GENERATIONS)]
    nearest = ApiKey.objects.select_related(*tiers).in_bulk({maker for maker in made_by.values() if maker})
    chains = {pk: _chain(nearest[maker]) if maker else [] for pk, maker in made_by.items()}
    replaced = {each.limits_id for chain in chains.values() for each in chain if each.successor_id}
    if not replaced:
        return chains
    of_lineages = Q(pk__in=replaced) | Q(lineage_id__in=replaced)
    last = ApiKey.objects.filter(of_lineages, successor=None).select_related("tier")
    latest = {each.limits_id: each for each in last}
    return {pk: [latest.get(each.limits_id, each) for each in chain] for pk, chain in chains.items()}


def _chain(key: ApiKey) -> list[ApiKey]:
    return [key, *(_chain(key.maker) if key.maker else [])]


#: Key and lineage, of each key in the lineages and of the keys made by these, of any generation.
_COUNTED_AGAINST = """
    WITH RECURSIVE counted (id, first) AS (
        SELECT id, coalesce(lineage_id, id) FROM accounts_apikey WHERE id IN ({marks}) OR lineage_id IN ({marks})
        UNION
        SELECT made.id, counted.first FROM accounts_apikey made JOIN counted ON made.maker_id = counted.id
    )
    SELECT id, first FROM counted
"""


def api_keys_counted_against(firsts: Iterable[int]) -> Mapping[int, set[int]]:
    """Map keys to the lineages that their use counts against, for those lineages whose first keys are given.

    A key counts against its own lineage and, if it was created through /keys, against those of its makers.
    """
    firsts, counted = list(firsts), defaultdict[int, set[int]](set)
    if firsts:
        marks = ", ".join(["%s"] * len(firsts))
        with connection.cursor() as cursor:
            cursor.execute(_COUNTED_AGAINST.format(marks=marks), firsts * 2)
            for pk, first in cursor.fetchall():
                counted[pk].add(first)
    return counted


def api_keys_made_by(keys: Iterable[ApiKey], *, at: datetime) -> list[ApiKey]:
    """List the usable keys, of any generation, that these keys or the keys they replaced have created."""
    makers = {key.pk: key.limits_id for key in keys}
    counted = api_keys_counted_against(makers.values())
    usable = api_key_list().filter(is_usable(at), pk__in=list(counted)).exclude(pk__in=makers)
    return [key for key in usable if counted[key.pk] - {key.limits_id}]


def api_keys_by_prefix(*, prefix: str) -> QuerySet[ApiKey]:
    """Find keys by their visible part: the prefix, or prefix and last four characters as in `ak_live_AbCd…wxyz`.

    If a whole key is given, only its prefix is used.
    """
    head, _, last_four = prefix.strip().partition(ELLIPSIS)
    keys = api_key_list().filter(prefix=head[:SHOWN_PREFIX])
    return keys.filter(last_four=last_four) if last_four else keys
