"""Limits of calls to providers: how many a process makes at once, and each provider's own limits.

Each attempt is preceded by a reservation at the provider, which is settled with the tokens that the attempt used. The
scripts of the callers' limits keep these limits too, over all processes. Nobody is charged and nothing is recorded.
While the state store is down, each process keeps them for itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from math import ceil

import structlog
from django.conf import settings

from accounts.limits import get_limits
from accounts.limits.types import Amount, Bound, LimitSet, Refusal
from core.database import release_connections
from core.errors import ApiError, InvalidRequest, UpstreamBusy
from core.redis.leases import renewer
from core.telemetry.metrics import upstream_calls, upstream_queue
from inference.call import Call
from inference.catalog import Route
from inference.upstream.errors import FULL, AttemptFailed, Deadline

log = structlog.get_logger(__name__)


class Capacity:
    """The slots of this process for calls to providers, granted in the order of the requests.

    A semaphore would let a new call overtake those that wait.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.taken = 0
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @property
    def queued(self) -> int:
        """The number of calls that wait for a slot."""
        return len(self._waiting)

    @contextmanager
    def slot(self, seconds: float) -> Iterator[None]:
        """Hold a slot while the block runs; raises UpstreamBusy if none becomes free within the seconds."""
        turn = None
        with self._lock:
            if self.taken < self.slots:  # then none waits
                self.taken += 1
                upstream_calls.set(self.taken)
            else:
                turn = threading.Event()
                self._waiting.append(turn)
                upstream_queue.set(self.queued)
        try:
            if turn is not None and not turn.wait(seconds):
                raise UpstreamBusy(retry_after=1)
            yield
        finally:
            with self._lock:
                if turn is None or turn.is_set():
                    self.taken -= 1
                else:
                    self._waiting.remove(turn)
                    upstream_queue.set(self.queued)
                self._admit()

    def _admit(self) -> None:
        """Give the free slots to the calls that wait longest."""
        while self._waiting and self.taken < self.slots:
            self.taken += 1
            self._waiting.popleft().set()
            upstream_queue.set(self.queued)
        upstream_calls.set(self.taken)


_capacity = lru_cache(maxsize=1)(Capacity)


def capacity() -> Capacity:
    """Return the process's capacity; a new one if UPSTREAM_CONCURRENCY has changed."""
    return _capacity(settings.UPSTREAM_CONCURRENCY)


@contextmanager
def process_slot(call: Call, deadline: Deadline) -> Iterator[None]:
    """Hold one of this process's slots for provider calls, and renew the call's lease meanwhile.

    No database connection is held. Raises UpstreamBusy if no slot becomes free in time.
    """
    release_connections()
    with renewer.held(get_limits(), call.limits.shard, call.record.id), ExitStack() as held:
        try:
            held.enter_context(capacity().slot(min(deadline.left, settings.UPSTREAM_QUEUE_SECONDS)))
        except UpstreamBusy:
            call.note(f"this process makes {settings.UPSTREAM_CONCURRENCY} calls at once (UPSTREAM_CONCURRENCY)")
            raise
        yield


class NoRoom(AttemptFailed):
    """An attempt exceeds one of its provider's own limits; `refusal` has the limit, and when it has room again."""

    def __init__(self, refusal: Refusal) -> None:
        error: ApiError = UpstreamBusy(retry_after=refusal.retry_after)
        if refusal.impossible:
            text = "The request and its longest answer are more than the model's provider takes in a minute."
            error = InvalidRequest(text, code="bound_exceeds_limit")
        super().__init__(FULL, error)
        self.refusal = refusal


class ProviderSlot:
    """A reservation at a provider: a slot, and tokens that it holds. Without `limits` there is nothing to settle."""

    def __init__(self, limits: LimitSet | None, operation: str, tokens: int) -> None:
        self._limits = limits
        self._operation = operation
        self._tokens = tokens

    def settle(self, used: int | None = None) -> None:
        """Give the slot back, once, and count the tokens that were used: all that it holds if the use is unknown."""
        limits, self._limits = self._limits, None
        if limits is not None:
            renewer.let_go(self._operation)
            tokens = self._tokens if used is None else used
            get_limits().settle(limits, self._operation, admitted_at=0, used=Amount(tokens), record=None)


def take_slot(call: Call, route: Route) -> ProviderSlot:
    """Count the call's next attempt at the route's provider, take a slot and hold its tokens there; raises NoRoom.

    A provider without limits of its own grants it without asking anybody.
    """
    limits, operation, tokens = route.provider_limits, "", 0
    if limits is not None:
        operation, tokens = call.attempt_id, call.attempt_tokens
        bound = Bound(Amount(tokens))
        answer = get_limits().reserve(limits, operation, admitted_at=0, bound=bound, draft=None)
        if isinstance(answer, Refusal):
            log.info("provider_full", provider=route.provider, limit=str(answer.limit), retry_after=answer.retry_after)
            raise NoRoom(answer)
        renewer.hold(get_limits(), limits.shard, operation)
    return ProviderSlot(limits, operation, tokens)


@contextmanager
def provider_slot(call: Call, route: Route) -> Iterator[ProviderSlot]:
    """Hold a slot at the route's provider while the block runs, which settles it with the tokens used.

    After a failure, these are the tokens of the AttemptFailed; all that the slot holds if they are unknown.
    """
    held = take_slot(call, route)
    try:
        yield held
    except AttemptFailed as failure:
        held.settle(failure.tokens)
        raise
    finally:
        held.settle()


def none_has_room(refused: list[NoRoom], *, others_after: float | None) -> AttemptFailed:
    """Return the failure of a call for which no provider has room, with the whole seconds until the first one has.

    `others_after`: seconds until a deployment may be asked that was not asked now; None if there is none. The failure
    of a call that is larger than any of them grants a minute is an InvalidRequest.
    """
    waits = [full.refusal.retry_after for full in refused if not full.refusal.impossible]
    if others_after is not None:
        waits.append(ceil(others_after))
    error = UpstreamBusy(retry_after=min(waits)) if waits else refused[0].error
    return AttemptFailed(FULL, error)
