"""What happens to every request before and after its view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import structlog
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from core.database import REQUEST_SECONDS, impatient
from core.redaction import without_keys
from core.telemetry.metrics import observe_response
from core.telemetry.trace import Spans, Trace, begin_trace, current_trace
from core.telemetry.tracing import begin_spans

GetResponse = Callable[[HttpRequest], HttpResponseBase]
#: Asked by orchestrators and by Prometheus, which address a process by whatever name or number they have for it.
PROBES = ("/health/live", "/health/ready", "/metrics")
#: Where developers' programs call, a key with each request: nothing there is a page, a session or a form.
MODEL_PATHS = ("/chat", "/summarize", "/v1/")
#: What they ask all the time makes no line in the log while it goes well.
QUIET = ("/health", "/metrics")

#: Its pages may ask the database for much: seconds for which it may be silent to them.
ADMIN, ADMIN_SECONDS = "/admin", 60.0

log = structlog.get_logger("aiapi.request")


class RequestMiddleware:
    """Give the request its trace, the answer its id and time, and the log its line."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request."""
        sent = request.META.get
        trace = begin_trace(
            sent("HTTP_X_REQUEST_ID"), traceparent=sent("HTTP_TRACEPARENT"), tracestate=sent("HTTP_TRACESTATE")
        )
        if not request.path_info.startswith(QUIET):
            begin_spans(trace, str(request.method))
        if request.path_info.rstrip("/") in PROBES:
            request.get_host = lambda: "probe"  # type: ignore[method-assign]  # the answer says nothing of hosts
        request.trace = trace  # type: ignore[attr-defined]
        request.is_model_call = request.path_info.startswith(MODEL_PATHS)  # type: ignore[attr-defined]
        patience = ADMIN_SECONDS if request.path_info.startswith(ADMIN) else REQUEST_SECONDS
        bound = structlog.contextvars.bound_contextvars(request_id=trace.label)
        with bound, _current(trace), impatient(patience):
            response = self.get_response(request)
            response["X-Request-ID"] = trace.label
            elapsed = trace.elapsed_ms
            response["X-Process-Time"] = f"{elapsed / 1000:.3f}"
            response.setdefault("Cache-Control", "no-store")  # what may be kept, says so itself
            self._log(request, response, elapsed)
        route = _route_name(request)
        observe_response(route, response.status_code)
        if trace.spans is not None:
            _end_spans(trace.spans, route, response)
        return response

    def _log(self, request: HttpRequest, response: HttpResponseBase, elapsed_ms: float) -> None:
        if request.path_info.startswith(QUIET) and response.status_code < HTTPStatus.BAD_REQUEST:
            return
        identity = getattr(request, "identity", None)
        log.info(
            "request",
            record_id=str(request.trace.id),  # type: ignore[attr-defined]
            method=request.method,
            path=without_keys(request.path_info)[:200],
            status=response.status_code,
            ms=round(elapsed_ms, 1),
            account=identity and identity.account_name,
            key=identity and identity.key_prefix,
        )


@contextmanager
def _current(trace: Trace) -> Iterator[None]:
    token = current_trace.set(trace)
    try:
        yield
    finally:
        current_trace.reset(token)


def _end_spans(spans: Spans, route: str, response: HttpResponseBase) -> None:
    """End the request's span: of a stream, when it is closed."""
    spans.answer(route, response.status_code)
    if response.streaming:
        response._resource_closers.append(spans.end)  # type: ignore[attr-defined]  # what Django calls in `close`
    else:
        spans.end()


def _route_name(request: HttpRequest) -> str:
    """Name the route that answered, out of a short list: the admin's pages are one."""
    match = request.resolver_match
    if match is None:
        return "other"
    return match.namespace or match.url_name or "other"
