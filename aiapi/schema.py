"""The OpenAPI 3.1 description (drf-spectacular): authentication schemes, error responses and strict bodies."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import Direction, OpenApiParameter
from rest_framework import serializers

from inference.api.errors import is_anthropic_path, is_openai_path

#: Descriptions of error responses, by status.
ERRORS = {
    400: "The body or a parameter is invalid; `errors` names the fields.",
    401: "The key is missing or invalid.",
    403: "The key may not be used for this, or from this address.",
    404: "The object does not exist, or this key may not use it.",
    406: "The Accept header allows no supported format.",
    409: "A request with the same Idempotency-Key is in progress.",
    413: "The body is too large.",
    415: "The body is not declared as application/json.",
    422: "The Idempotency-Key was used for another request.",
    429: "A limit is reached. `limit` names it; Retry-After has the seconds to wait.",
    500: "An internal error; the log has it under the request's id.",
    502: "The model provider failed.",
    503: "A dependency is unavailable, or it or the service has no capacity. Retry-After has the seconds to wait.",
    504: "The model provider did not answer in time.",
}
#: Error statuses of an endpoint: without a key (OPEN), with a key, and in addition those with a body, query
#: parameters, a name or id in the path, or a model call.
OPEN_ERRORS: tuple[int, ...] = (406, 500)
KEY_ERRORS = (401, 403, 406, 429, 500, 503)
BODY_ERRORS = (400, 409, 413, 415, 422)
PARAMETER_ERRORS = (400,)
NAME_ERRORS = (404,)
MODEL_ERRORS = (404, 502, 504)

#: At least one character that isn't white space, and no NUL.
NOT_BLANK = r"^[^\x00]*[^\s\x00][^\x00]*$"

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    pattern=r"^[\x21-\x7e]{1,255}$",
    description="A unique name for this request. Repeated within 24 hours, it returns the same answer at no cost.",
)

#: Tags by the first part of a path, `/v1` left out; all others are of the service (API_TAGS has their order).
TAGS = {
    **dict.fromkeys(("chat", "summarize", "completions", "responses", "messages", "embeddings"), "Ask a model"),
    "models": "Models",
    **dict.fromkeys(("usage", "requests", "stats"), "Usage"),
    "keys": "Keys",
}
SCHEMES = {
    "ApiKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "BearerKey": {"type": "http", "scheme": "bearer"},
}


class LimitBody(serializers.Serializer[Any]):
    """The limit that refused a request."""

    name = serializers.CharField(help_text="Such as requests_per_minute or monthly_cost.")
    owner = serializers.CharField(help_text="key or account.")
    used = serializers.JSONField(help_text="In the limit's unit; money as a text in US dollars.")
    limit = serializers.JSONField(help_text="In the same unit.")
    reset = serializers.IntegerField(help_text="When the limit resets, in seconds since the epoch.")
    needed = serializers.JSONField(
        required=False, help_text="Of a budget that does not cover the call: the most that the call may use."
    )


class ErrorBody(serializers.Serializer[Any]):
    """The body of every error answer."""

    detail = serializers.CharField(help_text="What is wrong, for a person.")
    code = serializers.CharField(help_text="What is wrong, for a program: stable.")
    request_id = serializers.CharField(allow_null=True, help_text="As in X-Request-ID.")
    errors = serializers.DictField(  # type: ignore[assignment]  # a field of the body, not the property it hides
        child=serializers.ListField(child=serializers.CharField()), required=False, help_text="Messages by field."
    )
    limit = LimitBody(required=False)


class OpenAIError(serializers.Serializer[Any]):
    """What is wrong, as OpenAI's clients expect it."""

    message = serializers.CharField(help_text="What is wrong, for a person.")
    type = serializers.CharField(
        help_text="`invalid_request_error`, `server_error`; of a 429 `requests`, `tokens` or `insufficient_quota`."
    )
    param = serializers.CharField(allow_null=True, help_text="The parameter at fault.")
    code = serializers.CharField(allow_null=True, help_text="What is wrong, for a program: stable.")
    limit = LimitBody(required=False)


class OpenAIErrorBody(serializers.Serializer[Any]):
    """The body of every error answer under /v1."""

    error = OpenAIError()


class AnthropicError(serializers.Serializer[Any]):
    """What is wrong, as Anthropic's clients expect it."""

    type = serializers.CharField(help_text="Anthropic's type, such as `rate_limit_error` or `overloaded_error`.")
    message = serializers.CharField(help_text="What is wrong, for a person.")
    code = serializers.CharField(help_text="What is wrong, for a program: stable.")
    param = serializers.CharField(allow_null=True, help_text="The parameter at fault.")
    limit = LimitBody(required=False)


class AnthropicErrorBody(serializers.Serializer[Any]):
    """The body of every error answer under /v1/messages."""

    type = serializers.CharField(help_text="Always `error`.")
    error = AnthropicError()
    request_id = serializers.CharField(allow_null=True, help_text="As in X-Request-ID.")


class KeySecurity(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registers itself when defined
    """Describes ApiKeyAuthentication: two alternative schemes."""

    target_class = "accounts.authentication.ApiKeyAuthentication"
    name = list(SCHEMES)

    def get_security_definition(self, auto_schema: AutoSchema) -> list[dict[str, Any]]:
        """Return the schemes' definitions in the order of their names."""
        return list(SCHEMES.values())

    def get_security_requirement(self, auto_schema: AutoSchema) -> list[dict[str, list[str]]]:
        """Return the schemes as alternatives. In one mapping, both would be required."""
        return [{name: []} for name in SCHEMES]


class StaffSecurity(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """Describes the session of the admin."""

    target_class = "monitoring.views.StaffSession"
    name = "AdminSession"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        """Return the definition of the session cookie."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


class StrictBody(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Describes request bodies that reject unknown fields."""

    target_class = "accounts.serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: Direction) -> dict[str, Any]:
        """Return the serializer's schema without additional properties."""
        schema: dict[str, Any] = auto_schema._map_serializer(self.target, direction, True)  # type: ignore[no-untyped-call]
        return {**schema, "additionalProperties": False}


def without_slashes(endpoints: list[tuple[str, str, str, Any]]) -> list[tuple[str, str, str, Any]]:
    """Return the endpoints without trailing slashes. Both forms work; one is described."""
    return [(path.rstrip("/") or "/", regex, method, view) for path, regex, method, view in endpoints]


class ApiSchema(AutoSchema):
    """Describes an endpoint, including its error responses and the Idempotency-Key header."""

    def get_tags(self) -> list[str]:
        """Return the tag of the endpoint's purpose."""
        first = self.path.removeprefix("/v1").strip("/").partition("/")[0]
        return [TAGS.get(first, "Service")]

    def get_auth(self) -> list[dict[str, Any]]:
        """Return the security requirements, with alternatives of one authentication class flattened."""
        spread: list[dict[str, Any]] = []
        offered: list[Any] = super().get_auth()
        for requirement in offered:
            spread.extend(requirement if isinstance(requirement, list) else [requirement])
        return spread

    def _get_response_bodies(self, direction: Direction = "response") -> dict[str, Any]:
        """Add the error responses that an endpoint of this kind can give."""
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        statuses = OPEN_ERRORS
        if self.view.authentication_classes:
            statuses = (
                KEY_ERRORS
                + (PARAMETER_ERRORS if hasattr(self.view, "query") else ())
                + (BODY_ERRORS if self.method == "POST" else ())
                + (NAME_ERRORS if "{" in self.path else ())
                + (MODEL_ERRORS if hasattr(self.view, "endpoint") else ())
            )
        serializer: type[serializers.Serializer[Any]] = ErrorBody
        if is_openai_path(self.path):
            serializer = AnthropicErrorBody if is_anthropic_path(self.path) else OpenAIErrorBody
        for status in map(str, statuses):
            if status not in bodies:
                body: dict[str, Any] = self._get_response_for_code(serializer(), status)  # type: ignore[no-untyped-call]
                bodies[status] = {**body, "description": ERRORS[int(status)]}
        return dict(sorted(bodies.items()))

    def get_override_parameters(self) -> list[Any]:
        """Add the Idempotency-Key header to every POST with a key."""
        parameters: list[Any] = super().get_override_parameters()
        takes_key = self.method == "POST" and self.view.authentication_classes
        return [*parameters, IDEMPOTENCY_KEY] if takes_key else parameters

    def _map_serializer_field(
        self, field: Any, direction: Direction, bypass_extensions: bool = False
    ) -> dict[str, Any]:
        """Return a field's schema with the constraints that drf-spectacular omits.

        These are the patterns of non-blank texts and of decimal numbers, and the least length of lists. A schema that
        accepts any JSON needs no alternative for null.
        """
        schema: dict[str, Any] = super()._map_serializer_field(field, direction, bypass_extensions)  # type: ignore[no-untyped-call]
        if isinstance(field, serializers.CharField) and direction == "request" and not field.allow_blank:
            schema.update(minLength=max(1, schema.get("minLength", 1)), pattern=NOT_BLANK)
        if isinstance(field, serializers.DecimalField):
            sign = "" if field.min_value is not None else "-?"
            schema["pattern"] = rf"^{sign}\d{{1,{field.max_whole_digits}}}(\.\d{{1,{field.decimal_places}}})?$"
        if isinstance(field, serializers.ListSerializer) and not field.allow_empty:
            schema["minItems"] = 1
        if schema.get("oneOf") == [{}, {"type": "null"}]:
            del schema["oneOf"]
        return schema
