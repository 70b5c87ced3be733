"""A circuit breaker for each deployment: one that is reached, and fails, is left alone for a while.

closed     calls pass; FAILURES in a row open it
open       no call passes for a while: COOL_DOWN at first, twice as long after each failed trial, LONGEST at most
half open  one call passes as a trial: success closes the breaker, failure opens it again

Nobody closes a deployment to all others by what he asks of it. A failure (5xx, a broken answer, a timeout) may be the
doing of the request: of those a single account's count up to OF_ONE_ACCOUNT, and a trial that fails proves nothing
until another account's has failed as well. What an account's own calls meet opens a breaker for that account alone, so
that its callers don't wait for it either. A connection that can't be made is nobody's doing: see addresses.

The state is a process's own: a process learns of a failing deployment by its own calls, which is FAILURES of them.
What opens or closes for all is published in inference.upstream.notices, for others who look from outside.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import structlog

from inference.upstream.notices import publish

FAILURES = 5
OF_ONE_ACCOUNT = 3
COOL_DOWN = 5.0  # seconds
LONGEST_COOL_DOWN = 60.0

log = structlog.get_logger(__name__)


class BreakerState(StrEnum):
    """What a breaker lets pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerReading:
    """How the breaker of a deployment stands: since when it has been open for all, and for how many accounts alone."""

    state: BreakerState
    open_since: datetime | None
    accounts: int


@dataclass(slots=True)
class _Circuit:
    """`failures` are those in a row, by account; since it opened, those of its trials."""

    failures: Counter[int] = field(default_factory=Counter)
    open_since: float = 0.0
    opened_at: float = 0.0
    cool_down: float = 0.0
    has_trial: bool = False

    @property
    def is_open(self) -> bool:
        """Say whether it is open or half open."""
        return bool(self.cool_down)

    def trip(self, now: float) -> None:
        """Open, or open again after a trial, for twice as long."""
        self.open_since = self.open_since if self.is_open else now
        self.cool_down = min(self.cool_down * 2 or COOL_DOWN, LONGEST_COOL_DOWN)
        self.opened_at, self.has_trial = now, False
        self.failures = Counter()


class Breakers:
    """The breakers of a process: one for each deployment, and one for each account that had failures there."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        publish: Callable[[int, float], None] | None = None,
    ) -> None:
        self._clock = clock
        self._publish = publish or (lambda *_: None)
        self._shared: dict[int, _Circuit] = {}
        self._own: dict[tuple[int, int], _Circuit] = {}
        self._lock = threading.Lock()

    def state(self, deployment_id: int) -> BreakerState:
        """Tell the state of a deployment's breaker, as it is for all."""
        circuit = self._shared.get(deployment_id)
        if circuit is None or not circuit.is_open:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._is_cool(circuit) else BreakerState.OPEN

    def snapshot(self) -> dict[int, BreakerReading]:
        """Tell how things stand with each deployment that had failures lately; any other's breaker is closed."""
        with self._lock:
            alone = Counter(deployment for (deployment, _), circuit in self._own.items() if circuit.is_open)
            known = {*self._shared, *alone}
            return {each: BreakerReading(self.state(each), self._open_since(each), alone[each]) for each in known}

    def admits(self, deployment_id: int, account_id: int) -> bool:
        """Say whether a call may go there now; of an open breaker that has cooled down, the one trial."""
        with self._lock:
            opened = [circuit for circuit in self._circuits(deployment_id, account_id) if circuit.is_open]
            if any(circuit.has_trial or not self._is_cool(circuit) for circuit in opened):
                return False
            for circuit in opened:
                circuit.has_trial = True
            return True

    def succeeded(self, deployment_id: int, account_id: int) -> None:
        """Note that a call was answered, whatever the answer: the provider is there."""
        if not self._shared and not self._own:
            return
        with self._lock:
            self._own.pop((deployment_id, account_id), None)
            circuit = self._shared.pop(deployment_id, None)
        if circuit is not None and circuit.is_open:
            log.info("breaker_closed", deployment_id=deployment_id)
            self._publish(deployment_id, 0)

    def failed(self, deployment_id: int, account_id: int) -> None:
        """Note that a call found the provider failing."""
        with self._lock:
            shared = self._shared.setdefault(deployment_id, _Circuit())
            self._fail_alone(deployment_id, account_id, was_trial=shared.has_trial)
            opens = _fails(shared, account_id)
            shared.has_trial = False
            if opens:
                shared.trip(self._clock())
            seconds = shared.cool_down
        if opens:
            log.warning("breaker_opened", deployment_id=deployment_id, seconds=seconds)
            self._publish(deployment_id, seconds)

    def gave_up(self, deployment_id: int, account_id: int) -> None:
        """Note that a trial ended without telling anything, as when its caller left: another may try."""
        for circuit in self._circuits(deployment_id, account_id):
            circuit.has_trial = False

    def forget(self) -> None:
        """Close all."""
        self._shared.clear()
        self._own.clear()

    def _fail_alone(self, deployment_id: int, account_id: int, *, was_trial: bool) -> None:
        """Count a failure against the account's own breaker; one that failed the trial of all waits for the others."""
        own = self._own.setdefault((deployment_id, account_id), _Circuit())
        own.failures[account_id] += 1
        if own.has_trial or (not own.is_open and (was_trial or own.failures[account_id] >= FAILURES)):
            own.trip(self._clock())
            log.warning("breaker_opened", deployment_id=deployment_id, account_id=account_id, seconds=own.cool_down)

    def _circuits(self, deployment_id: int, account_id: int) -> list[_Circuit]:
        found = (self._shared.get(deployment_id), self._own.get((deployment_id, account_id)))
        return [circuit for circuit in found if circuit is not None]

    def _is_cool(self, circuit: _Circuit) -> bool:
        return self._clock() - circuit.opened_at >= circuit.cool_down

    def _open_since(self, deployment_id: int) -> datetime | None:
        circuit = self._shared.get(deployment_id)
        if circuit is None or not circuit.is_open:
            return None
        return datetime.now(UTC) - timedelta(seconds=self._clock() - circuit.open_since)


def _fails(circuit: _Circuit, account_id: int) -> bool:
    """Count a failure in a circuit, and say whether it opens now, or again.

    Of an open breaker only its trials count: other calls were on their way when it opened.
    """
    if circuit.is_open and not circuit.has_trial:
        return False
    circuit.failures[account_id] += 1
    if circuit.is_open:
        return len(circuit.failures) > 1
    return sum(min(each, OF_ONE_ACCOUNT) for each in circuit.failures.values()) >= FAILURES


breakers = Breakers(publish=publish)
