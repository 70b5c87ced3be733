"""The one way that every model call takes, whatever surface it came in by.

    cache look-up -> reserve (slot, tokens, money) -> route upstream -> store in cache -> settle and record -> answer

A call leaves exactly one record behind: a hit when it is answered, any other when it is settled. What fails before
(a bad body, a rate limit) is recorded by the view that answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connections

from accounts.exceptions import ApiError, DependencyUnavailable, ModelNotFound, UpstreamFailed
from accounts.limits import get_limits
from accounts.limits.bounds import Amount
from accounts.limits.contract import Admission, Refusal, Reserved, Unavailable
from accounts.limits.leases import keeper
from accounts.refusals import refusal_error
from accounts.snapshots import Identity
from inference import bounds, cache
from inference.catalog import CatalogModel, Rates, Route, catalog, default_model_name
from inference.upstream.client import AttemptFailed, Reply, Usage, client
from monitoring.records import begin_record
from monitoring.trace import Trace


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What is asked: an endpoint's name, a model (None: the default), and a chat completion's body without `model`.

    `read` takes what the surface answers out of a provider's body, or raises the ApiError that it means there.
    """

    endpoint: str
    model: str | None
    payload: Mapping[str, Any]
    read: Callable[[dict[str, Any]], str]
    output_tokens: int | None = None
    reads_cache: bool = True
    writes_cache: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, in which request."""

    identity: Identity
    trace: Trace
    admission: Admission


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered, and what the headers tell about it. `cost` is in nano-dollars, 0 for a hit."""

    text: str
    body: dict[str, Any]
    cache: str
    model: str
    tokens: int
    cost: int = 0

    @property
    def is_cached(self) -> bool:
        """Say whether nothing was sent upstream for it."""
        return self.cache in ("hit", "coalesced")


@dataclass(slots=True)
class _Progress:
    """A call on its way, with what its record will say."""

    call: ModelCall
    caller: Caller
    model: CatalogModel
    record: dict[str, Any]
    cache_key: str | None = None
    reserved: Reserved | None = None
    used: Amount = field(default_factory=Amount)


def answer_call(call: ModelCall, caller: Caller) -> Answer:
    """Answer a model call from the cache or from a provider, and account for it.

    Raises ModelNotFound for a model that does not exist or is not the caller's, a refusal of the limits, or what the
    provider's failure means.
    """
    progress = _begin(call, caller)
    with caller.trace.stage("cache"):
        cached = _look_up(progress)
    if cached is not None:
        return _answer_hit(progress, cached)
    with caller.trace.stage("limits"):
        _reserve(progress)
    try:
        return _answer_from_upstream(progress)
    except ApiError as error:
        _settle(progress, status=error.status, error_code=error.error_code)
        raise


def _begin(call: ModelCall, caller: Caller) -> _Progress:
    model = find_model(call.model or default_model_name(), caller.identity)
    record = begin_record(
        trace=caller.trace,
        identity=caller.identity,
        endpoint=call.endpoint,
        admitted_at=caller.admission.at,
    )
    record["model"] = model.public_name
    return _Progress(call, caller, model, record)


def find_model(name: str, identity: Identity) -> CatalogModel:
    """Return a model that the identity may use; raises ModelNotFound for any other."""
    model = catalog.find(name)
    if model is None or not identity.may_use_model(name):
        raise ModelNotFound
    return model


def _look_up(progress: _Progress) -> cache.CachedAnswer | None:
    call, identity = progress.call, progress.caller.identity
    if not identity.cache_enabled or not (call.reads_cache or call.writes_cache):
        progress.record["cache"] = "bypass"
        return None
    progress.record["cache"] = "miss" if call.reads_cache else "bypass"
    progress.cache_key = cache.answer_key(
        identity.account_id,
        endpoint=call.endpoint,
        model=progress.model.public_name,
        payload={**call.payload, "max_tokens": bounds.wanted_output(call.output_tokens, identity, progress.model)},
    )
    return cache.look_up(progress.cache_key) if call.reads_cache else None


def _answer_hit(progress: _Progress, cached: cache.CachedAnswer) -> Answer:
    text = progress.call.read(cached.body)
    progress.record.update(
        cache="hit",
        usage_source="cache",
        deployment=cached.deployment,
        status=200,
        latency_ms=progress.caller.trace.elapsed_ms,
    )
    emit_record(progress.caller, progress.record)
    tokens = cached.input_tokens + cached.output_tokens
    return Answer(text, cached.body, "hit", progress.model.public_name, tokens)


def _reserve(progress: _Progress) -> None:
    """Take a slot and the call's bound. The draft is what the record will say if this process dies."""
    call, caller = progress.call, progress.caller
    if not progress.model.routes:
        raise UpstreamFailed
    bound = bounds.bound_of(call.payload, call.output_tokens, caller.identity, progress.model)
    draft = {**progress.record, "status": 500, "error_code": "interrupted", "attempts": 1}
    try:
        answer = get_limits().reserve(
            caller.identity.limits, caller.trace.id.hex, admitted_at=caller.admission.at, bound=bound, draft=draft
        )
    except Unavailable as error:
        raise DependencyUnavailable(retry_after=error.retry_after) from error
    if isinstance(answer, Refusal):
        raise refusal_error(answer)
    progress.reserved = answer


def _answer_from_upstream(progress: _Progress) -> Answer:
    reserved = progress.reserved
    assert reserved is not None  # noqa: S101  # by the order of the stages
    payload = {**progress.call.payload, "max_tokens": reserved.output_tokens}
    reply = _ask(progress, progress.model.routes[0], payload)
    usage = _charge(progress, reply)
    text = progress.call.read(reply.body)
    if progress.cache_key is not None and progress.call.writes_cache:
        with progress.caller.trace.stage("cache"):
            cache.store(progress.cache_key, _cached_answer(reply, usage))
    _settle(progress, status=200)
    tokens = usage.input_tokens + usage.output_tokens
    outcome, cost = progress.record["cache"], progress.used.cost
    return Answer(text, reply.body, outcome, progress.model.public_name, tokens, cost)


def _ask(progress: _Progress, route: Route, payload: dict[str, Any]) -> Reply:
    """Call a deployment, holding no database connection meanwhile. A try that may have been billed costs its bound."""
    progress.record.update(deployment=route.name, attempts=progress.record.get("attempts", 0) + 1)
    caller = progress.caller
    _release_connections()
    with caller.trace.stage("upstream"), keeper.held(caller.identity.account_id, caller.trace.id.hex):
        try:
            return client.complete_chat(route, payload, seconds=settings.UPSTREAM_TIMEOUT)
        except AttemptFailed as failure:
            if failure.may_be_billed and progress.reserved is not None:
                progress.used = progress.reserved.held
                progress.record["usage_source"] = "bound"
            raise failure.error from failure


def _release_connections() -> None:
    """Give a pooled connection back before a slow call; SQLite's is the process's own, and stays."""
    for connection in connections.all(initialized_only=True):
        if connection.vendor != "sqlite" and not connection.in_atomic_block:
            connection.close()


def _charge(progress: _Progress, reply: Reply) -> Usage:
    usage = reply.usage
    progress.record["usage_source"] = "provider"
    if usage is None:
        usage = bounds.estimate_usage(progress.call.payload, reply.body)
        progress.record["usage_source"] = "estimated"
    progress.record.update(
        input_tokens=usage.input_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens
    )
    progress.used = Amount(usage.input_tokens + usage.output_tokens, _cost(usage, reply.route.rates))
    return usage


def _cost(usage: Usage, rates: Rates) -> int:
    return rates.cost(
        input_tokens=usage.input_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens
    )


def _cached_answer(reply: Reply, usage: Usage) -> cache.CachedAnswer:
    return cache.CachedAnswer(
        reply.body, usage.input_tokens, usage.cached_tokens, usage.output_tokens, reply.route.name
    )


def _settle(progress: _Progress, *, status: int, error_code: str = "") -> None:
    """Replace the bound by what was used and emit the record, in one step of the limits."""
    caller = progress.caller
    progress.record.update(
        status=status, error_code=error_code, cost=progress.used.cost, latency_ms=caller.trace.elapsed_ms
    )
    with caller.trace.stage("limits"):
        get_limits().settle(
            caller.identity.limits,
            caller.trace.id.hex,
            admitted_at=caller.admission.at,
            used=progress.used,
            record=progress.record,
        )
    caller.trace.is_recorded = True


def emit_record(caller: Caller, record: Mapping[str, Any]) -> None:
    """Emit the record of a request that reserved nothing, once."""
    with caller.trace.stage("limits"):
        get_limits().emit(caller.identity.account_id, caller.trace.id.hex, record)
    caller.trace.is_recorded = True
