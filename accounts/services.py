"""Writes of accounts, tiers and keys. Each one writes its audit entry in the same transaction.

Changes take effect in this process at the commit, and in others within a second, as their snapshots expire. What can't
be saved raises django.core.exceptions.ValidationError with messages for the user.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict, Unpack

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from accounts.audit import audit_change, audit_record, audited_delete, audited_save
from accounts.key_cache import key_cache
from accounts.keys import accepted_peppers, digest_key, generate_key, is_well_formed, shown_prefix
from accounts.models import Account, ApiKey, ModelBudget, Tier, public_model_name
from accounts.selectors import api_keys_usable

MAX_GRACE = timedelta(days=90)
NAME_LENGTH = 100
LAST_FOUR = 4


class KeySettings(TypedDict, total=False):
    """Optional settings of a key beyond account, tier and name; omitted ones don't restrict it."""

    scopes: list[str]
    models: list[str]
    allowed_ips: list[str]
    requests_per_minute_override: int | None
    tokens_per_minute_override: int | None
    concurrent_requests_override: int | None
    overrides_until: datetime | None
    expires_at: datetime | None
    monthly_token_budget: int | None
    monthly_cost_budget: Decimal | None


#: Fields that a successor takes over when a key is rotated.
INHERITED_FIELDS = ("account", "tier", "maker", *KeySettings.__annotations__)


class BudgetFor(NamedTuple):
    """A monthly budget for one model; None means no limit."""

    model: str
    tokens: int | None
    cost: Decimal | None


def account_ensure(*, name: str, actor: str) -> Account:
    """Return the account with this name; create it without caps if there is none."""
    with transaction.atomic():
        Account(name=name).clean_fields()
        account, created = Account.objects.get_or_create(name=name)
        if created:
            audit_change(account, before=None, actor=actor)
        return account


def account_save(*, account: Account, actor: str) -> None:
    """Save a new or changed account; the cache generations in the database are kept."""
    with transaction.atomic():
        if account.pk is not None:
            account.cache_generations = _lock(account).cache_generations
        _save(account, actor=actor)


def account_clear_cache(*, account: Account, actor: str, model: str = "") -> None:
    """Make an account's cached answers, or those of one model (public name), unreachable within a second.

    Cache keys contain the generation that changes here. The old entries are not deleted; they expire.
    """
    with transaction.atomic():
        account = _lock(account)
        kept = account.cache_generations if model else {}
        account.cache_generations = {**kept, model: secrets.token_hex(4)}
        account.save(update_fields=["cache_generations"])
        audit_record(actor=actor, action="cleared", target=account, after={"cached_answers": model or "of all models"})
        transaction.on_commit(key_cache.forget)


def account_set_active(*, account: Account, active: bool, actor: str) -> None:
    """Enable an account, or disable it: then all its keys are refused within a second."""
    with transaction.atomic():
        account = _lock(account)
        account.is_active = active
        _write(account, actor=actor, action="enabled" if active else "disabled")


def tier_ensure(*, name: str, actor: str, **limits: Any) -> Tier:
    """Return the tier with this name; create it with these fields if there is none. An existing one is unchanged."""
    with transaction.atomic():
        tier = Tier.objects.filter(name=name).first()
        if tier is None:
            tier = Tier(name=name, **limits)
            _save(tier, actor=actor)
        return tier


def tier_save(*, tier: Tier, actor: str) -> None:
    """Save a new or changed tier. All its keys follow within a second."""
    _save(tier, actor=actor)


def api_key_create(
    *,
    account: Account,
    tier: Tier,
    name: str,
    actor: str,
    maker: ApiKey | None = None,
    model_budgets: Iterable[BudgetFor] = (),
    **optional: Unpack[KeySettings],
) -> tuple[ApiKey, str]:
    """Create a key and return it with its secret, which is not stored. `maker` is the key that requested it, if any."""
    key = ApiKey(account=account, tier=tier, name=name, maker=maker, **optional)
    with transaction.atomic():
        plain = api_key_issue(key=key, actor=actor)
        for budget in model_budgets:
            model_budget_set(owner=key, budget=budget, actor=actor)
    return key, plain


def api_key_issue(*, key: ApiKey, actor: str) -> str:
    """Generate the secret of an unsaved key, save the key, and return the secret.

    Raises ValidationError, also if the account already has its maximum of usable keys.
    """
    plain = generate_key(settings.ENVIRONMENT)
    with transaction.atomic():
        api_key_check_max_keys(key=key)
        _store(key, plain, actor=actor)
    return plain


def api_key_check_max_keys(*, key: ApiKey) -> None:
    """Raise ValidationError if a key that is new, or becomes usable again, would exceed its account's `max_keys`.

    Call it in the transaction that saves the key: it locks the account until that ends.
    """
    now = timezone.now()
    if key.expires_at is not None and key.expires_at <= now:
        if key._state.adding:
            raise ValidationError({"expires_at": "This time is in the past: the key could never be used."})
        return
    if key.revoked_at is not None and key.revoked_at <= now:
        return
    account = _lock(key.account)
    usable = api_keys_usable(account=account, at=now)
    if account.max_keys is None or usable.filter(pk=key.pk).exists():  # a usable key is already counted
        return
    if usable.count() >= account.max_keys:
        raise ValidationError(
            f"Account {account} has its maximum of usable keys ({account.max_keys}): revoke one first."
        )


def api_key_import(*, account: Account, tier: Tier, name: str, plain: str, actor: str) -> ApiKey:
    """Create a key with a given secret, such as the demo keys. An existing key with this name is unchanged.

    Raises ValidationError if such a key could not be used: production accepts only secrets of our format.
    """
    if not is_well_formed(plain):
        raise ValidationError("This is not a valid key: outside development, keys begin with ak_.")
    with transaction.atomic():
        existing = account.api_keys.filter(name=name).first()
        if existing is not None:
            return existing
        key = ApiKey(account=account, tier=tier, name=name)
        _store(key, plain, actor=actor)
        return key


def api_key_save(*, key: ApiKey, actor: str) -> None:
    """Save an operator's changes of a key; one that becomes usable again must fit the account's `max_keys`.

    Revocation, successor and last use are kept as in the database: an outdated form must not reactivate a revoked key.
    """
    with transaction.atomic():
        _lock(key.account)
        stored = ApiKey.objects.get(pk=key.pk)
        key.revoked_at, key.successor, key.last_used_at = stored.revoked_at, stored.successor, stored.last_used_at
        api_key_check_max_keys(key=key)
        _save(key, actor=actor)


def api_key_rotate(*, key: ApiKey, grace: timedelta, actor: str) -> tuple[ApiKey, str]:
    """Create a successor with the same settings, and let the old key work for the grace period (0 to 90 days).

    Returns the successor with its secret. The successor does not count against `max_keys`. But in an account with
    `max_keys`, a key whose own predecessor still works can't be rotated, so that rotation never multiplies keys.
    """
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise ValidationError(f"The grace period must be between 0 and {MAX_GRACE.days} days.")
    with transaction.atomic():
        account = _lock(key.account)
        key = ApiKey.objects.select_related("account", "tier").get(pk=key.pk)
        _require_rotatable(key, account)
        inherited = {field: getattr(key, field) for field in INHERITED_FIELDS}
        successor = ApiKey(name=_successor_name(key), lineage_id=key.limits_id, **inherited)
        plain = generate_key(settings.ENVIRONMENT)
        _store(successor, plain, actor=actor)
        for each in key.model_budgets.all():  # their ledgers go on
            row = ModelBudget(key=successor, model=each.model, lineage_id=each.ledger_id)
            row.monthly_token_budget, row.monthly_cost_budget = each.monthly_token_budget, each.monthly_cost_budget
            _write(row, actor=actor)
        key.successor = successor
        key.revoked_at = timezone.now() + grace
        _write(key, actor=actor, action="rotated")
    return successor, plain


def api_key_revoke(*, key: ApiKey, actor: str) -> bool:
    """Stop a key for good, also in its grace period. Return False if it had been revoked before."""
    with transaction.atomic():
        _lock(key.account)
        key.refresh_from_db()
        now = timezone.now()
        if key.revoked_at is not None and key.revoked_at <= now:
            return False
        key.revoked_at = now
        _write(key, actor=actor, action="revoked")
    return True


def model_budget_save(*, budget: ModelBudget, actor: str) -> None:
    """Save a new or changed budget of a key or an account for one model."""
    _save(budget, actor=actor)


def model_budget_delete(*, budget: ModelBudget, actor: str) -> None:
    """Delete a budget for one model."""
    with transaction.atomic():
        audited_delete(budget, actor=actor)
        transaction.on_commit(key_cache.forget)


def model_budget_set(*, owner: Account | ApiKey, budget: BudgetFor, actor: str) -> ModelBudget | None:
    """Set the budget of a key or an account for one model, by its name or alias; without amounts, delete it."""
    with transaction.atomic():
        name = public_model_name(budget.model) or budget.model
        row = owner.model_budgets.filter(model=name).first()
        if budget.tokens is None and budget.cost is None:
            if row is not None:
                model_budget_delete(budget=row, actor=actor)
            return None
        row = row or ModelBudget(model=name, **{"key" if isinstance(owner, ApiKey) else "account": owner})
        row.monthly_token_budget, row.monthly_cost_budget = budget.tokens, budget.cost
        _save(row, actor=actor)
        return row


def _save(instance: Account | Tier | ApiKey | ModelBudget, *, actor: str) -> None:
    instance.full_clean()
    _write(instance, actor=actor)


def _write(instance: Account | Tier | ApiKey | ModelBudget, *, actor: str, action: str = "") -> None:
    """Save without validating the rest of the row, so that invalid fields never keep a key from being stopped."""
    audited_save(instance, actor=actor, action=action)
    transaction.on_commit(key_cache.forget)


def _store(key: ApiKey, plain: str, *, actor: str) -> None:
    pepper = accepted_peppers()[0]
    key.prefix, key.last_four = shown_prefix(plain), plain[-min(LAST_FOUR, len(plain) // 3) :]
    key.digest, key.pepper_id = digest_key(plain, pepper), pepper.id
    _save(key, actor=actor)


def _lock(account: Account) -> Account:
    """Return an account and lock its row, to serialize changes to its keys.

    SQLite has no row locks and needs none: a transaction there begins with the database's one write lock.
    """
    return Account.objects.select_for_update().get(pk=account.pk)


def _require_rotatable(key: ApiKey, account: Account) -> None:
    state = "replaced" if key.successor_id else key.state
    if state not in ("active", "disabled"):
        raise ValidationError(f"Key {key} is {state}: only a key that works can be rotated.")
    if account.max_keys is None:
        return
    for predecessor in key.predecessors.filter(revoked_at__gt=timezone.now()):
        raise ValidationError(
            f"Key {key} replaced {predecessor}, which still works, and account {account} has a limit of keys: "
            f"revoke {predecessor.name} first."
        )


def _successor_name(key: ApiKey) -> str:
    """Return the name with the next free number: `ci` becomes `ci-2`, `ci-2` becomes `ci-3`."""
    matched = re.fullmatch(r"(.+)-(\d+)", key.name)
    base, number = (matched[1], int(matched[2])) if matched else (key.name, 1)
    taken = set(key.account.api_keys.values_list("name", flat=True))
    while True:
        number += 1
        suffix = f"-{number}"
        name = base[: NAME_LENGTH - len(suffix)] + suffix
        if name not in taken:
            return name
