"""Routing: which deployment answers a call, and which fallback or retry follows a failure, within the deadline.

Deployments are tried in the model's order of preference, without those whose breaker is open or whose address is
ejected. After a failure that another deployment may not share (refused connection, 402, 408, 429, 5xx), the next one is
tried at once. If all have failed and a failure may pass, the round is repeated after a pause with full jitter, or after
the provider's Retry-After if that is short and within the deadline. Nothing is retried after the first streamed byte:
by then an attempt has succeeded.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import ceil
from typing import TypeVar

import structlog
from django.conf import settings

from core.errors import UpstreamBusy, UpstreamFailed
from core.telemetry.metrics import observe_attempt, observe_breaker
from core.telemetry.trace import begin_attempt_span
from inference.call import Call
from inference.catalog import Route
from inference.upstream.breaker import COOL_DOWN, breakers
from inference.upstream.errors import REJECTED, UNCONNECTED, AttemptFailed, Deadline, Effect, Verdict
from inference.upstream.preference import preferred
from inference.upstream.provider_limits import NoRoom, none_has_room

log = structlog.get_logger(__name__)


ROUNDS = 3
#: The pause before a round is random between 0 and this many seconds, doubled for each further round (full jitter).
FIRST_PAUSE = 0.25
#: The longest Retry-After, in seconds, that is waited for within a call; a longer one is returned to the caller.
LONGEST_PAUSE = 5.0
NEVER = float("inf")

T = TypeVar("T")


def with_fallback(
    call: Call, ask: Callable[[Route], T], deadline: Deadline, *, rest: Callable[[float], object] | None = None
) -> T:
    """Ask the deployments of a call until one answers, and return its answer. Each is checked just before it is asked.

    `ask` makes one attempt, and raises AttemptFailed. `rest` waits a number of seconds between two rounds, or until the
    call is no longer wanted (None: the full time). The failures of a single account don't open a breaker for all.

    Raises the error of the last attempt, preferably of one that may be retried later; UpstreamBusy if every breaker is
    open, every address is ejected, or every provider has reached its limits.
    """
    account_id, choices = call.identity.account_id, preferred(call)
    failure: AttemptFailed | None = None
    full: list[NoRoom] = []
    returns = _Returns()
    for number in range(ROUNDS):
        if number and not returns.rest(number, deadline, rest or time.sleep):
            break
        for route in filter(returns.admits, choices):
            if not breakers.admits(route, account_id):
                observe_breaker(route.name, breakers.state(route))
                call.note(breakers.why_not(route, account_id))
                continue
            try:
                return _attempt(call, route, ask, deadline.left)
            except NoRoom as refused:
                full.append(refused)
                call.note(f"provider {route.provider} has no room: {refused.refusal.limit}")
            except AttemptFailed as failed:
                returns.learn(route, failed.verdict)
                if failure is None or failed.verdict.retry or not failure.verdict.retry:
                    failure = failed  # preferably the last one that may be retried later
                is_last = not failed.verdict.fallback or deadline.is_over
                if is_last or (failed.verdict.may_be_billed and not call.covers_another()):
                    raise call.provider_failed(failed.error) from failed
    failure = failure or _none_admitted(choices, full, account_id)
    raise call.provider_failed(failure.error) from failure


class _Returns:
    """When each failed deployment may be tried again within a call: after its Retry-After, or never."""

    def __init__(self) -> None:
        self._after: dict[int, float] = {}
        self._rested_until = 0.0

    def learn(self, route: Route, verdict: Verdict) -> None:
        """Note a failure."""
        self._after[route.deployment_id] = time.monotonic() + verdict.retry_after if verdict.retry else NEVER

    def admits(self, route: Route) -> bool:
        """Return whether a deployment may be tried now."""
        return self._after.get(route.deployment_id, 0.0) <= max(time.monotonic(), self._rested_until)

    def rest(self, number: int, deadline: Deadline, rest: Callable[[float], object]) -> bool:
        """Wait before another round; False, without waiting, if none may be retried in time."""
        now, jitter = time.monotonic(), random.uniform(0, FIRST_PAUSE * 2 ** (number - 1))
        pause = max(min(self._after.values(), default=NEVER) - now, jitter)
        if pause > LONGEST_PAUSE or pause >= deadline.left:
            return False
        self._rested_until = now + pause
        rest(pause)
        return True


def _attempt(call: Call, route: Route, ask: Callable[[Route], T], seconds: float) -> T:
    """Make one attempt, of which breakers, metrics and the trace learn the outcome."""
    account_id = call.identity.account_id
    outcome, finish = "ok", begin_attempt_span(route.provider, route.name)
    try:
        answer = ask(route)
    except AttemptFailed as failed:
        # the class's code: an instance may have the provider's
        outcome = "no_room" if isinstance(failed, NoRoom) else failed.error.code
        _learn(route, failed, account_id, seconds)
        raise
    except BaseException:
        outcome = "abandoned"
        breakers.gave_up(route, account_id)
        raise
    else:
        breakers.answered(route, account_id)
        return answer
    finally:
        call.end_attempt()
        if finish is not None:
            finish(outcome)
        observe_attempt(route.provider, outcome)
        observe_breaker(route.name, breakers.state(route))


def _learn(route: Route, failed: AttemptFailed, account_id: int, seconds: float) -> None:
    """Update the breakers after a failed attempt that had `seconds` to run."""
    match failed.verdict.breaker:
        case Effect.COUNT:
            breakers.failed(route, account_id, failed.cause)
        case Effect.CLOSE:
            breakers.answered(route, account_id)
        case Effect.PAUSE:
            breakers.gave_up(route, account_id)
            breakers.pause(route, settings.UPSTREAM_CREDIT_PAUSE, failed.cause)
        case Effect.EJECT:
            enough = min(settings.UPSTREAM_CONNECT_TIMEOUT, settings.UPSTREAM_TIMEOUT) / 2
            if seconds >= enough or failed.verdict != UNCONNECTED:
                # a connect timeout shortened by the call's own deadline proves nothing
                breakers.eject(route, failed.cause)
            breakers.gave_up(route, account_id)
        case Effect.NONE:
            breakers.gave_up(route, account_id)


def _none_admitted(choices: list[Route], full: list[NoRoom], account_id: int) -> AttemptFailed:
    if not choices:
        log.warning("no_deployment")
        return AttemptFailed(REJECTED, UpstreamFailed())
    waits = [seconds for route in choices if (seconds := breakers.seconds_left(route, account_id)) is not None]
    if full:
        return none_has_room(full, others_after=min(waits, default=None))
    text = "The model provider failed recently and gets no calls for now."
    return AttemptFailed(REJECTED, UpstreamBusy(text, retry_after=ceil(min(waits, default=COOL_DOWN))))
