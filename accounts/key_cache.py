"""Snapshots of keys, cached in each process for at most one second, so that a change takes effect within that time.

Keys that are needed at the same time are read by one database query. A key that was created by another, or has budgets
for single models, costs a few more. Unknown keys are cached as unknown for the same second.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models import Exists, Model, OuterRef, Q, QuerySet

from accounts.keys import digests
from accounts.limits.types import RATE_FIELDS, Limits, LimitSet, Subject
from accounts.models import Account, ApiKey, Budgets, ModelBudget, Tier
from accounts.selectors import api_key_makers
from accounts.validators import DEFAULT_SCOPES
from core.compiled import CompiledQuery
from core.database import PROMPT_SECONDS, database_outage, query_promptly, query_timeout, release_connections
from core.money import nano_dollars
from core.network import Network
from core.outage import Outage
from core.together import Together
from core.ttl_cache import TtlCache

LAST_USED_PRECISION = timedelta(minutes=1)
#: The owners that a model budget can have, and the field of ApiKey with the owner's id.
BUDGET_OWNERS = {"key": "pk", "account": "account_id"}
#: What is read of a key, and how it is reached from there.
READ: dict[type[Model], str] = {ApiKey: "", Account: "account__", Tier: "tier__"}
#: Keys that are looked up at once, on one connection.
LOADERS = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AuthenticatedKey:
    """A usable key and its permissions, as plain values; shared by the requests of a process."""

    key_id: int
    key_name: str
    key_prefix: str
    account_id: int
    account_name: str
    tier_name: str
    tier_models: frozenset[str]
    key_models: frozenset[str]
    scopes: frozenset[str]
    networks: tuple[Network, ...]
    cache_enabled: bool
    cache_any_temperature: bool
    max_output_tokens: int
    limits: LimitSet
    ends_at: datetime | None
    model_subjects: tuple[tuple[str, Subject], ...] = ()
    logs_content: bool = False
    cache_generations: Mapping[str, str] = field(default_factory=dict, hash=False)

    #: DRF reads this from request.user.
    is_authenticated = True

    def cache_generation(self, model: str) -> str:
        """Return a text that changes when the account's cached answers, or those for this model, are cleared."""
        return f"{self.cache_generations.get('', '')}.{self.cache_generations.get(model, '')}"

    def may_use_model(self, name: str) -> bool:
        """Return whether tier and key allow a public model name; an empty list allows all."""
        return (not self.tier_models or name in self.tier_models) and (not self.key_models or name in self.key_models)

    def limits_for(self, model: str) -> LimitSet:
        """Return what a call of this model (public name) counts against, budgets for the model included."""
        if not self.model_subjects:
            return self.limits
        extra = tuple(subject for name, subject in self.model_subjects if name == model)
        return self._with(extra) if extra else self.limits

    @property
    def every_limit(self) -> LimitSet:
        """Everything that any call of the key may count against."""
        return self._with(tuple(subject for _, subject in self.model_subjects))

    def _with(self, extra: tuple[Subject, ...]) -> LimitSet:
        return LimitSet(self.limits.account_id, self.limits.subjects + extra)


class KeyCache:
    """Looks up keys by their text, in the database at most once a second for each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, outage: Outage | None = None) -> None:
        self._outage = outage or Outage(clock)
        self._read_together = Together(self._read)
        self._identities = TtlCache(
            self._load, grace=lambda: settings.AUTH_STALE_SECONDS, outage=self._outage, loaders=LOADERS, clock=clock
        )

    def find(self, key: str) -> AuthenticatedKey | None:
        """Return the identity of a usable key; None for any other key.

        Raises DependencyUnavailable while the database is down, unless a snapshot is at most AUTH_STALE_SECONDS older
        than the usual second.
        """
        identity = self._identities.get(digests(key))
        if identity is not None and identity.ends_at is not None and identity.ends_at <= datetime.now(UTC):
            return None
        return identity

    def forget(self) -> None:
        """Drop every snapshot, for example after a change by this process."""
        self._identities.clear()

    def _load(self, candidates: tuple[str, ...]) -> AuthenticatedKey | None:
        if self._outage.is_on:  # so that nobody waits for the one caller who may try
            (found,) = self._read([candidates])
        else:
            found = self._read_together(candidates)
        if found is None or found.key.state != "active":
            return None
        now = datetime.now(UTC)
        if found.key.last_used_at is None or now - found.key.last_used_at >= LAST_USED_PRECISION:
            _touch_together(found.key.pk)
        if not found.has_more:
            return build_authenticated_key(found.key, now)
        return query_promptly(lambda: identity_of(found.key, now), self._outage, failed="key_lookup_failed")

    def _read(self, keys: Sequence[tuple[str, ...]]) -> list[StoredKey | None]:
        found = query_promptly(lambda: _query(keys), self._outage, failed="key_lookup_failed")
        return [next((found[digest] for digest in candidates if digest in found), None) for candidates in keys]


key_cache = KeyCache(outage=database_outage)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key with its account and tier; `has_more` if it was made by another or has budgets for single models."""

    key: ApiKey
    has_more: bool


def _query(keys: Sequence[tuple[str, ...]]) -> dict[str, StoredKey]:
    """Read keys, each given by all digests that it may have; return those that exist by their digest."""
    stored = map(_stored, _rows_of_keys.rows([digest for candidates in keys for digest in candidates]))
    return {each.key.digest: each for each in stored}


@CompiledQuery
def _rows_of_keys(candidates: Sequence[str]) -> QuerySet[ApiKey, Any]:
    """Select all fields of keys, their accounts and tiers, and whether a key or its account has model budgets."""
    own, shared = (ModelBudget.objects.filter(**{field: OuterRef(of)}) for field, of in BUDGET_OWNERS.items())
    columns = [to + field.attname for model, to in READ.items() for field in model._meta.concrete_fields]
    keys = ApiKey.objects.annotate(has_model_budgets=Exists(own) | Exists(shared)).order_by()
    return keys.filter(digest__in=candidates).values_list(*columns, "has_model_budgets")


def _stored(row: Sequence[Any]) -> StoredKey:
    values = iter(row)
    made: list[Any] = [model(*islice(values, len(model._meta.concrete_fields))) for model in READ]
    key, key.account, key.tier = made
    return StoredKey(key, has_more=next(values) or key.maker_id is not None)


def _touch(ids: Sequence[int]) -> Sequence[None]:
    """Update the last use of keys; a failure is logged, because the requests matter more.

    A row that another transaction has locked is left for the next time.
    """
    try:
        with query_timeout(PROMPT_SECONDS), transaction.atomic():
            free = ApiKey.objects.filter(pk__in=ids).select_for_update(skip_locked=True).order_by()
            ApiKey.objects.filter(pk__in=free.values("pk")).update(last_used_at=datetime.now(UTC))
    except DatabaseError as error:
        log.warning("last_used_not_written", key_ids=ids, cause=type(error).__name__)
    finally:
        release_connections()
    return [None] * len(ids)


#: Update the last use of a key, together with those of others who ask at the same time.
_touch_together = Together(_touch)


def identity_of(key: ApiKey, now: datetime) -> AuthenticatedKey:
    """Return the identity of a key whose account and tier are loaded; reads makers and model budgets."""
    makers = api_key_makers([key])[key.pk]
    return build_authenticated_key(key, now, model_budgets_of(key, makers), makers)


def model_budgets_of(key: ApiKey, makers: Sequence[ApiKey] = ()) -> list[ModelBudget]:
    """List the model budgets of a key, of its makers and of its account, in one query."""
    nearness = {each.pk: distance for distance, each in enumerate([key, *makers])}
    found = ModelBudget.objects.select_related("key").filter(Q(key__in=nearness) | Q(account=key.account_id))
    return sorted(found, key=lambda budget: (nearness.get(budget.key_id or 0, len(nearness)), budget.model))


def build_authenticated_key(
    key: ApiKey, now: datetime, model_budgets: Iterable[ModelBudget] = (), makers: Sequence[ApiKey] = ()
) -> AuthenticatedKey:
    """Build the identity of a key whose account and tier are loaded, for the time `now`.

    `makers` come from `api_key_makers`, and `model_budgets` from `model_budgets_of`; without them only the limits of
    the key and its account apply.
    """
    own, account = key_subject(key, now), account_subject(key.account)
    above = [replace(key_subject(each, now), maker=each.name) for each in makers]
    names = {each.pk: each.name for each in makers}
    ends = [end for end in (key.expires_at, key.revoked_at) if end is not None]
    return AuthenticatedKey(
        key_id=key.pk,
        key_name=key.name,
        key_prefix=key.prefix,
        account_id=key.account_id,
        account_name=key.account.name,
        tier_name=key.tier.name,
        tier_models=frozenset(key.tier.models),
        key_models=frozenset(key.models),
        scopes=frozenset(key.scopes) or DEFAULT_SCOPES,
        networks=tuple(ipaddress.ip_network(text) for text in key.allowed_ips),
        cache_enabled=key.tier.cache_enabled,
        cache_any_temperature=key.tier.cache_any_temperature,
        max_output_tokens=key.tier.max_output_tokens,
        limits=LimitSet(account_id=key.account_id, subjects=(own, *above, account)),
        ends_at=min(ends, default=None),
        model_subjects=tuple(
            (budget.model, replace(model_subject(budget), maker=names.get(budget.key_id or 0, "")))
            for budget in model_budgets
        ),
        logs_content=key.account.logs_content,
        cache_generations=key.account.cache_generations,
    )


def key_subject(key: ApiKey, now: datetime) -> Subject:
    """Return the subject with the limits of a key whose tier is loaded, for the time `now`."""
    overriding = key.overrides_until is None or now < key.overrides_until
    rates: dict[str, int | None] = {}
    for name in RATE_FIELDS:
        override = getattr(key, f"{name}_override") if overriding else None
        rates[name] = getattr(key.tier, name) if override is None else override
    return Subject(kind="key", id=str(key.limits_id), limits=_limits(key, rates))


def key_ledger(key: ApiKey) -> Subject:
    """Return the subject of a key and the keys that it replaced, without limits, to read its ledger."""
    return Subject(kind="key", id=str(key.limits_id), limits=Limits())


def account_subject(account: Account) -> Subject:
    """Return the subject with an account's caps and budgets over all its keys."""
    rates = {name: getattr(account, name) for name in RATE_FIELDS}
    return Subject(kind="account", id=str(account.pk), limits=_limits(account, rates))


def model_subject(budget: ModelBudget) -> Subject:
    """Return the subject of a budget for one model: `key_model:<key>:<ledger>:<model>`, or `account_model:…`."""
    kind, owner = ("key_model", budget.key.limits_id) if budget.key else ("account_model", budget.account_id)
    return Subject(kind=kind, id=f"{owner}:{budget.ledger_id}:{budget.model}", limits=_limits(budget, {}))


def _limits(owner: Budgets, rates: Mapping[str, int | None]) -> Limits:
    """Return rates and an owner's monthly budgets as limits."""
    cost = nano_dollars(owner.monthly_cost_budget)
    return Limits(**rates, monthly_tokens=owner.monthly_token_budget, monthly_cost=cost)
