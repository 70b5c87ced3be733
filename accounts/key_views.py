"""/keys: an account manages its own keys, with a key of scope keys:manage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from django.core.exceptions import NON_FIELD_ERRORS
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.delegation import (
    delegated_model_budgets,
    delegated_settings,
    exceeds,
    exceeds_model_budgets,
    is_beside,
    require_generation,
)
from accounts.exceptions import InvalidRequest, NotFound, PermissionDenied
from accounts.idempotency import Claim, is_final
from accounts.models import ApiKey
from accounts.selectors import api_key_list
from accounts.serializers import KeyAnswer, KeyRequest, NewKeyAnswer, RotateRequest
from accounts.services import api_key_create, api_key_revoke, api_key_rotate
from accounts.snapshots import Identity
from accounts.views import KeyView

#: Under which the API tells what concerns no single field.
NON_FIELD_ERRORS_KEY = "non_field_errors"


class KeyManagementView(KeyView):
    """What the views of /keys share: the caller's key, and the keys of its account alone."""

    required_scope = "keys:manage"

    def identity(self, request: Request) -> Identity:
        """Return who asks."""
        identity: Identity = request._request.identity  # type: ignore[attr-defined]
        return identity

    def actor(self, request: Request) -> str:
        """Name who asks, for the audit log."""
        identity = self.identity(request)
        return f"key:{identity.account_name}/{identity.key_name}"

    def find_key(self, request: Request, key_id: int) -> ApiKey:
        """Return a key of the caller's account; raises NotFound for any other."""
        found = api_key_list(account=self.identity(request).account_name).filter(pk=key_id).first()
        if found is None:
            raise NotFound
        return found

    def find_weaker_key(self, request: Request, key_id: int) -> ApiKey:
        """Return the caller's own key, or one of its account that may do no more; raises NotFound, PermissionDenied."""
        key = self.find_key(request, key_id)
        own = self.find_key(request, self.identity(request).key_id)
        if key.pk == own.pk:
            return key
        beyond = exceeds(key, own)
        if exceeds_model_budgets(key.model_budgets.all(), own.model_budgets.all()):
            beyond.append("model_budgets")
        if is_beside(key, own):
            beyond.append("maker")
        if beyond:
            raise PermissionDenied(f"That key may do more than the one that asks: {', '.join(beyond)}.")
        return key


View = TypeVar("View", bound=KeyManagementView)
Params = ParamSpec("Params")
Post = Callable[Concatenate[View, Request, Params], Response]


def answered_once(post: Post[View, Params]) -> Post[View, Params]:
    """Make a POST's claim on its Idempotency-Key, its change and its answer one transaction.

    The kept answer has no secret: a key is shown in its first answer only, and a retry gets all the rest of it.
    """

    @wraps(post)
    def answer(view: View, request: Request, /, *args: Params.args, **kwargs: Params.kwargs) -> Response:
        claim = Claim.of(request, view.identity(request))
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
        keys = api_key_list(account=self.identity(request).account_name)
        return Response([_shown(key) for key in keys])

    @extend_schema(
        operation_id="keys_create",
        summary="Make a key",
        description="Of the asking key's tier. No limit, scope, model or address may exceed the asking key's own. What "
        "the new key uses counts against the limits and budgets of the asking key as well, and of those above that.",
        request=KeyRequest,
        responses={201: NewKeyAnswer},
    )
    @answered_once
    def post(self, request: Request) -> Response:
        """Make a key, and show its secret this once."""
        body = KeyRequest(data=request.data)
        body.is_valid(raise_exception=True)
        asked = dict(body.validated_data)
        creator = self.find_key(request, self.identity(request).key_id)
        require_generation(creator)
        name = asked.pop("name")
        identity, wanted = self.identity(request), asked.pop("model_budgets", [])
        settings = delegated_settings(creator, asked)
        budgets = delegated_model_budgets(creator.model_budgets.all(), wanted, allowed=identity.may_use_model)
        with _refusals_told():
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
        description="A key that may do more than the asking one can't be revoked. Keys that it made go on working, and "
        "its limits go on applying to them.",
        request=None,
        responses=KeyAnswer,
    )
    @answered_once
    def post(self, request: Request, key_id: int) -> Response:
        """Revoke a key of the caller's account; one that is revoked stays so."""
        key = self.find_weaker_key(request, key_id)
        api_key_revoke(key=key, actor=self.actor(request))
        key.refresh_from_db()
        return Response(_shown(key))


class KeyRotateView(KeyManagementView):
    """POST /keys/{id}/rotate."""

    @extend_schema(
        operation_id="keys_rotate",
        summary="Replace a key by a new one with the same settings",
        description="Both work during the grace period. A key that may do more than the asking one can't be rotated.",
        request=RotateRequest,
        responses={201: NewKeyAnswer},
    )
    @answered_once
    def post(self, request: Request, key_id: int) -> Response:
        """Make a successor, and show its secret this once."""
        body = RotateRequest(data=request.data)
        body.is_valid(raise_exception=True)
        key = self.find_weaker_key(request, key_id)
        grace = timedelta(seconds=body.validated_data["grace_seconds"])
        with _refusals_told():
            successor, plain = api_key_rotate(key=key, grace=grace, actor=self.actor(request))
        return Response(_shown(successor, plain), status=201)


def _shown(key: ApiKey, plain: str | None = None) -> dict[str, Any]:
    key.state = key.state_at(datetime.now(UTC))  # type: ignore[attr-defined]  # for the serializer
    if plain is None:
        return dict(KeyAnswer(key).data)
    key.key = plain  # type: ignore[attr-defined]
    return dict(NewKeyAnswer(key).data)


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Turn what the services refuse into the caller's 400."""
    try:
        yield
    except DjangoValidationError as error:
        fields = error.message_dict if hasattr(error, "error_dict") else {NON_FIELD_ERRORS_KEY: error.messages}
        errors = {NON_FIELD_ERRORS_KEY if name == NON_FIELD_ERRORS else name: texts for name, texts in fields.items()}
        raise InvalidRequest(errors=errors) from error
