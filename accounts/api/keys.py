"""/keys: an account manages its own keys, with a key of scope keys:manage.

Such a key can hand on no limit, scope, model, address or lifetime beyond its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from accounts.key_cache import build_authenticated_key, key_subject
from accounts.limits.types import BUDGET_FIELDS, RATE_FIELDS, Limits
from accounts.models import GENERATIONS, ApiKey, ModelBudget, public_model_name
from accounts.selectors import api_key_list, api_key_makers
from accounts.serializers import KeyAnswer, KeyRequest, NewKeyAnswer, RotateRequest
from accounts.services import BudgetFor, KeySettings, api_key_create, api_key_revoke, api_key_rotate
from accounts.validators import DEFAULT_SCOPES
from core.errors import InvalidRequest, NotFound, PermissionDenied

#: The name under which the API reports errors of no single field, by Django's.
FIELD_NAMES: dict[str, str] = {NON_FIELD_ERRORS: "non_field_errors"}
MORE_THAN_MAKER = "A key can't have more than the key that makes it."


class KeyManagementView(KeyView):
    """The base of the views of /keys: the calling key, and access to the keys of its account only."""

    required_scope = "keys:manage"

    @property
    def actor(self) -> str:
        """The actor for the audit log."""
        return f"key:{self.identity.account_name}/{self.identity.key_name}"

    def find_key(self, key_id: int) -> ApiKey:
        """Return a key of the caller's account; raises NotFound for any other."""
        found = api_key_list(account=self.identity.account_name).filter(pk=key_id).first()
        if found is None:
            raise NotFound
        return found

    def find_weaker_key(self, key_id: int) -> ApiKey:
        """Return the calling key, or one of its account that may do no more; raises NotFound, PermissionDenied."""
        key, own = self.find_key(key_id), self.find_key(self.identity.key_id)
        if key.pk == own.pk:
            return key
        beyond = exceeds(key, own)
        budgets = {each.model: each for each in key.model_budgets.all()}
        if any(
            _is_more(getattr(budgets.get(each.model), field, None), getattr(each, field))
            for each in own.model_budgets.all()
            for field in BUDGET_FIELDS
        ):
            beyond.append("model_budgets")
        above = {pk: {each.limits_id for each in makers} for pk, makers in api_key_makers([own, key]).items()}
        if not above[own.pk] <= above[key.pk]:  # it could help to escape the limits of a key above the calling one
            beyond.append("maker")
        if beyond:
            raise PermissionDenied(f"That key may do more than the calling key: {', '.join(beyond)}.")
        return key

    def handle_exception(self, exc: Exception) -> Response:
        """Answer 400 with the messages of a service that refuses a change."""
        if isinstance(exc, DjangoValidationError):
            fields = exc.message_dict if hasattr(exc, "error_dict") else {NON_FIELD_ERRORS: exc.messages}
            exc = InvalidRequest(errors={FIELD_NAMES.get(name, name): texts for name, texts in fields.items()})
        return super().handle_exception(exc)


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
        return Response(KeyAnswer(api_key_list(account=self.identity.account_name), many=True).data)

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
        asked = body.validated_data
        maker = self.find_key(self.identity.key_id)
        if len(api_key_makers([maker])[maker.pk]) >= GENERATIONS:
            raise PermissionDenied(
                f"This key can't make keys: it is {GENERATIONS} generations below a key that an operator made."
            )
        settings = delegated_settings(maker, asked)
        budgets = delegated_model_budgets(
            maker.model_budgets.all(), asked.get("model_budgets", ()), allowed=self.identity.may_use_model
        )
        key, plain = api_key_create(
            account=maker.account,
            tier=maker.tier,
            name=asked["name"],
            actor=self.actor,
            maker=maker,
            model_budgets=budgets,
            **settings,
        )
        return Response({"key": plain, **KeyAnswer(key).data}, status=201)


class KeyDetailView(KeyManagementView):
    """GET /keys/{id}."""

    @extend_schema(operation_id="keys_read", summary="See one key", responses=KeyAnswer)
    def get(self, request: Request, key_id: int) -> Response:
        """Show a key of the caller's account, without its secret."""
        return Response(KeyAnswer(self.find_key(key_id)).data)


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
        key = self.find_weaker_key(key_id)
        api_key_revoke(key=key, actor=self.actor)
        key.refresh_from_db()
        return Response(KeyAnswer(key).data)


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
        key = self.find_weaker_key(key_id)
        grace = timedelta(seconds=body.validated_data["grace_seconds"])
        successor, plain = api_key_rotate(key=key, grace=grace, actor=self.actor)
        return Response({"key": plain, **KeyAnswer(successor).data}, status=201)


def delegated_settings(maker: ApiKey, asked: Mapping[str, Any]) -> KeySettings:
    """Return the settings of a new key of the maker's tier: the requested ones, else the maker's.

    The scope `keys:manage` is only handed on if it is requested by name. Overrides end with the maker's. Raises
    InvalidRequest with every field in which the request exceeds the maker.
    """
    now = datetime.now(UTC)
    limits, end = key_subject(maker, now).limits, build_authenticated_key(maker, now).ends_at
    scopes, models = maker.scopes or sorted(DEFAULT_SCOPES), maker.allowed_models
    are_ended = maker.overrides_until is not None and maker.overrides_until <= now
    settings: dict[str, Any] = {
        "scopes": list(asked.get("scopes") or (scope for scope in scopes if scope in DEFAULT_SCOPES)),
        "models": list(asked.get("models") or models or maker.models),  # the same list if the maker may use none
        "allowed_ips": list(asked.get("allowed_ips") or maker.allowed_ips),
        "expires_at": asked.get("expires_at") or end,
        "overrides_until": None if are_ended else maker.overrides_until,
    }
    errors: dict[str, list[str]] = {}
    for name, own in (("scopes", scopes), ("models", models)):
        beyond = [each for each in asked.get(name) or () if own is not None and each not in own]
        if beyond:
            errors[name] = [f"Not among this key's own: {', '.join(beyond)}."]
    if not settings["scopes"]:  # an empty list would mean all of DEFAULT_SCOPES
        errors["scopes"] = [f"Name at least one of this key's own: {', '.join(scopes)}."]
    if not _within(settings["allowed_ips"], maker.allowed_ips):
        errors["allowed_ips"] = ["Not within this key's own addresses."]
    if end is not None and settings["expires_at"] > end:
        errors["expires_at"] = ["Later than this key's own."]
    for name in RATE_FIELDS:
        inherited = None if are_ended else getattr(maker, f"{name}_override")
        wanted = _at_most(name, asked.get(name), getattr(limits, name), errors)
        settings[f"{name}_override"] = wanted if name in asked else inherited
    for name in BUDGET_FIELDS:
        settings[name] = _at_most(name, asked.get(name), getattr(maker, name), errors)
    if errors:
        raise InvalidRequest(MORE_THAN_MAKER, errors=errors)
    return cast("KeySettings", settings)


def delegated_model_budgets(
    own: Iterable[ModelBudget], asked: Iterable[Mapping[str, Any]], *, allowed: Callable[[str], bool]
) -> list[BudgetFor]:
    """Return the model budgets of a new key: the requested ones, and the maker's for its other models.

    `allowed` returns whether the maker may use a model; whether other models exist is not revealed. Raises
    InvalidRequest if a requested budget exceeds the maker's.
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
        raise InvalidRequest(MORE_THAN_MAKER, errors=errors)
    return list(budgets.values())


def exceeds(key: ApiKey, caller: ApiKey) -> list[str]:
    """List the fields in which a key exceeds the calling one, which is of the same account.

    Rotating such a key would hand more on than the caller has; revoking it would stop a more trusted key.
    """
    now = datetime.now(UTC)
    its, own = build_authenticated_key(key, now), build_authenticated_key(caller, now)
    its_models, models = key.allowed_models, caller.allowed_models
    is_within = {
        "scopes": its.scopes <= own.scopes,
        "models": models is None or (its_models is not None and set(its_models) <= set(models)),
        "allowed_ips": _within(key.allowed_ips, caller.allowed_ips),
        "expires_at": own.ends_at is None or (key.expires_at is not None and key.expires_at <= own.ends_at),
        "max_output_tokens": its.max_output_tokens <= own.max_output_tokens,
    }
    # Overrides end: a key that is within bounds now may exceed them later.
    higher: set[str] = set()
    for at in {now, *(max(now, each.overrides_until) for each in (key, caller) if each.overrides_until is not None)}:
        limits, bounds = key_subject(key, at).limits, key_subject(caller, at).limits
        higher |= {name for name in Limits.__slots__ if _is_more(getattr(limits, name), getattr(bounds, name))}
    return [name for name, fits in is_within.items() if not fits] + sorted(higher)


def _is_more(other: Any, own: Any) -> bool:
    """Return whether a limit is higher than another; None is no limit."""
    return own is not None and (other is None or other > own)


def _within(inner: Sequence[str], outer: Sequence[str]) -> bool:
    """Return whether every network lies in one of the outer ones; without outer ones, any is allowed."""
    if not outer:
        return True
    outer_networks = [ipaddress.ip_network(text) for text in outer]
    return bool(inner) and all(
        any(small.version == big.version and small.subnet_of(big) for big in outer_networks)  # type: ignore[arg-type]
        for small in map(ipaddress.ip_network, inner)
    )


def _at_most(name: str, asked: Any, own: Any, errors: dict[str, list[str]]) -> Any:
    if asked is not None and own is not None and asked > own:
        errors[name] = [f"More than this key's own {own}."]
    return own if asked is None else asked
