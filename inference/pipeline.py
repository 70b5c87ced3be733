"""The stages of every model call, whichever endpoint received it, with one answer or a stream.

    cache -> follow an identical call -> reserve (slot, tokens, money) -> exchange with a provider -> store in the cache
    -> settle and record

Plain and streamed calls differ in the exchange alone: inference.streaming has the one of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import structlog
from django.db import DatabaseError

from accounts.limits import get_limits
from accounts.limits.types import Bound, InFlight
from core.database import release_connections
from core.errors import (
    ApiError,
    DependencyUnavailable,
    InternalError,
    PriceUnknown,
    UpstreamFailed,
)
from core.telemetry.metrics import CLIENT_LEFT
from inference import cache
from inference.cache import CachedAnswer
from inference.call import Call
from inference.catalog import Route
from inference.clients import ClientLeft, DisconnectWatch
from inference.protocols.base import Body, UnfitAnswer, WireProtocol, find_error
from inference.protocols.translation import DAMAGED, Translation
from inference.single_flight import Wait, flights, unpack_error
from inference.upstream.client import upstream
from inference.upstream.errors import AttemptFailed, failed_attempt, unfit_attempt
from inference.upstream.provider_limits import process_slot, provider_slot
from inference.upstream.routing import with_fallback

log = structlog.get_logger(__name__)


def answer(call: Call) -> Any:
    """Answer a call with one body, and return what `call.read` extracts from it.

    Raises the error of a limit that refuses the call, the error that stands for the provider's failure, or ClientLeft.
    """
    watch = None
    if call.client is not None and any(route.stops_when_client_leaves for route in call.model.routes):
        watch = DisconnectWatch(call.client(), partial(is_awaited, call))
        call.interruption = watch.interruption
    return complete(call, partial(_exchange, watch=watch))


def complete(call: Call, exchange: Callable[[Call], Any]) -> Any:
    """Answer a call from the cache, from an identical call in flight, or by an exchange with a provider.

    The exchange leaves the provider's answer in `call.body`, charges it, and returns what the caller gets.
    """
    with accounted(call):
        shared = find_cached(call) or follow(call) or reserve(call)
        if shared is not None:
            return use_shared(call, shared)
        content = exchange(call)
        share_answer(call)  # before the call is settled
        return content


@contextmanager
def accounted(call: Call) -> Iterator[None]:
    """Settle and record the call on every way out of the block, and end the flight that it leads."""
    try:
        yield
    except ClientLeft:
        call.finish(status=CLIENT_LEFT, error_code="client_left")
        raise
    except ApiError as error:
        call.finish(status=error.status, error_code=error.error_code)
        raise
    except Exception as failure:
        # A fault of the platform, perhaps after the provider has answered and billed: charge the bound, not nothing.
        if call.reserved is not None and not call.record.usage_source:
            call.charge_bound()
        kind = DependencyUnavailable if isinstance(failure, DatabaseError) else InternalError
        call.finish(status=kind.status, error_code=kind.code)
        raise
    else:
        call.finish(status=200)
    finally:
        leave_flight(call, error=call.provider_error)


def find_cached(call: Call) -> CachedAnswer | None:
    """Return the answer from the cache; None if it is absent or the call does not read the cache."""
    if call.cache_key is None or not call.reads_cache:
        return None
    with call.trace.stage("cache"):
        found = cache.look_up(call.cache_key)
    if found is not None:
        call.record.cache = "hit"
    return found


def follow(call: Call) -> CachedAnswer | None:
    """Wait for an identical call in flight and return its answer; None if this call must ask a provider.

    Raises the error of the leader, or UpstreamTimeout at this call's own deadline. The wait ends early when the call is
    interrupted. No database connection is held meanwhile.
    """
    release_connections()
    if call.cache_key is None or not call.reads_cache:
        return None
    call.wait = Wait(call.cache_key, call.deadline, call.admission.at, call.interruption)
    with call.trace.stage("flight"), coalesced_failure(call):
        joined = flights.join(call.wait)
    if isinstance(joined, CachedAnswer):
        call.record.cache = "coalesced"
        return joined
    call.flight = joined
    return None


@contextmanager
def coalesced_failure(call: Call) -> Iterator[None]:
    """Record that an error of the block is that of the identical call which this one waited for."""
    try:
        yield
    except ApiError:
        call.record.cache = "coalesced"
        is_late = call.deadline.is_over
        call.note(f"the identical call that this one waited for {'took too long' if is_late else 'failed'}")
        raise


def use_shared(call: Call, shared: CachedAnswer) -> Any:
    """Return what the caller gets of another call's answer. It costs nothing, and saves what that call cost."""
    leave_flight(call, answer=shared)
    content = shared.body if call.is_stream else call.read(shared.body)
    call.body = shared.body
    call.answer_tokens = shared.tokens
    call.record.usage_source, call.record.deployment = "cache", shared.deployment
    call.record.saved_cost = shared.cost
    return content


def is_awaited(call: Call) -> bool:
    """Return whether followers wait for the answer of this call, in this process or another."""
    return call.flight is not None and (call.flight.followers > 0 or get_limits().is_awaited(call.record.id))


def leave_flight(
    call: Call, *, answer: CachedAnswer | None = None, error: ApiError | None = None, failed_at: int | None = None
) -> None:
    """End the flight that this call leads in this process, if any. Further calls do nothing.

    Followers get the answer or the error. With neither, one of them becomes the leader.
    """
    flight, call.flight = call.flight, None
    if flight is not None:
        flights.leave(flight, answer=answer, error=error, failed_at=failed_at)


def reserve(call: Call) -> CachedAnswer | None:
    """Reserve the most that the call may use, or return the answer of an identical call in another process.

    Raises UpstreamFailed if the model has no enabled deployment, PriceUnknown if a budget in money applies and no
    deployment has a price, the error of a limit that refuses the call, or that of the identical call.
    """
    refuse_if_interrupted(call)
    if not call.model.routes:
        call.note("no deployment of the model is enabled, at a provider that is")
        raise UpstreamFailed
    if not call.routes:
        raise PriceUnknown
    if all(route.rates is None for route in call.routes):
        call.record.cost = None
    bound = call.protocol.bound(call.payload, call.identity, call.model)
    with call.trace.stage("limits"):
        other = call.reserve(bound)
    if other is None or call.wait is None:
        return None
    with call.trace.stage("flight"):
        return follow_elsewhere(call, call.wait, bound, other)


def follow_elsewhere(call: Call, wait: Wait, bound: Bound, other: InFlight | None) -> CachedAnswer | None:
    """Wait for an identical call in another process and return its answer; None once this call has reserved instead."""
    while other is not None:
        with coalesced_failure(call):
            if other.error:
                error = unpack_error(other.error)
                leave_flight(call, error=error, failed_at=other.at)
                raise error
            shared = wait.elsewhere(other)
        if shared is not None:
            call.record.cache = "coalesced"
            return shared
        refuse_if_interrupted(call)
        other = call.reserve(bound)
    return None


def refuse_if_interrupted(call: Call) -> None:
    """Raise the reason why the call is to end, if there is one."""
    if call.interruption is not None and (reason := call.interruption()) is not None:
        raise reason


def share_answer(call: Call) -> None:
    """Store a complete, successful answer in the cache, and pass it to the followers.

    An answer that this caller's limits shortened is neither stored nor shared: the limits of others may allow all of
    it. An incomplete answer is not stored.
    """
    if call.cache_key is None or not call.writes_cache or call.is_cut or call.body is None:
        return
    answer = CachedAnswer(call.body, call.answer_tokens, call.record.deployment, call.answer_cost)
    was_leader = call.reserved is not None and call.reserved.leads_flight
    may_store = not was_leader or get_limits().leads_flight(call.record.id)
    if may_store and call.protocol.is_finished(call.whole_body() or {}):
        with call.trace.stage("cache"):
            cache.store(call.cache_key, answer)
    leave_flight(call, answer=answer)


def _exchange(call: Call, *, watch: DisconnectWatch | None) -> Any:
    """Ask the deployments for one body; return what the endpoint makes of it."""
    with call.trace.stage("upstream"), process_slot(call, call.deadline):
        call.body, route = with_fallback(call, partial(_ask_for_body, call, watch), call.deadline)
    try:
        return call.read(call.body)
    except ApiError as error:
        log.warning("upstream_failed", route=route.name, cause=error.error_code, status=error.status)
        call.note_failure(route.name, error.error_code)
        call.provider_failed(error)
        raise


def _ask_for_body(call: Call, watch: DisconnectWatch | None, route: Route) -> tuple[Body, Route]:
    """Ask one deployment for a body, and charge the attempt. A failed attempt that may be billed is charged its bound.

    Raises AttemptFailed, or ClientLeft if the client disconnected and the route stops calls for that.
    """
    stops = watch if route.stops_when_client_leaves else None
    if stops is not None and stops.is_unwanted():
        raise ClientLeft
    with provider_slot(call, route) as slot:
        call.note_attempt(route)
        try:
            with stops.watching() if stops else nullcontext() as abort:
                protocol, payload, translation = call.outgoing(route)
                body = upstream.call(
                    route,
                    protocol.path,
                    payload,
                    seconds=call.deadline.left,
                    abort=abort,
                    headers=call.headers_for(route),
                )
            body = _accepted(call, body, route, protocol, translation)
        except AttemptFailed as failure:
            if abort is None or not abort.is_set:
                call.charge_failure(failure, route)
                raise
            failure.cause = "stopped, since its client had left"
            call.charge_failure(failure, route)
            slot.settle(failure.tokens)
            raise ClientLeft from failure
        usage, source = call.protocol.used(call.payload, body, model=route.upstream_name)
        call.charge(usage, call.rates(route, body.get("service_tier")), source=source)
        slot.settle(usage.tokens)
    return body, route


def _accepted(call: Call, body: Body, route: Route, sender: WireProtocol, translation: Translation | None) -> Body:
    """Return a provider's answer in the caller's format; `sender` is the provider's endpoint.

    Raises AttemptFailed for a body that is an error, is incomplete, or does not fit the request. If an error reports no
    usage, the output generated before it is estimated.
    """
    payload, protocol, error = call.payload, call.protocol, find_error(body)
    if error is not None:
        if error.usage is None:
            counted = protocol.estimate(payload, body, model=route.upstream_name)
            error.usage, error.usage_source = counted if counted.output_tokens else None, "estimated"
        raise failed_attempt(error, route)
    if not sender.is_complete(body):
        raise failed_attempt(ValueError("incomplete answer"), route)
    if translation is not None:
        try:
            body = translation.body(payload, body)
        except DAMAGED as damage:
            raise failed_attempt(ValueError("untranslatable answer"), route) from damage
    try:
        protocol.answered(payload, body)
    except UnfitAnswer as unfit:
        usage, source = protocol.used(payload, body, model=route.upstream_name)
        raise unfit_attempt(unfit, route, usage=usage, usage_source=source) from unfit
    return body
