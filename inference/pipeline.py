"""The stages of every model call, whichever endpoint received it.

    cache look-up -> single flight -> reserve (slot, tokens, money) -> route upstream -> store in cache
    -> settle and record -> answer

Each call leaves exactly one usage record. A cached or shared answer is recorded when it is returned, any other call
when it is settled. The view records requests that fail earlier (a bad body, a rate limit). Streams take the same
stages in inference.streaming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog
from django.conf import settings

from accounts.key_cache import AuthenticatedKey
from accounts.limits.leases import keeper
from core.database import release_connections
from core.errors import (
    ApiError,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    PriceUnknown,
    UpstreamBusy,
    UpstreamFailed,
)
from inference import cache
from inference.accounting import Bill, CallContent
from inference.calls import Answer, Caller, ModelCall
from inference.catalog import CatalogModel, Route, catalog
from inference.disconnects import CLIENT_LEFT, ClientLeft, DisconnectWatch
from inference.protocols.base import Body, UnfitAnswer, Usage
from inference.protocols.sse import find_error
from inference.single_flight import Flight, Wait, flights
from inference.upstream.client import client, hidden_texts
from inference.upstream.errors import MISCONFIGURED, AttemptFailed, Deadline, failed_attempt, unfit_attempt
from inference.upstream.provider_limits import slot
from inference.upstream.routing import capacity, first_success

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Progress:
    """The state of a model call while it runs. The call must end by `deadline`."""

    call: ModelCall
    caller: Caller
    model: CatalogModel
    bill: Bill
    deadline: Deadline
    cache_key: str | None = None
    #: The flight that this call leads, and its wait for the flight of another call.
    flight: Flight | None = None
    wait: Wait | None = None
    #: The provider's failure, set if the followers of the flight share it.
    provider_error: ApiError | None = None
    #: Stops a non-streamed call when its client disconnects; None unless a route of the model asks for that.
    disconnect: DisconnectWatch | None = None
    first_route: Route | None = None
    route: Route | None = None

    def is_unwanted(self) -> bool:
        """Return whether the client of a non-streamed call has disconnected and the call may be stopped for that."""
        return self.disconnect is not None and self.disconnect.is_unwanted()

    @property
    def routes(self) -> tuple[Route, ...]:
        """The deployments that the limits of the call allow."""
        return self.model.routes_within(self.bill.limits)

    @property
    def is_fallback(self) -> bool:
        """Return whether the answer came from a fallback.

        That is any deployment but the one tried first, or one whose order is higher than the lowest of the routes.
        """
        first, last = self.first_route, self.route
        if first is None or last is None:
            return False
        return last is not first or last.order > min(route.order for route in self.routes)


def answer_call(call: ModelCall, caller: Caller) -> Answer:
    """Answer a model call from the cache, from an identical call in flight, or from a provider, and account for it.

    Raises ModelNotFound for a model that does not exist or that the caller may not use, the error of a limit that
    refuses the call, the error that stands for the provider's failure, or ClientLeft.
    """
    progress = begin(call, caller, Deadline(settings.UPSTREAM_TIMEOUT))
    if caller.client is not None and any(route.stops_when_client_leaves for route in progress.model.routes):
        progress.disconnect = DisconnectWatch(caller.client(), partial(is_awaited, progress))
    shared = find_shared(progress)
    if shared is not None:
        return _answer_shared(progress, shared)
    try:
        if progress.is_unwanted():
            progress.bill.emit(status=CLIENT_LEFT, error_code="client_left")
            raise ClientLeft
        return _answer_alone(progress)
    finally:
        leave_flight(progress)


def find_model(name: str | None, identity: AuthenticatedKey, *, kind: str) -> CatalogModel:
    """Return the model with a name (None: the default model).

    Raises ModelNotFound if it does not exist, is of another kind, or the identity may not use it.
    """
    model = catalog.default() if name is None else catalog.find(name)
    if model is None or model.kind != kind or not identity.may_use_model(model.public_name):
        raise ModelNotFound(name)
    return model


def begin(call: ModelCall, caller: Caller, deadline: Deadline) -> Progress:
    """Find the model, open the bill, and build the cache key if the answer may be shared."""
    identity = caller.identity
    model = find_model(call.model, identity, kind=call.protocol.kind)
    bill = Bill(caller, call.endpoint)
    bill.name_model(model.public_name)
    bill.record["cache"] = "bypass"
    if identity.logs_content:
        bill.content = CallContent(call, caller)
    progress = Progress(call, caller, model, bill, deadline)
    if call.shares_answer and identity.cache_enabled and (call.reads_cache or call.writes_cache):
        wanted = call.protocol.wanted_output(call.payload, identity, model)
        progress.cache_key = cache.answer_key(
            identity.account_id,
            endpoint=call.endpoint,
            model=model.public_name,
            payload={"asked": call.protocol.shaping(call.payload), "most_output": wanted, "is_stream": call.is_stream},
            generation=(identity.cache_generation(model.public_name), model.cache_generation),
        )
        bill.record["cache"] = "miss" if call.reads_cache else "bypass"
    return progress


def find_shared(progress: Progress) -> cache.CachedAnswer | None:
    """Return the answer from the cache or from an identical call in flight; None if this call must ask a provider."""
    found = find_cached(progress)
    if found is None:
        release_connections()
        found = join_flight(progress, is_unwanted=progress.is_unwanted)
    return found


def find_cached(progress: Progress) -> cache.CachedAnswer | None:
    """Return the answer from the cache; None if it is absent or the call does not read the cache."""
    if progress.cache_key is None or not progress.call.reads_cache:
        return None
    with progress.caller.trace.stage("cache"):
        found = cache.look_up(progress.cache_key)
    if found is not None:
        progress.bill.record["cache"] = "hit"
    return found


def join_flight(progress: Progress, *, is_unwanted: Callable[[], bool] = lambda: False) -> cache.CachedAnswer | None:
    """Wait for an identical call in flight and return its answer; None if this call must ask a provider.

    Raises the error of the leader, or UpstreamTimeout at this call's own deadline; either is recorded for this call.
    The wait ends early when `is_unwanted` returns true. The caller must then not ask a provider.
    """
    key, bill = progress.cache_key, progress.bill
    if key is None or not progress.call.reads_cache:
        return None
    progress.wait = Wait(progress.deadline, is_unwanted)
    with progress.caller.trace.stage("flight"):
        try:
            joined = flights.join(key, progress.wait)
        except ApiError as error:
            bill.record["cache"] = "coalesced"
            bill.note("the identical call that this one waited for failed")
            bill.emit(status=error.status, error_code=error.error_code)
            raise
    if isinstance(joined, cache.CachedAnswer):
        bill.record["cache"] = "coalesced"
        return joined
    progress.flight = joined
    return None


def is_awaited(progress: Progress) -> bool:
    """Return whether followers wait for the answer of this call."""
    key, flight = progress.cache_key, progress.flight
    return key is not None and flight is not None and flights.is_awaited(key, flight)


def leave_flight(progress: Progress, *, answer: cache.CachedAnswer | None = None) -> None:
    """End the flight that this call leads, if any. Further calls do nothing.

    Followers get the answer or the provider's failure. With neither, one of them becomes the leader.
    """
    flight, progress.flight = progress.flight, None
    if flight is not None and progress.cache_key is not None:
        flights.leave(progress.cache_key, flight, answer=answer, error=progress.provider_error)


def provider_failed(progress: Progress, error: ApiError) -> ApiError:
    """Return the provider's failure, and share it with the followers unless this caller's limits contributed to it.

    The limits contribute if they shortened the longest answer and the provider rejected the request, or if they did
    not allow an attempt at another deployment. The keys of the followers may have higher limits.
    """
    bill = progress.bill
    if not bill.is_out_of_room and not (bill.is_cut and isinstance(error, InvalidRequest)):
        progress.provider_error = error
    return error


def share_answer(progress: Progress, answer: cache.CachedAnswer, as_body: Callable[[], Body]) -> None:
    """Store a complete, successful answer in the cache, and pass it to the followers.

    An answer that this caller's limits shortened is neither stored nor shared: the limits of others may allow all of
    it. An incomplete answer is not stored. `as_body` returns the answer as a non-streamed body.
    """
    if progress.cache_key is not None and progress.call.writes_cache and not progress.bill.is_cut:
        may_store = progress.flight is None or flights.may_store(progress.flight)
        if may_store and progress.call.protocol.is_finished(as_body()):
            with progress.caller.trace.stage("cache"):
                cache.store(progress.cache_key, answer)
        leave_flight(progress, answer=answer)


def shared_answer(bill: Bill, body: Body, usage: Usage, deployment: str) -> cache.CachedAnswer:
    """Build the cached form of an answer that was just charged."""
    return cache.CachedAnswer(
        body, usage.input_tokens, usage.cached_tokens, usage.output_tokens, deployment, bill.answer_cost
    )


def _answer_shared(progress: Progress, cached: cache.CachedAnswer) -> Answer:
    content = progress.call.read(cached.body)
    emit_shared(progress, cached)
    tokens = cached.input_tokens + cached.output_tokens
    return Answer(content, cached.body, progress.bill.record["cache"], progress.model.public_name, tokens)


def emit_shared(progress: Progress, cached: cache.CachedAnswer) -> None:
    """Record an answer that cost nothing. Its saved cost is what the answer cost when it was generated."""
    progress.bill.record.update(usage_source="cache", deployment=cached.deployment, saved_cost=cached.cost)
    progress.bill.answered(cached.body)
    progress.bill.emit(status=200)


def reserve(progress: Progress) -> None:
    """Reserve the most that the call may use.

    Raises UpstreamFailed if the model has no enabled deployment, PriceUnknown if a budget in money applies and no
    deployment has a price, or the error of a limit that refuses the call.
    """
    if not progress.model.routes:
        error = UpstreamFailed()
        progress.bill.note("no deployment of the model is enabled, at a provider that is")
        progress.bill.emit(status=error.status, error_code=error.error_code)
        raise error
    routes = progress.routes
    if not routes:
        raise PriceUnknown
    with progress.caller.trace.stage("limits"):
        call = progress.call
        bound = call.protocol.bound(call.payload, progress.caller.identity, progress.model)
        progress.bill.reserve(bound, unpriced=all(route.rates is None for route in routes))


def _answer_alone(progress: Progress) -> Answer:
    reserve(progress)
    try:
        return _answer_from_upstream(progress)
    except ApiError as error:
        progress.bill.settle(status=error.status, error_code=error.error_code)
        raise
    except ClientLeft:
        progress.bill.settle(status=CLIENT_LEFT, error_code="client_left")
        raise
    except Exception:
        # A fault of the platform, perhaps after the provider has answered and billed: charge the bound, not nothing.
        if not progress.bill.is_charged:
            progress.bill.charge_bound()
        progress.bill.settle(status=InternalError.status, error_code=InternalError.code)
        raise


def _answer_from_upstream(progress: Progress) -> Answer:
    bill = progress.bill
    body, route, usage = _ask(progress)
    bill.answered(body)
    content = _read(progress, body, route)
    share_answer(progress, shared_answer(bill, body, usage, route.name), lambda: body)
    bill.settle(status=200)
    tokens = usage.input_tokens + usage.output_tokens
    name, outcome = progress.model.public_name, bill.record["cache"]
    return Answer(content, body, outcome, name, tokens, bill.cost, progress.is_fallback)


def _read(progress: Progress, body: Body, route: Route) -> Any:
    """Extract what the endpoint returns; an answer that the endpoint can't use is logged as the provider's failure."""
    try:
        return progress.call.read(body)
    except ApiError as error:
        log.warning("upstream_failed", route=route.name, cause=error.error_code, status=error.status)
        progress.bill.note_failure(route.name, error.error_code)
        provider_failed(progress, error)
        raise


def _ask(progress: Progress) -> tuple[Body, Route, Usage]:
    """Try the deployments until one answers, and charge the answer. Holds no database connection meanwhile."""
    caller, bill, deadline = progress.caller, progress.bill, progress.deadline
    release_connections()
    with (
        caller.trace.stage("upstream"),
        keeper.held(bill.limits.shard, caller.trace.id.hex),
        place(bill, deadline),
    ):
        try:
            return first_success(
                progress.routes,
                lambda route: _attempt(progress, route, deadline),
                deadline,
                account_id=caller.identity.account_id,
                covers_another=bill.covers_another,
                note=bill.note,
            )
        except AttemptFailed as failure:
            raise provider_failed(progress, failure.error) from failure


@contextmanager
def place(bill: Bill, deadline: Deadline) -> Iterator[None]:
    """Hold one of this process's places for provider calls; raises UpstreamBusy if none becomes free in time."""
    with ExitStack() as held:
        try:
            held.enter_context(capacity().place(min(deadline.left, settings.UPSTREAM_QUEUE_SECONDS)))
        except UpstreamBusy:
            bill.note(f"this process makes {settings.UPSTREAM_CONCURRENCY} calls at once (UPSTREAM_CONCURRENCY)")
            raise
        yield


def _attempt(progress: Progress, route: Route, deadline: Deadline) -> tuple[Body, Route, Usage]:
    """Make one call to one deployment and charge it. A failed attempt that may be billed is charged its bound.

    Raises AttemptFailed, or ClientLeft if the client disconnected and the route stops calls for that.
    """
    protocol = progress.call.protocol
    disconnect = progress.disconnect if route.stops_when_client_leaves else None
    if disconnect is not None and disconnect.is_unwanted():
        raise ClientLeft
    with slot(route, *slot_size(progress)) as held:
        begin_attempt(progress, route)
        try:
            with disconnect.watching() if disconnect else nullcontext() as abort:
                payload = outgoing(progress, route)
                body = client.call(route, protocol.path, payload, seconds=deadline.left, abort=abort)
            _refuse_failure(progress, body, route)
        except AttemptFailed as failure:
            if abort is None or not abort.is_set:
                charge_failure(progress, failure, route)
                raise
            failure.cause = "stopped, since its client had left"
            charge_failure(progress, failure, route)
            held.settle(failure.tokens)
            raise ClientLeft from failure
        usage = _charge(progress, body, route)
        held.settle(usage.input_tokens + usage.output_tokens)
    return body, route, usage


def _refuse_failure(progress: Progress, body: Body, route: Route) -> None:
    """Raise AttemptFailed for a body that is an error, is incomplete, or does not fit the request.

    If an error reports no usage, the output generated before it is estimated.
    """
    payload, protocol, error = progress.call.payload, progress.call.protocol, find_error(body)
    if error is not None:
        if error.usage is None:
            counted = protocol.estimate(payload, body, model=route.upstream_name)
            error.usage, error.usage_source = counted if counted.output_tokens else None, "estimated"
        raise failed_attempt(error, route=route.name, hidden=hidden_texts(route))
    if not protocol.is_complete(body):
        raise failed_attempt(ValueError("incomplete answer"), route=route.name)
    try:
        protocol.answered(payload, body)
    except UnfitAnswer as unfit:
        usage, source = protocol.used(payload, body, model=route.upstream_name)
        raise unfit_attempt(unfit, route=route.name, usage=usage, usage_source=source) from unfit


def charge_failure(progress: Progress, failure: AttemptFailed, route: Route) -> None:
    """Charge a failed attempt and note its cause.

    The charge is its usage, or its bound if the usage is unknown and the attempt may be billed. If the provider rejects
    a parameter that the platform added, the error becomes UpstreamFailed: the caller can't correct it.
    """
    error = failure.error
    if isinstance(error, InvalidRequest) and progress.call.protocol.is_added(error.param, progress.call.payload):
        verdict = replace(MISCONFIGURED, may_be_billed=failure.verdict.may_be_billed)
        failure.error, failure.verdict = UpstreamFailed(), verdict
        failure.cause = f"{failure.cause} about {error.param}"
    progress.bill.note_failure(route.name, failure.cause)
    if failure.usage is not None:
        progress.bill.charge(failure.usage, route.rates, source=failure.usage_source)
    elif failure.verdict.may_be_billed:
        progress.bill.charge_bound()


def slot_size(progress: Progress) -> tuple[str, int]:
    """Return the id of the next attempt for the provider's limits, and the most tokens that it may use."""
    bill = progress.bill
    return f"{progress.caller.trace.id.hex}.{bill.record.get('attempts', 0)}", bill.attempt_tokens


def begin_attempt(progress: Progress, route: Route) -> None:
    """Note the deployment that the call is sent to."""
    progress.route = route
    progress.first_route = progress.first_route or route
    progress.bill.rates = route.rates
    record = progress.bill.record
    record.update(deployment=route.name, attempts=record.get("attempts", 0) + 1)


def outgoing(progress: Progress, route: Route) -> dict[str, Any]:
    """Build the payload to send. The granted output tokens are divided among the answers that it asks for."""
    call = progress.call
    each = progress.bill.output_tokens // call.protocol.answers(call.payload)
    return call.protocol.with_output(call.payload, each, route.output_parameter)


def _charge(progress: Progress, body: Body, route: Route) -> Usage:
    """Charge the usage that the provider reports, or an estimate if it reports none."""
    call = progress.call
    usage, source = call.protocol.used(call.payload, body, model=route.upstream_name)
    progress.bill.charge(usage, route.rates, source=source)
    return usage
