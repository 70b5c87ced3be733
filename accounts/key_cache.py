"""Snapshots of keys, cached in each process for at most one second, so that a change takes effect within that time.

They cost one database query per key, process and second, and a few more for a key that was created by another or has
budgets for single models. Unknown keys are cached as unknown for the same second.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db.models import Exists, OuterRef, Q

from accounts.keys import digests
from accounts.limits.types import RATE_FIELDS, Limits, LimitSet, Subject
from accounts.models import Account, ApiKey, Budgets, ModelBudget
from accounts.selectors import api_key_makers
from accounts.validators import DEFAULT_SCOPES
from core.database import database_outage, query_promptly
from core.money import nano_dollars
from core.network import Network
from core.outage import Outage
from core.ttl_cache import TtlCache

LAST_USED_PRECISION = timedelta(minutes=1)
#: The owners that a model budget can have, and the field of ApiKey with the owner's id.
BUDGET_OWNERS = {"key": "pk", "account": "account_id"}

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
        self._identities = TtlCache(
            self._load, grace=lambda: settings.AUTH_STALE_SECONDS, outage=self._outage, clock=clock
        )

    def find(self, key: str) -> AuthenticatedKey | None:
        """Return the identity of a usable key; None for any other key.

        Raises DependencyUnavailable while the database is away, unless a snapshot is at most AUTH_STALE_SECONDS older
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
        return query_promptly(lambda: _query(candidates), self._outage, failed="key_lookup_failed")


key_cache = KeyCache(outage=database_outage)


def _query(candidates: tuple[str, ...]) -> AuthenticatedKey | None:
    own, shared = (ModelBudget.objects.filter(**{field: OuterRef(of)}) for field, of in BUDGET_OWNERS.items())
    keys = ApiKey.objects.select_related("account", "tier").annotate(has_model_budgets=Exists(own) | Exists(shared))
    key = keys.filter(digest__in=candidates).first()
    if key is None or key.state != "active":
        return None
    now = datetime.now(UTC)
    _touch(key, now)
    return identity_of(key, now) if key.has_model_budgets or key.maker_id else build_authenticated_key(key, now)


def identity_of(key: ApiKey, now: datetime) -> AuthenticatedKey:
    """Return the identity of a key whose account and tier are loaded; reads makers and model budgets."""
    makers = api_key_makers([key])[key.pk]
    return build_authenticated_key(key, now, model_budgets_of(key, makers), makers)


def model_budgets_of(key: ApiKey, makers: Sequence[ApiKey] = ()) -> list[ModelBudget]:
    """List the model budgets of a key, of its makers and of its account, in one query."""
    nearness = {each.pk: distance for distance, each in enumerate([key, *makers])}
    found = ModelBudget.objects.select_related("key").filter(Q(key__in=nearness) | Q(account=key.account_id))
    return sorted(found, key=lambda budget: (nearness.get(budget.key_id or 0, len(nearness)), budget.model))


def _touch(key: ApiKey, now: datetime) -> None:
    """Update a key's last use at most once a minute; a failure is logged, because the request matters more."""
    if key.last_used_at is not None and now - key.last_used_at < LAST_USED_PRECISION:
        return
    try:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
    except DatabaseError as error:
        log.warning("last_used_not_written", key_id=key.pk, cause=type(error).__name__)


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
