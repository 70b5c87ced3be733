"""A circuit breaker for each deployment: one that is reached, and fails, is left alone for a while.

closed     calls pass; FAILURES in a row open it
open       no call passes for a while: COOL_DOWN at first, twice as long after each failed trial, LONGEST at most
half open  one call passes as a trial: success closes the breaker, failure opens it again; where no call comes, the
           provider is asked for its list of models instead (inference.upstream.probes)

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

from inference.upstream.notices import STILL_FAILING, Publish, publish

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
class Reason:
    """Why no call goes somewhere: since when, and how the latest failed."""

    since: datetime
    cause: str


@dataclass(frozen=True, slots=True)
class BreakerReading:
    """How the breaker of a deployment stands for all, why it is not closed, and to how many accounts alone it is."""

    state: BreakerState
    reason: Reason | None
    accounts: int


@dataclass(slots=True)
class _Circuit:
    """`failures` are those in a row, by account; since it opened, those of its trials."""

    failures: Counter[int] = field(default_factory=Counter)
    cause: str = ""
    failed_at: float = 0.0
    open_since: float = 0.0
    opened_at: float = 0.0
    cool_down: float = 0.0
    has_trial: bool = False
    #: Whether a call wanted to go there since `unasked` looked last, and when it may be probed next, and after that.
    is_wanted: bool = False
    probed_next_at: float = 0.0
    probe_pause: float = 0.0
    #: Whether a probe has failed too, so that one that succeeds says something of calls.
    has_failed_probe: bool = False
    #: Whether only a call can tell that it is well.
    needs_call: bool = False

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

    def rest(self, now: float) -> None:
        """Let it be probed later, each time after twice as long."""
        self.probe_pause = min(self.probe_pause * 2 or COOL_DOWN, LONGEST_COOL_DOWN)
        self.probed_next_at = now + self.probe_pause


class Breakers:
    """The breakers of a process: one for each deployment, and one for each account that had failures there."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        publish: Publish | None = None,
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
            alone = Counter(
                each for (each, _), circuit in self._own.items() if circuit.is_open and not self._is_cool(circuit)
            )
            known = {*self._shared, *alone}
            return {each: BreakerReading(self.state(each), self._reason(each), alone[each]) for each in known}

    def reason(self, deployment_id: int, account_id: int) -> Reason | None:
        """Tell why an account's calls don't go to a deployment; None if nothing is known against it."""
        opened = [circuit for circuit in self._circuits(deployment_id, account_id) if circuit.is_open]
        return self._reason_of(opened[0]) if opened else None

    def admits(self, deployment_id: int, account_id: int) -> bool:
        """Say whether a call may go there now; of an open breaker that has cooled down, the one trial."""
        with self._lock:
            opened = [circuit for circuit in self._circuits(deployment_id, account_id) if circuit.is_open]
            for circuit in opened:
                circuit.is_wanted = True
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
        self.close(deployment_id)

    def failed(self, deployment_id: int, account_id: int, cause: str = "") -> None:
        """Note that a call found the provider failing, and how."""
        with self._lock:
            shared = self._shared.setdefault(deployment_id, _Circuit())
            shared.cause, shared.failed_at, shared.needs_call = cause, self._clock(), False
            was_trial, shared.has_trial = shared.has_trial, False
            self._fail_alone(deployment_id, account_id, cause, was_trial=was_trial)
            opens = _fails(shared, account_id, was_trial=was_trial)
            if opens:
                shared.trip(self._clock())
            seconds = shared.cool_down
        if opens:
            log.warning("breaker_opened", deployment_id=deployment_id, seconds=seconds)
            self._publish(deployment_id, seconds, cause)
        elif was_trial:
            self._publish(deployment_id, 0, cause)

    def leave_alone(self, deployment_id: int, seconds: float, cause: str) -> None:
        """Open for all, for so many seconds, after what is nobody's doing and would meet every other call as well.

        Until a call is answered it is on trial then: a list of models says nothing of it.
        """
        with self._lock:
            circuit, now = self._shared.setdefault(deployment_id, _Circuit()), self._clock()
            circuit.cause, circuit.failed_at, circuit.needs_call = cause, now, True
            circuit.trip(now)
            circuit.cool_down = seconds
        log.warning("breaker_opened", deployment_id=deployment_id, seconds=seconds)
        self._publish(deployment_id, seconds, cause)

    def seconds_left(self, deployment_id: int, account_id: int) -> float | None:
        """Return for how long no call of an account goes there, COOL_DOWN during a trial; None if nothing is open."""
        opened = [circuit for circuit in self._circuits(deployment_id, account_id) if circuit.is_open]
        if not opened:
            return None
        left = max(circuit.opened_at + circuit.cool_down for circuit in opened) - self._clock()
        return left if left > 0 else COOL_DOWN

    def gave_up(self, deployment_id: int, account_id: int) -> None:
        """Note that a trial ended without telling anything, as when its caller left: another may try."""
        for circuit in self._circuits(deployment_id, account_id):
            circuit.has_trial = False

    def has_open(self) -> bool:
        """Say whether any is open for all."""
        with self._lock:
            return any(circuit.is_open for circuit in self._shared.values())

    def unasked(self) -> list[int]:
        """List the deployments that wait for a trial while no call has come since the last look, and may be probed."""
        now = self._clock()
        with self._lock:
            waiting = {each: circuit for each, circuit in self._shared.items() if circuit.is_open}
            found = [
                each
                for each, circuit in waiting.items()
                if self._is_cool(circuit) and now >= circuit.probed_next_at
                if not (circuit.has_trial or circuit.is_wanted)
            ]
            for circuit in waiting.values():
                circuit.is_wanted = False
        return found

    def probed(self, deployment_id: int, cause: str | None) -> None:
        """Note what came of asking the provider of an open deployment for its models: a failure, or None for an answer.

        An answer closes the breaker where there was none before. Else it says nothing of calls: the breaker stays half
        open until one comes, or until none has failed for STILL_FAILING.
        """
        now = self._clock()
        with self._lock:
            circuit = self._shared.get(deployment_id)
            if circuit is None or not circuit.is_open:
                return
            circuit.rest(now)
            if cause is not None and not circuit.needs_call:
                circuit.cause, circuit.has_failed_probe = cause, True
            is_quiet = now - circuit.failed_at >= STILL_FAILING.total_seconds()
        if cause is None and (circuit.has_failed_probe or is_quiet) and not circuit.needs_call:
            self.close(deployment_id)
        else:
            self._publish(deployment_id, 0, circuit.cause)

    def close(self, deployment_id: int) -> None:
        """Let all calls pass, and tell others if none, or a trial, could until now."""
        with self._lock:
            circuit = self._shared.pop(deployment_id, None)
        if circuit is not None and circuit.is_open:
            log.info("breaker_closed", deployment_id=deployment_id)
            self._publish(deployment_id, None, "")

    def forget(self) -> None:
        """Close all."""
        self._shared.clear()
        self._own.clear()

    def _fail_alone(self, deployment_id: int, account_id: int, cause: str, *, was_trial: bool) -> None:
        """Count a failure against the account's own breaker; one that failed the trial of all waits for the others."""
        own = self._own.setdefault((deployment_id, account_id), _Circuit())
        own.failures[account_id] += 1
        own.cause = cause
        if own.has_trial or (not own.is_open and (was_trial or own.failures[account_id] >= FAILURES)):
            own.trip(self._clock())
            log.warning("breaker_opened", deployment_id=deployment_id, account_id=account_id, seconds=own.cool_down)

    def _circuits(self, deployment_id: int, account_id: int) -> list[_Circuit]:
        found = (self._shared.get(deployment_id), self._own.get((deployment_id, account_id)))
        return [circuit for circuit in found if circuit is not None]

    def _is_cool(self, circuit: _Circuit) -> bool:
        return self._clock() - circuit.opened_at >= circuit.cool_down

    def _reason(self, deployment_id: int) -> Reason | None:
        circuit = self._shared.get(deployment_id)
        return self._reason_of(circuit) if circuit is not None and circuit.is_open else None

    def _reason_of(self, circuit: _Circuit) -> Reason:
        since = datetime.now(UTC) - timedelta(seconds=self._clock() - circuit.open_since)
        return Reason(since, circuit.cause)


def _fails(circuit: _Circuit, account_id: int, *, was_trial: bool) -> bool:
    """Count a failure in a circuit, and say whether it opens now, or again.

    Of an open breaker only its trials count: other calls were on their way when it opened.
    """
    if circuit.is_open and not was_trial:
        return False
    circuit.failures[account_id] += 1
    if circuit.is_open:
        return len(circuit.failures) > 1
    return sum(min(each, OF_ONE_ACCOUNT) for each in circuit.failures.values()) >= FAILURES


breakers = Breakers(publish=publish)
