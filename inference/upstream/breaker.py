"""A circuit breaker for each deployment: a provider that is down costs a caller at most one connect timeout, once.

closed     calls pass; FAILURES in a row open it
open       no call passes for a while: COOL_DOWN at first, twice as long after each failed trial, LONGEST at most
half open  one call passes as a trial: success closes the breaker, failure opens it again

The state is a process's own: a process learns of a dead provider by its own calls, which is at most FAILURES of them.
What opens or closes is published in the default cache, for the admin and for others who look from outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import structlog
from django.core.cache import caches

FAILURES = 5
COOL_DOWN = 5.0  # seconds
LONGEST_COOL_DOWN = 60.0

log = structlog.get_logger(__name__)


class BreakerState(StrEnum):
    """What a breaker lets pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    opened_at: float = 0.0
    cool_down: float = 0.0
    has_trial: bool = False


class Breakers:
    """The breakers of a process, by deployment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: dict[int, _Circuit] = {}
        self._lock = threading.Lock()

    def state(self, deployment_id: int) -> BreakerState:
        """Tell the state of a deployment's breaker."""
        circuit = self._circuits.get(deployment_id)
        if circuit is None or not circuit.cool_down:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._is_cool(circuit) else BreakerState.OPEN

    def admits(self, deployment_id: int) -> bool:
        """Say whether a call may go there now; of an open breaker that has cooled down, the one trial."""
        with self._lock:
            circuit = self._circuits.get(deployment_id)
            if circuit is None or not circuit.cool_down:
                return True
            if not self._is_cool(circuit) or circuit.has_trial:
                return False
            circuit.has_trial = True
            return True

    def succeeded(self, deployment_id: int) -> None:
        """Note that a call was answered, whatever the answer: the provider is there."""
        circuit = self._circuits.pop(deployment_id, None)
        if circuit is not None and circuit.cool_down:
            log.info("breaker_closed", deployment_id=deployment_id)
            _publish(deployment_id, 0)

    def failed(self, deployment_id: int) -> None:
        """Note that a call found the provider down."""
        opened_for = 0.0
        with self._lock:
            circuit = self._circuits.setdefault(deployment_id, _Circuit())
            circuit.failures += 1
            # Of an open breaker only its trial counts: the others were on their way when it opened.
            if circuit.has_trial or (circuit.failures >= FAILURES and not circuit.cool_down):
                circuit.cool_down = min(circuit.cool_down * 2 or COOL_DOWN, LONGEST_COOL_DOWN)
                circuit.opened_at = self._clock()
                circuit.has_trial = False
                opened_for = circuit.cool_down
        if opened_for:
            log.warning("breaker_opened", deployment_id=deployment_id, seconds=opened_for)
            _publish(deployment_id, opened_for)

    def gave_up(self, deployment_id: int) -> None:
        """Note that a trial ended without telling anything, as when its caller left: another may try."""
        circuit = self._circuits.get(deployment_id)
        if circuit is not None:
            circuit.has_trial = False

    def forget(self) -> None:
        """Close all."""
        self._circuits.clear()

    def _is_cool(self, circuit: _Circuit) -> bool:
        return self._clock() - circuit.opened_at >= circuit.cool_down


breakers = Breakers()


def open_anywhere(deployment_ids: Iterable[int]) -> set[int]:
    """Return the deployments whose breaker is open in some process, as far as the cache knows."""
    places = {_place(identifier): identifier for identifier in deployment_ids}
    return {places[place] for place in caches["default"].get_many(places)}


def _publish(deployment_id: int, seconds: float) -> None:
    """Tell others of an open breaker for as long as it is open; 0 takes it back."""
    if seconds:
        caches["default"].set(_place(deployment_id), 1, seconds)
    else:
        caches["default"].delete(_place(deployment_id))


def _place(deployment_id: int) -> str:
    return f"breaker:{deployment_id}"
