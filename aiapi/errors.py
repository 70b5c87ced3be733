"""Error responses: of DRF's views, and outside them an HTML page for browsers and JSON for all other clients.

The JSON body is `{detail, code, request_id, errors?}`, and under /v1 OpenAI's `{error: {...}}`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import structlog
from django.contrib import admin
from django.core.exceptions import DisallowedHost, RequestDataTooBig, SuspiciousOperation
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.utils.cache import patch_vary_headers
from rest_framework import exceptions as drf
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import KeyView
from aiapi.pages import page_context
from core.errors import (
    ApiError,
    BodyTooLarge,
    DependencyUnavailable,
    InternalError,
    InvalidRequest,
    KeyInvalid,
    KeyRequired,
    MalformedBody,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    PermissionDenied,
    TooManyFailures,
    UnsupportedMediaType,
)
from core.redaction import without_keys
from inference.api.errors import anthropic_error_body, is_anthropic_path, is_openai_path, openai_error_body

log = structlog.get_logger("aiapi.errors")

#: DRF's name for errors that concern no single field.
NON_FIELD = "non_field_errors"


def error_body(request: HttpRequest | Request, error: ApiError) -> dict[str, Any]:
    """Return an error's body in the format of the request's API: native, under /v1 OpenAI's or Anthropic's."""
    trace = getattr(request, "trace", None)
    label = trace.label if trace else None
    if is_anthropic_path(request.path_info):
        return anthropic_error_body(error, label)
    if is_openai_path(request.path_info):
        return openai_error_body(error)
    return native_error_body(error, label)


def native_error_body(error: ApiError, request_id: str | None) -> dict[str, Any]:
    """Return an error's body outside /v1."""
    return {"detail": error.detail, "code": error.error_code, "request_id": request_id, **error.extra}


def handle_exception(exception: Exception, context: dict[str, Any]) -> Response:
    """Return the response for an exception of a DRF view. Unexpected ones are logged with traceback and become 500."""
    request: Request = context["request"]
    error = as_api_error(exception)
    if error is None:
        log.error("unhandled_exception", exc_info=exception)
        error = InternalError()
    if isinstance(view := context.get("view"), KeyView):
        view.error = error  # for the usage record and the headers
    return Response(error_body(request, error), status=error.status, headers=error.headers)


def as_api_error(exception: Exception) -> ApiError | None:
    """Convert an exception to an ApiError; None for an unexpected exception."""
    if isinstance(exception, ApiError):
        return exception
    if isinstance(exception, drf.ValidationError):
        errors: dict[str, list[str]] = {}
        for field, text in _messages(exception.detail, ""):
            errors.setdefault(field or NON_FIELD, []).append(text)
        return InvalidRequest(errors=errors)
    if isinstance(exception, DatabaseError):
        log.error("database_failed", cause=type(exception).__name__)
        return DependencyUnavailable()
    for kinds, error in _TRANSLATIONS:
        if isinstance(exception, kinds):
            return error()
    return None


_TRANSLATIONS: list[tuple[tuple[type[Exception], ...], type[ApiError]]] = [
    ((drf.NotAuthenticated,), KeyRequired),
    ((drf.AuthenticationFailed,), KeyInvalid),
    ((drf.PermissionDenied, DjangoPermissionDenied), PermissionDenied),
    ((drf.NotFound, Http404), NotFound),
    ((drf.MethodNotAllowed,), MethodNotAllowed),
    ((drf.NotAcceptable,), NotAcceptable),
    ((drf.UnsupportedMediaType,), UnsupportedMediaType),
    ((RequestDataTooBig,), BodyTooLarge),
    ((drf.ParseError, SuspiciousOperation), MalformedBody),
]


def _messages(detail: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield (field, message) for each message; nested fields as `scopes[0]` or `model_budgets[1].model`."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            yield from _messages(inner, _path(field, name))
    elif isinstance(detail, list | tuple):
        for number, inner in enumerate(detail):
            yield from _messages(inner, _path(field, number) if isinstance(inner, dict) else field)
    else:
        yield field, str(detail)


def _path(field: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{field}[{name}]"
    if not field or name == NON_FIELD:
        return field or name
    return f"{field}.{name}"


def json_error(request: HttpRequest, error: ApiError) -> JsonResponse:
    """Return the JSON response for an error outside DRF, formatted as DRF does."""
    compact = {"separators": (",", ":")}
    body = error_body(request, error)
    return JsonResponse(body, status=error.status, headers=error.headers, json_dumps_params=compact)


#: What the user of a browser can do about an error.
HINTS: dict[type[ApiError], str] = {
    InvalidRequest: "Check the address.",
    PermissionDenied: "You do not have permission to see or do this. Ask an administrator for it.",
    NotFound: "This page does not exist, or has been deleted.",
    TooManyFailures: "There were too many attempts from your network address. Wait a minute, then try again.",
    DependencyUnavailable: "The database is not responding. Wait a moment, then reload the page; /health shows what is "
    "down.",
    InternalError: "Something went wrong in the service. Report the request id to your operator.",
}
HOST_HINT = "If you run the service: add the host name to ALLOWED_HOSTS."
CSRF_HINT = (
    "The form has expired, or cookies are blocked. Go back, reload the page and send it again. "
    "If you run the service behind a proxy: CSRF_TRUSTED_ORIGINS must name its https:// address."
)
#: Endpoints with a key in each request, without pages, sessions and forms. Their errors are never pages.
MODEL_PATHS = ("/chat", "/summarize", "/v1/")
#: Characters of a refused host name that are logged.
MOST_OF_A_HOST = 100


def error_answer(request: HttpRequest, error: ApiError, hint: str | None = None) -> HttpResponse:
    """Return the response for an error: a page if a browser asks for one, otherwise (or if the page fails) JSON."""
    answer: HttpResponse | None = None
    accepts_page = "text/html" in request.headers.get("Accept", "").lower()
    if accepts_page and not request.path_info.startswith(MODEL_PATHS):
        context = {
            **page_context("error"),
            "title": error.detail.rstrip("."),
            "hint": hint or HINTS[type(error)],
            "status": error.status,
            "request_id": request.trace.label,  # type: ignore[attr-defined]
            "is_admin": request.path_info.startswith("/admin/"),
        }
        try:
            page = _admin_page(request, error, context) or render_to_string("error.html", context)
            answer = HttpResponse(page, status=error.status, headers=dict(error.headers))
        except Exception as failure:
            log.error("error_page_failed", exc_info=failure)
    if answer is None:
        answer = json_error(request, error)
    patch_vary_headers(answer, ["Accept"])
    return answer


def _admin_page(request: HttpRequest, error: ApiError, context: dict[str, Any]) -> str:
    """Return a page with the admin's menu for staff who did not find a page there, or may not see it; else ""."""
    user = getattr(request, "user", None)
    if not (context["is_admin"] and isinstance(error, NotFound | PermissionDenied) and user and user.is_staff):
        return ""
    return render_to_string("admin/error.html", {**context, **admin.site.each_context(request)}, request)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a request that Django rejects before any view (handler400).

    A host name missing from ALLOWED_HOSTS is the most common mistake of a new installation. The log names the host; the
    response doesn't.
    """
    if not isinstance(exception, DisallowedHost):
        return error_answer(request, InvalidRequest())
    log.warning("host_not_allowed", host=without_keys(str(request.META.get("HTTP_HOST", "")))[:MOST_OF_A_HOST])
    return error_answer(request, InvalidRequest("The service does not answer under this host name."), HOST_HINT)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a denied request outside DRF (handler403)."""
    return error_answer(request, PermissionDenied())


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer an unknown path (handler404)."""
    return error_answer(request, NotFound())


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer an exception outside DRF (handler500). Log its traceback, or one line if the database is unavailable."""
    failure = sys.exception()
    if isinstance(failure, OperationalError | InterfaceError):
        log.error("database_failed", cause=type(failure).__name__)
        return error_answer(request, DependencyUnavailable())
    log.error("unhandled_exception", exc_info=sys.exc_info())
    return error_answer(request, InternalError())


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form without a valid CSRF token (CSRF_FAILURE_VIEW). Django logs the reason."""
    return error_answer(request, PermissionDenied(), CSRF_HINT)
