"""DRF's exception handler, which turns every exception into an error response.

The body is `{detail, code, request_id, errors?}`, and under /v1 OpenAI's `{error: {...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import structlog
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import Error as DatabaseError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions as drf
from rest_framework.request import Request
from rest_framework.response import Response

from core import errors as api
from inference.api.errors import is_openai_path, openai_error_body

log = structlog.get_logger("aiapi.errors")

#: DRF's name for errors that concern no single field.
NON_FIELD = "non_field_errors"


def error_body(request: HttpRequest | Request, error: api.ApiError) -> dict[str, Any]:
    """Return an error's body in the format of the request's API (native, or OpenAI's under /v1)."""
    if is_openai_path(request.path_info):
        return openai_error_body(error)
    trace = getattr(request, "trace", None)
    return {
        "detail": error.detail,
        "code": error.error_code,
        "request_id": trace.label if trace else None,
        **error.extra,
    }


def handle_exception(exception: Exception, context: dict[str, Any]) -> Response:
    """Return the response for an exception of a DRF view. Unexpected ones are logged with traceback and become 500."""
    request: Request = context["request"]
    error = as_api_error(exception)
    if error is None:
        log.error("unhandled_exception", exc_info=exception)
        error = api.InternalError()
    request._request.api_error = error  # type: ignore[attr-defined]  # for the usage record
    return Response(error_body(request, error), status=error.status, headers=error.headers)


def as_api_error(exception: Exception) -> api.ApiError | None:
    """Convert an exception to an ApiError; None for an unexpected exception."""
    if isinstance(exception, api.ApiError):
        return exception
    if isinstance(exception, drf.ValidationError):
        return _from_validation(exception)
    if isinstance(exception, DatabaseError):
        log.error("database_failed", cause=type(exception).__name__)
        return api.DependencyUnavailable()
    for kinds, error in _TRANSLATIONS:
        if isinstance(exception, kinds):
            return error()
    return None


_TRANSLATIONS: list[tuple[tuple[type[Exception], ...], type[api.ApiError]]] = [
    ((drf.NotAuthenticated,), api.KeyRequired),
    ((drf.AuthenticationFailed,), api.KeyInvalid),
    ((drf.PermissionDenied, DjangoPermissionDenied), api.PermissionDenied),
    ((drf.NotFound, Http404), api.NotFound),
    ((drf.MethodNotAllowed,), api.MethodNotAllowed),
    ((drf.NotAcceptable,), api.NotAcceptable),
    ((drf.UnsupportedMediaType,), api.UnsupportedMediaType),
    ((RequestDataTooBig,), api.BodyTooLarge),
    ((drf.ParseError, SuspiciousOperation), api.MalformedBody),
]


def _from_validation(exception: drf.ValidationError) -> api.InvalidRequest:
    errors: dict[str, list[str]] = {}
    for field, text in _told(exception.detail, ""):
        errors.setdefault(field or NON_FIELD, []).append(text)
    return api.InvalidRequest(errors=errors)


def _told(detail: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield (field, message) for each message; nested fields as `scopes[0]` or `model_budgets[1].model`."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            yield from _told(inner, _within(field, name))
    elif isinstance(detail, list | tuple):
        for number, inner in enumerate(detail):
            yield from _told(inner, _within(field, number) if isinstance(inner, dict) else field)
    else:
        yield field, str(detail)


def _within(field: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{field}[{name}]"
    if not field or name == NON_FIELD:
        return field or name
    return f"{field}.{name}"


def json_error(request: HttpRequest, error: api.ApiError) -> JsonResponse:
    """Return the JSON response for an error outside DRF, formatted as DRF does."""
    compact = {"separators": (",", ":")}
    body = error_body(request, error)
    return JsonResponse(body, status=error.status, headers=error.headers, json_dumps_params=compact)
