"""What a key that manages keys may hand on: no limit, scope, model, address or time that is not its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from accounts.addresses import Network
from accounts.exceptions import InvalidRequest, PermissionDenied
from accounts.model_names import public_model_name
from accounts.models import GENERATIONS, ApiKey, ModelBudget
from accounts.selectors import api_key_makers
from accounts.services import BudgetFor, KeySettings
from accounts.snapshots import build_identity
from accounts.validators import DEFAULT_SCOPES

_RATES = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
_BUDGETS = ("monthly_token_budget", "monthly_cost_budget")


def delegated_settings(creator: ApiKey, asked: Mapping[str, Any]) -> KeySettings:
    """Return the settings of a new key of the creator's tier: as asked, and where nothing is asked, the creator's.

    The scope `keys:manage` is handed on to who asks for it by name only.

    Raises InvalidRequest that names every field in which more was asked than the creator has.
    """
    errors: dict[str, list[str]] = {}
    settings: dict[str, Any] = {
        "scopes": _scopes(asked, creator, errors),
        "models": _models_asked(asked, creator, errors),
        "allowed_ips": _networks(asked, creator, errors),
        "expires_at": _earlier(asked.get("expires_at"), _end(creator), errors),
        **_rates(asked, creator, errors),
    }
    for name in _BUDGETS:
        settings[name] = _at_most(name, asked.get(name), getattr(creator, name), errors)
    if errors:
        raise InvalidRequest("A key can't be given more than the key that makes it has.", errors=errors)
    return cast("KeySettings", settings)


def delegated_model_budgets(
    own: Iterable[ModelBudget], asked: Iterable[Mapping[str, Any]], *, allowed: Callable[[str], bool]
) -> list[BudgetFor]:
    """Return the budgets for single models of a new key: as asked, and for the creator's other models as it has them.

    `allowed` says whether the creator may use a model: of others it is not told whether they exist. Raises
    InvalidRequest where more is asked than the creator's own.
    """
    budgets = {each.model: BudgetFor(each.model, each.monthly_token_budget, each.monthly_cost_budget) for each in own}
    errors: dict[str, list[str]] = {}
    for each in asked:
        name = public_model_name(each["model"])
        if name is None or not allowed(name):
            errors.setdefault("model_budgets", []).append(f"This key may not use {each['model']}.")
            continue
        mine = budgets.get(name, BudgetFor(name, None, None))
        budgets[name] = BudgetFor(
            name,
            _at_most("model_budgets", each["monthly_token_budget"], mine.tokens, errors),
            _at_most("model_budgets", each["monthly_cost_budget"], mine.cost, errors),
        )
    if errors:
        raise InvalidRequest("A key can't be given more than the key that makes it has.", errors=errors)
    return list(budgets.values())


def require_generation(creator: ApiKey) -> None:
    """Raise PermissionDenied for a key that has as many above it as a key can have."""
    if len(api_key_makers([creator])[creator.pk]) >= GENERATIONS:
        raise PermissionDenied(
            f"This key can't make keys: it is {GENERATIONS} generations below a key that an operator made."
        )


def is_beside(key: ApiKey, creator: ApiKey) -> bool:
    """Say whether a key doesn't count against all those that made another: with it, these limits could be escaped."""
    makers = api_key_makers([creator, key])
    return not {each.limits_id for each in makers[creator.pk]} <= {each.limits_id for each in makers[key.pk]}


def exceeds_model_budgets(key: Iterable[ModelBudget], creator: Iterable[ModelBudget]) -> bool:
    """Say whether a key lacks one of another key's budgets for a model, or has a larger one."""
    others = {each.model: each for each in key}
    return any(
        own is not None and ((other := getattr(others.get(each.model), field, None)) is None or other > own)
        for each in creator
        for field in _BUDGETS
        for own in [getattr(each, field)]
    )


def exceeds(key: ApiKey, creator: ApiKey) -> list[str]:
    """Name what a key of the same account has beyond another: to rotate it would hand that on, to revoke it
    stop who is trusted with more."""
    now = datetime.now(UTC)
    mine, other = build_identity(creator, now), build_identity(key, now)
    end, models, others = _end(creator), _models(creator), _models(key)
    facts = {
        "scopes": other.scopes <= mine.scopes,
        "models": models is None or (others is not None and set(others) <= set(models)),
        "allowed_ips": _within(other.networks, mine.networks),
        "expires_at": end is None or (key.expires_at is not None and key.expires_at <= end),
        "max_output_tokens": other.max_output_tokens <= mine.max_output_tokens,
    }
    # Overrides end: what is within bounds now may not be then.
    moments = {now, *(each.overrides_until for each in (creator, key) if each.overrides_until is not None)}
    higher = {name for moment in moments for name in _higher(key, creator, max(moment, now))}
    return [name for name, is_within in facts.items() if not is_within] + sorted(higher)


def _higher(key: ApiKey, creator: ApiKey, moment: datetime) -> list[str]:
    """Name the limits that are higher with one key than with another at a moment."""
    mine, others = (build_identity(each, moment).limits.subjects[0].limits for each in (creator, key))
    pairs = {name: (getattr(others, name), getattr(mine, name)) for name in type(mine).__slots__}
    return [name for name, (other, own) in pairs.items() if own is not None and (other is None or other > own)]


def _end(key: ApiKey) -> datetime | None:
    """Return when a key stops: by its date, or because it was replaced."""
    return min((moment for moment in (key.expires_at, key.revoked_at) if moment is not None), default=None)


def _models(key: ApiKey) -> list[str] | None:
    """Return the models that tier and key allow together, which may be none; None: all."""
    if not key.models or not key.tier.models:
        return list(key.models or key.tier.models) or None
    return [name for name in key.models if name in key.tier.models]


def _models_asked(asked: Mapping[str, Any], creator: ApiKey, errors: dict[str, list[str]]) -> list[str]:
    """Return the models of a new key. Where the creator may use none, so may the new key: it gets the same list."""
    own = _models(creator)
    wanted = list(asked.get("models") or own or creator.models)
    beyond = [] if own is None or not asked.get("models") else [name for name in wanted if name not in own]
    if beyond:
        errors["models"] = [f"Not among this key's own: {', '.join(beyond)}."]
    return wanted


def _scopes(asked: Mapping[str, Any], creator: ApiKey, errors: dict[str, list[str]]) -> list[str]:
    """Return the scopes of a new key; none would mean every scope of DEFAULT_SCOPES, so that there is one at least."""
    own = creator.scopes or sorted(DEFAULT_SCOPES)
    wanted = list(asked.get("scopes") or (scope for scope in own if scope in DEFAULT_SCOPES))
    beyond = [scope for scope in wanted if scope not in own]
    if beyond:
        errors["scopes"] = [f"Not among this key's own: {', '.join(beyond)}."]
    elif not wanted:
        errors["scopes"] = [f"Name at least one of this key's own: {', '.join(own)}."]
    return wanted


def _networks(asked: Mapping[str, Any], creator: ApiKey, errors: dict[str, list[str]]) -> list[str]:
    wanted = list(asked.get("allowed_ips") or creator.allowed_ips)
    own = [ipaddress.ip_network(text) for text in creator.allowed_ips]
    if not _within([ipaddress.ip_network(text) for text in wanted], own):
        errors["allowed_ips"] = ["Not within this key's own addresses."]
    return wanted


def _within(inner: Any, outer: Any) -> bool:
    """Say whether every network lies in one of the outer ones; no outer ones: anywhere is allowed."""
    return not outer or (bool(inner) and all(any(_contains(big, small) for big in outer) for small in inner))


def _contains(big: Network, small: Network) -> bool:
    if isinstance(big, ipaddress.IPv4Network) and isinstance(small, ipaddress.IPv4Network):
        return small.subnet_of(big)
    if isinstance(big, ipaddress.IPv6Network) and isinstance(small, ipaddress.IPv6Network):
        return small.subnet_of(big)
    return False


def _earlier(asked: datetime | None, own: datetime | None, errors: dict[str, list[str]]) -> datetime | None:
    if asked is not None and own is not None and asked > own:
        errors["expires_at"] = ["Later than this key's own."]
    return asked or own


def _rates(asked: Mapping[str, Any], creator: ApiKey, errors: dict[str, list[str]]) -> dict[str, Any]:
    """Return the overrides of a new key. They end when the creator's do, and with them what it may hand on."""
    now = datetime.now(UTC)
    are_ended = creator.overrides_until is not None and creator.overrides_until <= now
    effective = build_identity(creator, now).limits.subjects[0].limits
    rates: dict[str, Any] = {"overrides_until": None if are_ended else creator.overrides_until}
    for name in _RATES:
        own = None if are_ended else getattr(creator, f"{name}_override")
        if name in asked:
            own = _at_most(name, asked[name], getattr(effective, name), errors)
        rates[f"{name}_override"] = own
    return rates


def _at_most(name: str, asked: Any, own: Any, errors: dict[str, list[str]]) -> Any:
    if asked is not None and own is not None and asked > own:
        errors[name] = [f"More than this key's own {own}."]
    return own if asked is None else asked
