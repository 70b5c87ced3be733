"""The one way that every model call takes, whatever surface it came in by.

    cache look-up -> reserve (slot, tokens, money) -> route upstream -> store in cache -> settle and record -> answer

A call leaves exactly one record behind: a hit when it is answered, any other when it is settled. What fails before
(a bad body, a rate limit) is recorded by the view that answers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connections

from accounts.exceptions import ApiError, ModelNotFound, UpstreamFailed
from accounts.limits.leases import keeper
from accounts.snapshots import Identity
from inference import bounds, cache
from inference.accounting import Bill
from inference.calls import Answer, Caller, ModelCall
from inference.catalog import CatalogModel, Route, catalog, default_model_name
from inference.upstream.attempts import AttemptFailed, Deadline
from inference.upstream.capacity import capacity
from inference.upstream.client import client
from inference.upstream.completions import Usage, read_usage, require_choices
from inference.upstream.routing import first_success

CHAT_PATH = "/chat/completions"


@dataclass(slots=True)
class _Progress:
    """A call on its way."""

    call: ModelCall
    caller: Caller
    model: CatalogModel
    bill: Bill
    cache_key: str | None = None


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
        progress.bill.settle(status=error.status, error_code=error.error_code)
        raise


def find_model(name: str, identity: Identity) -> CatalogModel:
    """Return a model that the identity may use; raises ModelNotFound for any other."""
    model = catalog.find(name)
    if model is None or not identity.may_use_model(name):
        raise ModelNotFound
    return model


def _begin(call: ModelCall, caller: Caller) -> _Progress:
    model = find_model(call.model or default_model_name(), caller.identity)
    bill = Bill(caller, call.endpoint)
    bill.record["model"] = model.public_name
    return _Progress(call, caller, model, bill)


def _look_up(progress: _Progress) -> cache.CachedAnswer | None:
    call, identity, record = progress.call, progress.caller.identity, progress.bill.record
    if not identity.cache_enabled or not (call.reads_cache or call.writes_cache):
        record["cache"] = "bypass"
        return None
    record["cache"] = "miss" if call.reads_cache else "bypass"
    progress.cache_key = cache.answer_key(
        identity.account_id,
        endpoint=call.endpoint,
        model=progress.model.public_name,
        payload={**call.payload, "max_tokens": bounds.wanted_output(call.output_tokens, identity, progress.model)},
    )
    return cache.look_up(progress.cache_key) if call.reads_cache else None


def _answer_hit(progress: _Progress, cached: cache.CachedAnswer) -> Answer:
    text = progress.call.read(cached.body)
    progress.bill.record.update(cache="hit", usage_source="cache", deployment=cached.deployment)
    progress.bill.emit(status=200)
    tokens = cached.input_tokens + cached.output_tokens
    return Answer(text, cached.body, "hit", progress.model.public_name, tokens)


def _reserve(progress: _Progress) -> None:
    if not progress.model.routes:
        raise UpstreamFailed
    call, identity = progress.call, progress.caller.identity
    progress.bill.reserve(bounds.bound_of(call.payload, call.output_tokens, identity, progress.model))


def _answer_from_upstream(progress: _Progress) -> Answer:
    call, bill = progress.call, progress.bill
    payload = {**call.payload, "max_tokens": bill.output_tokens}
    body, route = _ask(progress, payload)
    usage = _charge(bill, body, payload, route)
    text = call.read(body)
    if progress.cache_key is not None and call.writes_cache:
        answer = cache.CachedAnswer(body, usage.input_tokens, usage.cached_tokens, usage.output_tokens, route.name)
        with progress.caller.trace.stage("cache"):
            cache.store(progress.cache_key, answer)
    bill.settle(status=200)
    tokens = usage.input_tokens + usage.output_tokens
    return Answer(text, body, bill.record["cache"], progress.model.public_name, tokens, bill.used.cost)


def _ask(progress: _Progress, payload: dict[str, Any]) -> tuple[dict[str, Any], Route]:
    """Ask the deployments until one answers, holding no database connection meanwhile."""
    caller, bill = progress.caller, progress.bill
    deadline = Deadline(settings.UPSTREAM_TIMEOUT)
    _release_connections()
    with (
        caller.trace.stage("upstream"),
        keeper.held(caller.identity.account_id, caller.trace.id.hex),
        capacity().place(min(deadline.left, settings.UPSTREAM_QUEUE_SECONDS)),
    ):
        try:
            return first_success(
                progress.model.routes,
                lambda route: (_attempt(bill, route, payload, deadline), route),
                deadline,
                covers_another=bill.covers_another,
            )
        except AttemptFailed as failure:
            raise failure.error from failure


def _attempt(bill: Bill, route: Route, payload: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """Make one call to one deployment. One that may be billed although it failed is charged its bound."""
    bill.record.update(deployment=route.name, attempts=bill.record.get("attempts", 0) + 1)
    try:
        body = client.call(route, CHAT_PATH, payload, seconds=deadline.left)
        require_choices(body, route=route.name)
    except AttemptFailed as failure:
        if failure.verdict.may_be_billed:
            bill.charge_bound()
        raise
    return body


def _release_connections() -> None:
    """Give a pooled connection back before a slow call; SQLite's is the process's own, and stays."""
    for connection in connections.all(initialized_only=True):
        if connection.vendor != "sqlite" and not connection.in_atomic_block:
            connection.close()


def _charge(bill: Bill, body: dict[str, Any], payload: dict[str, Any], route: Route) -> Usage:
    """Charge what the provider says that the call used, or an estimate where it says nothing."""
    usage, source = read_usage(body.get("usage")), "provider"
    if usage is None:
        usage, source = bounds.estimate_usage(payload, body), "estimated"
    bill.charge(usage, route.rates, source=source)
    return usage
