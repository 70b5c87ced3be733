"""The base of the model endpoints: request rates, usage records, response headers and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import structlog
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import KeyView
from accounts.idempotency import Claim
from accounts.limit_usage import refusal_error
from accounts.limits import get_limits
from accounts.limits.types import LimitsUnavailable
from core.errors import ApiError, DependencyUnavailable
from core.headers import set_headers
from core.money import dollars
from core.telemetry.metrics import CLIENT_LEFT
from core.telemetry.trace import Trace
from inference.api.parsing import is_chunked
from inference.call import Call
from inference.clients import ClientLeft
from inference.protocols.events import EventReader
from inference.relay import ClientSocket
from inference.streaming import Stream

log = structlog.get_logger(__name__)


EVENT_STREAM = "text/event-stream"


def accepts_events(request: Request) -> bool:
    """Return whether a request accepts a stream of events; the case of the media type does not matter."""
    return EVENT_STREAM in str(request.META.get("HTTP_ACCEPT", "")).lower()


class StreamOrJSON(DefaultContentNegotiation):
    """Negotiates JSON even if the client accepts only a stream of events.

    Streams are written without a renderer, and errors before a stream are JSON.
    """

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the first renderer if the request accepts events, JSON alone, or anything; negotiate otherwise."""
        if request.META.get("HTTP_ACCEPT", "*/*") in ("*/*", "application/json") or accepts_events(request):
            renderer = next(iter(renderers))
            return renderer, renderer.media_type
        chosen: tuple[BaseRenderer, str] = super().select_renderer(request, renderers, format_suffix)
        return chosen


class ModelEndpoint(KeyView):
    """A POST to a model: counted against the rates, recorded exactly once, described in response headers."""

    content_negotiation_class = StreamOrJSON
    endpoint: str
    #: The request's call; None until the request is counted.
    _call: Call | None = None
    claim: Claim | None = None

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Pass a chunked body to the parser: DRF treats a body without a length as empty."""
        wrapped = super().initialize_request(request, *args, **kwargs)
        if is_chunked(request):
            wrapped._stream = request  # type: ignore[assignment]
        return wrapped

    def check_throttles(self, request: Request) -> None:
        """Count a POST within the requests a minute of its key and account, and begin its call.

        That is a single atomic step: DRF's SimpleRateThrottle reads, counts and writes in three, and admits more than
        its limit under load. Raises RateLimited with the seconds until the next request.
        """
        if request.method != "POST":
            return
        trace: Trace = request._request.trace  # type: ignore[attr-defined]
        with trace.stage("limits"):
            try:
                admission = get_limits().admit(self.identity.limits, trace.id.hex)
            except LimitsUnavailable as error:
                raise DependencyUnavailable(retry_after=error.retry_after) from error
        directives = {part.strip().lower() for part in str(request.META.get("HTTP_CACHE_CONTROL", "")).split(",")}
        self._call = Call(
            identity=self.identity,
            trace=trace,
            admission=admission,
            endpoint=self.endpoint,
            reads_cache=directives.isdisjoint(("no-cache", "no-store")),
            writes_cache="no-store" not in directives,
            session=str(request.META.get("HTTP_X_SESSION_ID", "")),
        )
        if admission.refusal is not None:
            raise refusal_error(admission.refusal)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Claim the request's Idempotency-Key, if it has one, before any work."""
        super().initial(request, *args, **kwargs)
        if self._call is not None:
            claim = Claim.of(request, self.identity, form=self.answer_form(request))
            if claim is None:
                self._call.client = partial(ClientSocket, request._request)
            else:
                claim.take()
            self.claim = claim

    def answer_form(self, request: Request) -> str:
        """Return the form of answer that the request's headers choose; empty if the endpoint has only one."""
        return ""

    @property
    def call(self) -> Call:
        """The request's call, to which the view adds what is asked."""
        assert self._call is not None  # noqa: S101  (check_throttles begins it)
        return self._call

    def handle_exception(self, exc: Exception) -> Response:
        """Return an empty response if the client has disconnected; the call is already recorded."""
        return Response(status=CLIENT_LEFT) if isinstance(exc, ClientLeft) else super().handle_exception(exc)

    def respond(self, call: Call, body: dict[str, Any]) -> Response:
        """Build the response to an answered call, with headers for its origin and its cost."""
        if self.claim is not None:
            self.claim.cost = call.cost or 0
        response = Response(body)
        set_headers(response, answer_headers(call))
        return response

    def respond_as_stream(
        self,
        request: Request,
        call: Call,
        *,
        make_reader: Callable[[bool], EventReader],
        error_event: Callable[[ApiError, EventReader], bytes],
    ) -> StreamingHttpResponse:
        """Open a stream and build its response. The cost of the call is known and recorded only at its end."""
        client = ClientSocket(request._request)
        keep = partial(_keep_stream, self.claim, call) if self.claim is not None else None
        stream = Stream(call, make_reader=make_reader, error_event=error_event, client=client, keep=keep)
        stream.open()
        # The last header stops proxies from buffering the stream.
        headers = {**answer_headers(call), "X-Accel-Buffering": "no"}
        return StreamingHttpResponse(stream, content_type=EVENT_STREAM, headers=headers)

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        """Record the request if the pipeline did not, finish its claim, and add the rate and Server-Timing headers."""
        call, claim = self._call, self.claim
        if call is not None:
            self.admission = call.admission
        response = super().finalize_response(request, response, *args, **kwargs)
        if call is not None and not (call.is_recorded or response.streaming):
            self._record(call, response.status_code)
        if claim is not None and not response.streaming:
            response.add_post_render_callback(lambda rendered: claim.finish(rendered, rendered.content))
            # If the response is never rendered (an error, a shutdown), nothing else would release the claim.
            response._resource_closers.append(claim.release)  # type: ignore[attr-defined]  # Django's own
        if call is not None and call.trace.stages:
            spent = (f"{name};dur={milliseconds:.2f}" for name, milliseconds in call.trace.stages.items())
            set_headers(response, {"Server-Timing": ", ".join(spent)})
        return response

    def _record(self, call: Call, status: int) -> None:
        """Record a request that failed before the pipeline, or was a replay under its Idempotency-Key."""
        if self.replayed is not None:
            record = call.record
            record.cache, record.model = "replay", self.replayed.headers.get("X-Model", "")
            record.saved_cost = self.replayed.cost
        try:
            call.emit(status=status, error_code=self.error.error_code if self.error is not None else "")
        except DatabaseError as failure:  # the response is complete and is sent regardless
            log.error("record_not_written", status=status, cause=type(failure).__name__)


def _keep_stream(claim: Claim, call: Call, body: bytes | None) -> None:
    """Store a stream's body and cost for a retry under its Idempotency-Key."""
    claim.cost = call.cost or 0
    claim.finish(HttpResponse(headers={"Content-Type": EVENT_STREAM, **answer_headers(call)}), body)


def answer_headers(call: Call) -> dict[str, str]:
    """Return the headers about the origin and the cost of an answer.

    When a stream begins, its cost is unknown unless it is 0; a follower counts as coalesced, though its leader may
    fail.
    """
    outcome, cost = call.record.cache, None if call.is_stream and not call.is_cached else call.cost
    if call.is_stream and call.wait is not None and call.wait.follows:
        outcome = "coalesced"
    headers = {
        "X-Cache": outcome.upper(),
        "X-Model": call.model.public_name,
        "X-Fallback": "true" if call.is_fallback else "false",
    }
    return headers if cost is None else {**headers, "X-Cost-USD": dollars(cost)}
