"""/keys: an account manages its own keys, with a key of scope keys:manage.

Such a key can hand on no limit, scope, model, address or lifetime beyond its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from django.core.exceptions import NON_FIELD_ERRORS
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import KeyView
from accounts.idempotency import Claim, is_final
from accounts.key_cache import build_authenticated_key
from accounts.models import GENERATIONS, ApiKey, ModelBudget, public_model_name
from accounts.selectors import api_key_list, api_key_makers
from accounts.serializers import KeyAnswer, KeyRequest, NewKeyAnswer, RotateRequest
from accounts.services import BudgetFor, KeySettings, api_key_create, api_key_revoke, api_key_rotate
from accounts.validators import DEFAULT_SCOPES
from core.errors import InvalidRequest, NotFound, PermissionDenied
from core.network import Network

#: The name under which the API reports errors of no single field.
NON_FIELD_ERRORS_KEY = "non_field_errors"


class KeyManagementView(KeyView):
    """The base of the views of /keys: the calling key, and access to the keys of its account only."""

    required_scope = "keys:manage"

    def actor(self, request: Request) -> str:
        """Return the actor for the audit log."""
        return f"key:{self.identity.account_name}/{self.identity.key_name}"

    def find_key(self, request: Request, key_id: int) -> ApiKey:
        """Return a key of the caller's account; raises NotFound for any other."""
        found = api_key_list(account=self.identity.account_name).filter(pk=key_id).first()
        if found is None:
            raise NotFound
        return found

    def find_weaker_key(self, request: Request, key_id: int) -> ApiKey:
        """Return the calling key, or one of its account that may do no more; raises NotFound, PermissionDenied."""
        key = self.find_key(request, key_id)
        own = self.find_key(request, self.identity.key_id)
        if key.pk == own.pk:
            return key
        beyond = exceeds(key, own)
        if exceeds_model_budgets(key.model_budgets.all(), own.model_budgets.all()):
            beyond.append("model_budgets")
        if is_beside(key, own):
            beyond.append("maker")
        if beyond:
            raise PermissionDenied(f"That key may do more than the calling key: {', '.join(beyond)}.")
        return key


View = TypeVar("View", bound=KeyManagementView)
Params = ParamSpec("Params")
Post = Callable[Concatenate[View, Request, Params], Response]


def answered_once(post: Post[View, Params]) -> Post[View, Params]:
    """Run a POST's claim on its Idempotency-Key, its change, and the storing of its answer in one transaction.

    The kept answer omits the secret: only the first answer shows it, a retry gets the rest.
    """

    @wraps(post)
    def answer(view: View, request: Request, /, *args: Params.args, **kwargs: Params.kwargs) -> Response:
        claim = Claim.of(request, view.identity)
        if claim is None:
            return post(view, request, *args, **kwargs)
        with transaction.atomic():
            claim.insert()
            try:
                with transaction.atomic():
                    response = post(view, request, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  (the handler answers any)
                response = view.handle_exception(error)
            if is_final(response):
                shown = {name: value for name, value in response.data.items() if name != "key"}
                claim.keep(response.status_code, {"Content-Type": "application/json"}, JSONRenderer().render(shown))
            else:
                transaction.set_rollback(True)
        return response

    return answer


class KeysView(KeyManagementView):
    """GET and POST /keys."""

    @extend_schema(operation_id="keys_list", summary="List the account's keys", responses=KeyAnswer(many=True))
    def get(self, request: Request) -> Response:
        """List the keys of the caller's account, without secrets."""
        keys = api_key_list(account=self.identity.account_name)
        return Response([_shown(key) for key in keys])

    @extend_schema(
        operation_id="keys_create",
        summary="Create a key",
        description="The new key has the calling key's tier. No limit, scope, model or address may exceed the calling "
        "key's. Its usage also counts against the limits and budgets of the calling key, and of the keys above that.",
        request=KeyRequest,
        responses={201: NewKeyAnswer},
    )
    @answered_once
    def post(self, request: Request) -> Response:
        """Create a key, and show its secret this once."""
        body = KeyRequest(data=request.data)
        body.is_valid(raise_exception=True)
        asked = dict(body.validated_data)
        creator = self.find_key(request, self.identity.key_id)
        require_generation(creator)
        name = asked.pop("name")
        identity, wanted = self.identity, asked.pop("model_budgets", [])
        settings = delegated_settings(creator, asked)
        budgets = delegated_model_budgets(creator.model_budgets.all(), wanted, allowed=identity.may_use_model)
        with _validation_errors_as_400():
            key, plain = api_key_create(
                account=creator.account,
                tier=creator.tier,
                name=name,
                actor=self.actor(request),
                maker=creator,
                model_budgets=budgets,
                **settings,
            )
        return Response(_shown(key, plain), status=201)


class KeyDetailView(KeyManagementView):
    """GET /keys/{id}."""

    @extend_schema(operation_id="keys_read", summary="See one key", responses=KeyAnswer)
    def get(self, request: Request, key_id: int) -> Response:
        """Show a key of the caller's account, without its secret."""
        return Response(_shown(self.find_key(request, key_id)))


class KeyRevokeView(KeyManagementView):
    """POST /keys/{id}/revoke."""

    @extend_schema(
        operation_id="keys_revoke",
        summary="Stop a key for good",
        description="A key that may do more than the calling key can't be revoked. Keys that the revoked key created "
        "keep working, under its limits as before.",
        request=None,
        responses=KeyAnswer,
    )
    @answered_once
    def post(self, request: Request, key_id: int) -> Response:
        """Revoke a key of the caller's account; a revoked key stays revoked."""
        key = self.find_weaker_key(request, key_id)
        api_key_revoke(key=key, actor=self.actor(request))
        key.refresh_from_db()
        return Response(_shown(key))


class KeyRotateView(KeyManagementView):
    """POST /keys/{id}/rotate."""

    @extend_schema(
        operation_id="keys_rotate",
        summary="Replace a key by a new one with the same settings",
        description="Both work during the grace period. A key that may do more than the calling key can't be rotated.",
        request=RotateRequest,
        responses={201: NewKeyAnswer},
    )
    @answered_once
    def post(self, request: Request, key_id: int) -> Response:
        """Create a successor, and show its secret this once."""
        body = RotateRequest(data=request.data)
        body.is_valid(raise_exception=True)
        key = self.find_weaker_key(request, key_id)
        grace = timedelta(seconds=body.validated_data["grace_seconds"])
        with _validation_errors_as_400():
            successor, plain = api_key_rotate(key=key, grace=grace, actor=self.actor(request))
        return Response(_shown(successor, plain), status=201)


def _shown(key: ApiKey, plain: str | None = None) -> dict[str, Any]:
    key.state = key.state_at(datetime.now(UTC))  # type: ignore[attr-defined]  # for the serializer
    if plain is None:
        return dict(KeyAnswer(key).data)
    key.key = plain  # type: ignore[attr-defined]
    return dict(NewKeyAnswer(key).data)


@contextmanager
def _validation_errors_as_400() -> Iterator[None]:
    """Turn validation errors of the services into a 400."""
    try:
        yield
    except DjangoValidationError as error:
        fields = error.message_dict if hasattr(error, "error_dict") else {NON_FIELD_ERRORS_KEY: error.messages}
        errors = {NON_FIELD_ERRORS_KEY if name == NON_FIELD_ERRORS else name: texts for name, texts in fields.items()}
        raise InvalidRequest(errors=errors) from error


_RATES = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
_BUDGETS = ("monthly_token_budget", "monthly_cost_budget")


def delegated_settings(creator: ApiKey, asked: Mapping[str, Any]) -> KeySettings:
    """Return the settings of a new key of the creator's tier: the requested ones, else the creator's.

    The scope `keys:manage` is only handed on if it is requested by name. Raises InvalidRequest with every field in
    which the request exceeds the creator.
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
        raise InvalidRequest("A key can't have more than the key that makes it.", errors=errors)
    return cast("KeySettings", settings)


def delegated_model_budgets(
    own: Iterable[ModelBudget], asked: Iterable[Mapping[str, Any]], *, allowed: Callable[[str], bool]
) -> list[BudgetFor]:
    """Return the model budgets of a new key: the requested ones, and the creator's for its other models.

    `allowed` returns whether the creator may use a model; whether other models exist is not revealed. Raises
    InvalidRequest if a requested budget exceeds the creator's.
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
        raise InvalidRequest("A key can't have more than the key that makes it.", errors=errors)
    return list(budgets.values())


def require_generation(creator: ApiKey) -> None:
    """Raise PermissionDenied for a key that already has the maximum number of makers above it."""
    if len(api_key_makers([creator])[creator.pk]) >= GENERATIONS:
        raise PermissionDenied(
            f"This key can't make keys: it is {GENERATIONS} generations below a key that an operator made."
        )


def is_beside(key: ApiKey, creator: ApiKey) -> bool:
    """Return whether a key does not count against every key above the creator: it could help to escape their limits."""
    makers = api_key_makers([creator, key])
    return not {each.limits_id for each in makers[creator.pk]} <= {each.limits_id for each in makers[key.pk]}


def exceeds_model_budgets(key: Iterable[ModelBudget], creator: Iterable[ModelBudget]) -> bool:
    """Return whether a key lacks one of the creator's model budgets, or has a larger one."""
    others = {each.model: each for each in key}
    return any(
        own is not None and ((other := getattr(others.get(each.model), field, None)) is None or other > own)
        for each in creator
        for field in _BUDGETS
        for own in [getattr(each, field)]
    )


def exceeds(key: ApiKey, creator: ApiKey) -> list[str]:
    """List the fields in which a key of the same account exceeds another.

    Rotating such a key would hand more on than the other has; revoking it would stop a more trusted key.
    """
    now = datetime.now(UTC)
    mine, other = build_authenticated_key(creator, now), build_authenticated_key(key, now)
    end, models, others = _end(creator), _models(creator), _models(key)
    facts = {
        "scopes": other.scopes <= mine.scopes,
        "models": models is None or (others is not None and set(others) <= set(models)),
        "allowed_ips": _within(other.networks, mine.networks),
        "expires_at": end is None or (key.expires_at is not None and key.expires_at <= end),
        "max_output_tokens": other.max_output_tokens <= mine.max_output_tokens,
    }
    # Overrides end: a key that is within bounds now may exceed them later.
    times = {now, *(each.overrides_until for each in (creator, key) if each.overrides_until is not None)}
    higher = {name for time in times for name in _higher(key, creator, max(time, now))}
    return [name for name, is_within in facts.items() if not is_within] + sorted(higher)


def _higher(key: ApiKey, creator: ApiKey, at: datetime) -> list[str]:
    """List the limits that are higher for the key than for the creator at a time."""
    mine, others = (build_authenticated_key(each, at).limits.subjects[0].limits for each in (creator, key))
    pairs = {name: (getattr(others, name), getattr(mine, name)) for name in type(mine).__slots__}
    return [name for name, (other, own) in pairs.items() if own is not None and (other is None or other > own)]


def _end(key: ApiKey) -> datetime | None:
    """Return when a key stops working: at its expiry or its revocation; None: never."""
    return min((end for end in (key.expires_at, key.revoked_at) if end is not None), default=None)


def _models(key: ApiKey) -> list[str] | None:
    """Return the models that both tier and key allow, which may be none; None: all."""
    if not key.models or not key.tier.models:
        return list(key.models or key.tier.models) or None
    return [name for name in key.models if name in key.tier.models]


def _models_asked(asked: Mapping[str, Any], creator: ApiKey, errors: dict[str, list[str]]) -> list[str]:
    """Return the models of a new key. If the creator may use no model, the new key gets the same list."""
    own = _models(creator)
    wanted = list(asked.get("models") or own or creator.models)
    beyond = [] if own is None or not asked.get("models") else [name for name in wanted if name not in own]
    if beyond:
        errors["models"] = [f"Not among this key's own: {', '.join(beyond)}."]
    return wanted


def _scopes(asked: Mapping[str, Any], creator: ApiKey, errors: dict[str, list[str]]) -> list[str]:
    """Return the scopes of a new key, at least one: an empty list would mean all of DEFAULT_SCOPES."""
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
    """Return whether every network lies in one of the outer ones; without outer ones, any is allowed."""
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
    """Return the overrides of a new key. They end with the creator's."""
    now = datetime.now(UTC)
    are_ended = creator.overrides_until is not None and creator.overrides_until <= now
    effective = build_authenticated_key(creator, now).limits.subjects[0].limits
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
