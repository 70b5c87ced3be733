"""Middleware: trace, headers, query timeout, log line and metrics of every request, and what pages alone need."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import structlog
from corsheaders.middleware import CorsMiddleware
from csp.constants import UNSAFE_EVAL, UNSAFE_INLINE
from csp.middleware import CSPMiddleware
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.middleware.http import ConditionalGetMiddleware

from accounts.authentication import count_attempt
from accounts.key_cache import AuthenticatedKey
from aiapi.errors import error_answer
from core.database import REQUEST_SECONDS, query_timeout
from core.errors import TooManyFailures
from core.headers import set_headers
from core.redaction import without_keys
from core.telemetry.metrics import observe_response
from core.telemetry.trace import begin_spans, begin_trace, current_trace
from inference.api.errors import is_anthropic_path

if TYPE_CHECKING:
    from core.telemetry.otel import RequestSpans

GetResponse = Callable[[HttpRequest], HttpResponseBase]
#: Called by orchestrators and Prometheus, which may use any host name or IP address.
PROBES = ("/health/live", "/health/ready", "/metrics")
#: Frequent monitoring requests, which are logged only if they fail.
QUIET = ("/health", "/metrics")

#: Path of the admin, and the query timeout of its pages in seconds: they may run long queries.
ADMIN, ADMIN_SECONDS = "/admin", 60.0

log = structlog.get_logger("aiapi.request")


class RequestMiddleware:
    """Start the request's trace, add the common response headers, log the request and count the response."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Return the response of the next middleware with the common headers."""
        sent = request.META.get
        trace = begin_trace(
            sent("HTTP_X_REQUEST_ID"), traceparent=sent("HTTP_TRACEPARENT"), tracestate=sent("HTTP_TRACESTATE")
        )
        if not request.path_info.startswith(QUIET):
            begin_spans(trace, str(request.method))
        if request.path_info.rstrip("/") in PROBES:
            request.get_host = lambda: "probe"  # type: ignore[method-assign]  # no probe's response depends on the host
        request.trace = trace  # type: ignore[attr-defined]
        seconds = ADMIN_SECONDS if request.path_info.startswith(ADMIN) else REQUEST_SECONDS
        token = current_trace.set(trace)
        try:
            with query_timeout(seconds):
                response = self.get_response(request)
            elapsed = trace.elapsed_ms
            set_headers(response, {"X-Request-ID": trace.label, "X-Process-Time": f"{elapsed / 1000:.3f}"})
            if is_anthropic_path(request.path_info):
                response["request-id"] = trace.label  # Anthropic's name for it
            response.setdefault("Cache-Control", "no-store")  # cacheable responses set their own
            self._log(request, response, elapsed)
        finally:
            current_trace.reset(token)
        route = _route_name(request)
        observe_response(route, response.status_code)
        if trace.spans is not None:
            _end_spans(trace.spans, route, response)
        return response

    def _log(self, request: HttpRequest, response: HttpResponseBase, elapsed_ms: float) -> None:
        if request.path_info.startswith(QUIET) and response.status_code < HTTPStatus.BAD_REQUEST:
            return
        user = getattr(request, "user", None)
        key = user if type(user) is AuthenticatedKey else None  # isinstance would load the session of a lazy user
        log.info(
            "request",
            record_id=str(request.trace.id),  # type: ignore[attr-defined]
            method=request.method,
            path=without_keys(request.path_info)[:200],
            status=response.status_code,
            ms=round(elapsed_ms, 1),
            account=key and key.account_name,
            key=key and key.key_prefix,
        )


def _end_spans(spans: RequestSpans, route: str, response: HttpResponseBase) -> None:
    """End the request's span; for a stream, when it is closed."""
    spans.answer(route, response.status_code)
    if response.streaming:
        response._resource_closers.append(spans.end)  # type: ignore[attr-defined]  # called by the response's `close`
    else:
        spans.end()


def _route_name(request: HttpRequest) -> str:
    """Return the route's name. All pages of the admin are one route, which bounds the metric's labels."""
    match = request.resolver_match
    if match is None:
        return "other"
    return match.namespace or match.url_name or "other"


class OriginMiddleware(CorsMiddleware):
    """CORS for requests with an Origin. For any other, it would look through all headers for nothing."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Return the response, with headers for the page that asks."""
        respond = super().__call__ if "HTTP_ORIGIN" in request.META else self.get_response
        return cast("HttpResponseBase", respond(request))  # nothing here is asynchronous


class PageRevalidation(ConditionalGetMiddleware):
    """ETags for responses with Cache-Control, and 304 responses to browsers that have them already."""

    def needs_etag(self, response: HttpResponseBase) -> bool:
        """Return whether a response may be stored. Those without Cache-Control get no-store later."""
        return response.has_header("Cache-Control") and super().needs_etag(response)


class PagePolicy(CSPMiddleware):
    """Content-Security-Policy. On /admin/ it permits eval (for Alpine) and inline styles, which unfold needs."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Add the header."""
        if request.path_info.startswith("/admin/"):
            response._csp_update = {"script-src": [UNSAFE_EVAL], "style-src": [UNSAFE_INLINE]}  # type: ignore[attr-defined]
        answer: HttpResponseBase = super().process_response(request, response)
        return answer


class AdminLoginLimit:
    """Limits log-in attempts in the admin by address (ADMIN_LOGIN_RATE)."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer log-in attempts over the rate with 429."""
        if request.method == "POST" and request.path_info == "/admin/login/":
            try:
                count_attempt(request, group="admin-login", rate=settings.ADMIN_LOGIN_RATE)
            except TooManyFailures as error:
                return error_answer(request, error)
        return self.get_response(request)
