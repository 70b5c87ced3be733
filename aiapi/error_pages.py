"""Error responses outside DRF views: an HTML page for browsers, JSON for all other clients."""

from __future__ import annotations

import sys

import structlog
from django.core.exceptions import DisallowedHost
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.cache import patch_vary_headers

from aiapi.errors import json_error
from aiapi.pages import page_context
from core.errors import (
    ApiError,
    DependencyUnavailable,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    TooManyFailures,
)
from core.redaction import without_keys

#: What the user of a browser can do about an error.
HINTS: dict[type[ApiError], str] = {
    InvalidRequest: "Check the address.",
    PermissionDenied: "Your user may not see or do this. Ask an administrator for the permission.",
    NotFound: "There is nothing under this address, or it has been deleted.",
    TooManyFailures: "Too many attempts came from your network address. Wait a minute, and try again.",
    DependencyUnavailable: "The database does not answer. Wait a moment, and load the page again; /health says what is "
    "away.",
    InternalError: "This is a fault of the service. Report the request id to your operator.",
}
HOST_HINT = "If you run the service: add the host name to ALLOWED_HOSTS."
CSRF_HINT = (
    "The form is too old, or cookies are off: go back, reload the page and send it again. "
    "If you run the service behind a proxy: CSRF_TRUSTED_ORIGINS must name its https:// address."
)
#: Characters of a refused host name that are logged.
MOST_OF_A_HOST = 100

log = structlog.get_logger("aiapi.errors")


def error_answer(request: HttpRequest, error: ApiError, hint: str | None = None) -> HttpResponse:
    """Return the response for an error: a page if a browser asks for one, otherwise JSON."""
    answer: HttpResponse | None = None
    if _wants_page(request):
        answer = _page(request, error, hint or HINTS[type(error)])
    if answer is None:
        answer = json_error(request, error)
    patch_vary_headers(answer, ["Accept"])
    return answer


def _wants_page(request: HttpRequest) -> bool:
    """Return whether the client accepts HTML and the path is not a model endpoint."""
    return "text/html" in request.headers.get("Accept", "").lower() and not getattr(request, "is_model_call", False)


def _page(request: HttpRequest, error: ApiError, hint: str) -> HttpResponse | None:
    """Render the error page; None if that fails."""
    context = {
        **page_context("error"),
        "title": error.detail.rstrip("."),
        "hint": hint,
        "status": error.status,
        "request_id": request.trace.label,  # type: ignore[attr-defined]
        "is_admin": request.path_info.startswith("/admin/"),
    }
    try:
        page = render_to_string("error.html", context)
    except Exception as failure:
        log.error("error_page_failed", exc_info=failure)
        return None
    return HttpResponse(page, status=error.status, headers=dict(error.headers))


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
