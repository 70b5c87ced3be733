"""Circuit breakers: which deployments and addresses of providers get no calls for now.

Deployments. A deployment that is reached and fails is left alone for a while:

closed     calls pass; FAILURES_TO_OPEN in a row open the breaker
open       no call passes for COOL_DOWN seconds, twice as long after each failed trial, at most LONGEST_PAUSE
half open  one call passes as a trial: success closes the breaker, failure opens it again

No account can close a deployment to others by its requests. The request may be the cause of a failure (5xx, a broken
answer, a timeout), so the failures of one account count up to OF_ONE_ACCOUNT, and a failed trial counts only once a
trial of another account has failed too. An account's own failures open a breaker for that account alone.

Addresses. A request can't be the cause of a failed connection, and waiting for one costs seconds. So the first failed
connection ejects the address: all deployments there are skipped, even by the same call. No call tries the address
again; a probe connects after FIRST_PAUSE seconds, then after twice the pause each time, at most LONGEST_PAUSE. A
provider that is down thus costs callers one connect timeout, once. Calls pass again after the first successful
connection; until the provider is well, its deployments count as half open. An answer over an older connection takes
the address back at once.

Probes. Each open breaker has a thread, which asks the provider for its list of models, at no cost, if no call has come
since the last probe. That goes on until the list or a call succeeds or nothing there is served. Any answer counts that
would count for a call. A list closes a deployment's breaker only if an earlier one has failed, or no call has failed
for STILL_FAILING: otherwise it proves nothing about calls.

Each process decides by its own calls, since one node may reach a provider that another can't. Notices tell the admin
and `manage.py worker` what each process has open: a hash in the state store with a field for each deployment and
process. A notice that can't be written is logged and skipped. The process renews its notice after each probe, and
removes it when the deployment answers. The notice of a process that has ended counts for STILL_FAILING.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from redis.exceptions import RedisError

from core.database import release_connections
from core.errors import DependencyUnavailable
from core.redis.client import state_store
from core.redis.wire import Script, script
from core.telemetry.metrics import observe_breaker
from inference.catalog import Route, catalog
from inference.upstream.client import upstream
from inference.upstream.errors import Effect

log = structlog.get_logger(__name__)

#: How long a deployment counts as failing after its last failure: longer than any trial takes.
STILL_FAILING = timedelta(seconds=900)
FAILURES_TO_OPEN = 5
OF_ONE_ACCOUNT = 3
COOL_DOWN, FIRST_PAUSE, LONGEST_PAUSE = 5.0, 1.0, 60.0  # seconds
#: How long unread notices are kept.
KEPT_SECONDS = 86_400
#: Most seconds for a provider's list of models.
LISTING_SECONDS = 10.0


class BreakerState(StrEnum):
    """The state of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Notice:
    """What a process has published of a deployment: since when it fails, until when it gets no calls, and why."""

    field: str
    since: datetime
    open_until: datetime
    seen_at: datetime
    cause: str

    @property
    def deployment_id(self) -> int:
        """The id of the deployment."""
        return int(self.field.partition(":")[0])

    @property
    def is_open(self) -> bool:
        """Whether it gets no calls now; otherwise the next call is a trial."""
        return self.open_until > datetime.now(UTC)


_KEY = "aiapi:{breakers}"
_WRITE = script(b"redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) return redis.call('EXPIRE', KEYS[1], ARGV[3])")
_REMOVE = script(b"return redis.call('HDEL', KEYS[1], ARGV[1])")
_READ = script(b"return redis.call('HGETALL', KEYS[1])")


def _ask(command: Script, *arguments: str | int) -> list[bytes]:
    answer: list[bytes] = state_store().call(command, _KEY, arguments)
    return answer


def publish(
    deployment_id: int, seconds: float | None, cause: str = "", *, since: datetime | None = None, field: str = ""
) -> None:
    """Publish that a deployment fails and gets no calls for `seconds` (0: the next call is a trial).

    None: the deployment answers again. `field` names a notice of another process, by default it is this one's.
    """
    field, now = field or f"{deployment_id}:{socket.gethostname()}:{os.getpid()}", datetime.now(UTC)
    try:
        if seconds is None:
            _ask(_REMOVE, field)
            return
        times = {"since": since or now, "open_until": now + timedelta(seconds=seconds), "seen_at": now}
        notice = {name: at.timestamp() for name, at in times.items()} | {"cause": cause[:100]}
        _ask(_WRITE, field, json.dumps(notice), int(seconds + KEPT_SECONDS))
    except RedisError as error:
        log.warning("breaker_not_published", deployment_id=deployment_id, cause=type(error).__name__)


def failing() -> list[Notice]:
    """Return the notices of deployments that fail, open or on trial; remove others. Raises RedisError."""
    names_and_values = iter(_ask(_READ))
    found = []
    for name, value in zip(names_and_values, names_and_values, strict=True):
        fields = json.loads(value)
        times = {at: datetime.fromtimestamp(fields[at], UTC) for at in ("since", "open_until", "seen_at")}
        notice = Notice(field=name.decode(), cause=fields["cause"], **times)
        if notice.is_open or notice.seen_at > datetime.now(UTC) - STILL_FAILING:
            found.append(notice)
        else:
            publish(notice.deployment_id, None, field=notice.field)
    return sorted(found, key=lambda notice: notice.field)


@dataclass(frozen=True, slots=True)
class BreakerReading:
    """The state of a deployment's breaker for all accounts, and since when and why it is not closed.

    No call passes for so many `seconds`. `accounts` counts the accounts whose own breaker is open.
    """

    state: BreakerState = BreakerState.CLOSED
    since: datetime | None = None
    cause: str = ""
    seconds: float = 0.0
    accounts: int = 0


#: Host, port, and whether connections are restricted to the addresses that a provider may have.
Address = tuple[str, int, bool]


def address_of(route: Route) -> Address:
    """Return the address of a deployment's connections."""
    parts = urlsplit(route.base_url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), route.is_guarded


@dataclass(slots=True)
class _Circuit:
    """One breaker: of an address, of a deployment, or of one account at a deployment.

    `deployments` are the names by id of the deployments that it concerns. `failures` are those in a row, by account;
    once it is open, those of its trials. Times are in seconds of the breakers' clock.
    """

    route: Route
    cause: str = ""
    is_address: bool = False
    deployments: dict[int, str] = field(default_factory=dict)
    failures: Counter[int] = field(default_factory=Counter)
    failed_at: float = 0.0
    open_since: float = 0.0
    opened_at: float = 0.0
    #: After so many seconds a trial may pass; 0 while it is closed.
    cool_down: float = 0.0
    has_trial: bool = False
    #: Whether a connection to the address has succeeded since: calls may pass.
    is_reached: bool = False
    #: Whether a call has come since the last probe, and whether a probe has failed.
    is_wanted: bool = False
    has_failed_probe: bool = False
    #: Whether only a call, not a probe, can close it.
    needs_call: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_open(self) -> bool:
        """Whether it is open or half open."""
        return bool(self.cool_down)

    def is_half_open(self, now: float) -> bool:
        """Return whether it lets calls to an address, or a trial, pass."""
        return self.is_reached if self.is_address else now - self.opened_at >= self.cool_down

    def trip(self, now: float, seconds: float | None = None) -> None:
        """Open for so many seconds, by default twice as long as before."""
        self.open_since = self.open_since if self.is_open else now
        self.cool_down = seconds or min(self.cool_down * 2 or COOL_DOWN, LONGEST_PAUSE)
        self.opened_at, self.has_trial = now, False
        self.failures = Counter()

    def fails(self, account_id: int, *, was_trial: bool) -> bool:
        """Count a failure of a deployment, and return whether its breaker opens now, or again.

        While it is open, only trials count: other calls began before it opened.
        """
        if self.is_open and not was_trial:
            return False
        self.failures[account_id] += 1
        if self.is_open:
            return len(self.failures) > 1
        return sum(min(each, OF_ONE_ACCOUNT) for each in self.failures.values()) >= FAILURES_TO_OPEN


def listing_trouble(route: Route) -> str | None:
    """Ask a provider for its models, and return the cause if calls would fail too; None otherwise."""
    failure = upstream.list_models(route, seconds=min(LISTING_SECONDS, settings.UPSTREAM_TIMEOUT))
    return failure.cause if failure is not None and failure.verdict.breaker in (Effect.COUNT, Effect.EJECT) else None


def served_routes() -> list[Route]:
    """Return the routes that calls may take; raises DependencyUnavailable like the catalog."""
    try:
        return [route for model in catalog.models().values() for route in model.routes]
    finally:
        release_connections()


class Breakers:
    """The breakers of a process: of addresses, of deployments, and of accounts with failures at a deployment.

    `reaches` tries to connect within a number of seconds, `listing` asks for the list of models and returns the cause
    of a failure, `served` returns the routes that calls may take; `publish` publishes the state of a deployment.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        publish: Callable[..., None] = publish,
        reaches: Callable[[Route, float], bool] = upstream.reaches,
        listing: Callable[[Route], str | None] = listing_trouble,
        served: Callable[[], list[Route]] = served_routes,
    ) -> None:
        self._clock = clock
        self._publish = publish
        self._reaches = reaches
        self._listing = listing
        self._served = served
        self._shared: dict[int | Address, _Circuit] = {}
        self._own: dict[tuple[int, int], _Circuit] = {}
        self._lock = threading.RLock()

    def admits(self, route: Route, account_id: int) -> bool:
        """Return whether a call may go to a deployment now; after the cool-down of an open breaker, one trial may."""
        if not self._shared and not self._own:
            return True
        with self._lock:
            opened = self._opened(route, account_id)
            for circuit in opened:
                circuit.is_wanted = True
                circuit.deployments[route.deployment_id] = route.name
            if any(circuit.has_trial or not circuit.is_half_open(self._clock()) for circuit in opened):
                return False
            for circuit in opened:
                circuit.has_trial = not circuit.is_address
            return True

    def answered(self, route: Route, account_id: int) -> None:
        """Note that a call was answered, with whatever result: the provider works."""
        if self._shared or self._own:
            self._own.pop((route.deployment_id, account_id), None)
            self._close(route.deployment_id)
            self._close(address_of(route))

    def failed(self, route: Route, account_id: int, cause: str = "") -> None:
        """Note that a call failed at the provider, and why."""
        deployment = route.deployment_id
        with self._lock:
            shared = self._shared.setdefault(deployment, _Circuit(route, deployments={deployment: route.name}))
            shared.cause, shared.failed_at, shared.needs_call = cause, self._clock(), False
            was_trial, shared.has_trial = shared.has_trial, False
            own = self._own.setdefault((deployment, account_id), _Circuit(route, cause))
            own.failures[account_id] += 1
            # a failed trial of the shared breaker opens the account's own at once: another account makes the next one
            if own.has_trial or (not own.is_open and (was_trial or own.failures[account_id] >= FAILURES_TO_OPEN)):
                own.trip(self._clock())
                log.warning("breaker_opened", deployment_id=deployment, account_id=account_id, seconds=own.cool_down)
            opens = shared.fails(account_id, was_trial=was_trial)
            if opens:
                self._open(deployment, shared)
        if opens or was_trial:
            self._publish_state(shared)

    def pause(self, route: Route, seconds: float, cause: str) -> None:
        """Open the breaker for all accounts for `seconds`, after a failure that would meet every other call too.

        Afterwards it stays half open until a call is answered: a list of models proves nothing.
        """
        deployment = route.deployment_id
        with self._lock:
            circuit = self._shared.setdefault(deployment, _Circuit(route, deployments={deployment: route.name}))
            circuit.cause, circuit.failed_at, circuit.needs_call = cause, self._clock(), True
            self._open(deployment, circuit, seconds)
        self._close(address_of(route))
        self._publish_state(circuit)

    def eject(self, route: Route, cause: str = "") -> None:
        """Note that a connection failed, and why, and eject the address."""
        address = address_of(route)
        with self._lock:
            known = self._shared.get(address)
            if known is not None:  # ejected while this call was on its way, or the call was let pass
                known.is_reached = False
                return
            circuit = _Circuit(route, cause, is_address=True, deployments={route.deployment_id: route.name})
            self._shared[address] = circuit
            self._open(address, circuit, FIRST_PAUSE)

    def gave_up(self, route: Route, account_id: int) -> None:
        """Note that a trial ended without a result, for example by a disconnect: another call may be the trial."""
        for circuit in self._opened(route, account_id):
            circuit.has_trial = False

    def state(self, route: Route) -> BreakerState:
        """Return the state of a deployment's breaker for all accounts; open if its address is ejected."""
        if not self._shared:
            return BreakerState.CLOSED
        return self._reading(route.deployment_id, route).state

    def why_not(self, route: Route, account_id: int) -> str:
        """Return a sentence on why and since when a deployment, or its address, gets no calls of an account."""
        refusing = self._refusing(route, account_id)
        if not refusing:  # it has recovered since
            return f"deployment {route.name} was not asked"
        what = f"provider {route.provider}" if refusing[0].is_address else f"deployment {route.name}"
        since = self._since(refusing[0])
        form = "%H:%M" if since.date() == datetime.now(UTC).date() else "%Y-%m-%d %H:%M"
        return f"{what} is not asked since {since:{form}} UTC: {refusing[0].cause}"

    def seconds_left(self, route: Route, account_id: int) -> float | None:
        """Return the seconds until an account's calls may pass (COOL_DOWN if unknown); None if nothing is open."""
        refusing = self._refusing(route, account_id)
        if not refusing:
            return None
        left = max(each.opened_at + each.cool_down for each in refusing) - self._clock()
        return COOL_DOWN if left <= 0 or refusing[0].is_address else left

    def snapshot(self) -> dict[int, BreakerReading]:
        """Return a reading for each deployment with recent failures; any other breaker is closed."""
        with self._lock:
            own = [(key, each) for key, each in self._own.items() if each.is_open]
            alone = Counter(deployment for (deployment, _), each in own if not each.is_half_open(self._clock()))
            routes = {pk: each.route for each in self._shared.values() for pk in each.deployments}
            routes |= {deployment: each.route for (deployment, _), each in own}
            return {pk: replace(self._reading(pk, route), accounts=alone[pk]) for pk, route in routes.items()}

    def forget(self) -> None:
        """Close all."""
        with self._lock:
            shared = list(self._shared.values())
            self._shared.clear()
            self._own.clear()
        for circuit in shared:
            circuit.over.set()
            self._observe(circuit)

    def _opened(self, route: Route, account_id: int) -> list[_Circuit]:
        """Return the open breakers that concern a call, that of the address first."""
        deployment = route.deployment_id
        found = (
            self._shared.get(address_of(route)),
            self._shared.get(deployment),
            self._own.get((deployment, account_id)),
        )
        return [circuit for circuit in found if circuit is not None and circuit.is_open]

    def _refusing(self, route: Route, account_id: int) -> list[_Circuit]:
        return [each for each in self._opened(route, account_id) if not each.is_reached]

    def _reading(self, deployment_id: int, route: Route, *, is_published: bool = False) -> BreakerReading:
        """Return the state of a deployment: by its own breaker or that of its address, whichever is worse.

        `is_published`: without an address that no probe has tried yet, since one failure may be transient.
        """
        found = (self._shared.get(address_of(route)), self._shared.get(deployment_id))
        opened = [circuit for circuit in found if circuit is not None and circuit.is_open]
        if is_published:
            opened = [circuit for circuit in opened if circuit.has_failed_probe or not circuit.is_address]
        if not opened:
            return BreakerReading()
        now = self._clock()
        worst = min(opened, key=lambda circuit: circuit.is_half_open(now))
        if worst.is_half_open(now):
            return BreakerReading(BreakerState.HALF_OPEN, self._since(worst), worst.cause)
        left = max(0.0, worst.opened_at + worst.cool_down - now)
        return BreakerReading(BreakerState.OPEN, self._since(worst), worst.cause, seconds=left)

    def _since(self, circuit: _Circuit) -> datetime:
        return datetime.now(UTC) - timedelta(seconds=self._clock() - circuit.open_since)

    def _open(self, key: int | Address, circuit: _Circuit, seconds: float | None = None) -> None:
        """Open a breaker, or open it again; the first time start its thread."""
        is_new = not circuit.is_open
        circuit.trip(self._clock(), seconds)
        if isinstance(key, int):
            log.warning("breaker_opened", deployment_id=key, seconds=circuit.cool_down)
        else:
            log.warning("address_aside", address=key[0], port=key[1])
        if is_new:
            threading.Thread(target=self._watch, args=[key, circuit], name="breaker-probe", daemon=True).start()

    def _close(self, key: int | Address) -> None:
        """Close a breaker, and publish that if it was open."""
        circuit = self._shared.pop(key, None)
        if circuit is None or not circuit.is_open:
            return
        circuit.over.set()
        if isinstance(key, int):
            log.info("breaker_closed", deployment_id=key)
        else:
            log.info("address_back", address=key[0], port=key[1])
        self._publish_state(circuit)

    def _publish_state(self, circuit: _Circuit) -> None:
        """Publish the state of a breaker's deployments; that of an address once a probe has failed too."""
        self._observe(circuit)
        if circuit.is_address and not circuit.has_failed_probe:
            return
        for deployment in tuple(circuit.deployments):
            reading = self._reading(deployment, circuit.route, is_published=True)
            if reading.state is BreakerState.CLOSED:
                self._publish(deployment, None)
            else:
                self._publish(deployment, reading.seconds, reading.cause, since=reading.since)

    def _observe(self, circuit: _Circuit) -> None:
        for deployment, name in tuple(circuit.deployments.items()):
            observe_breaker(name, self._reading(deployment, circuit.route).state)

    def _watch(self, key: int | Address, circuit: _Circuit) -> None:
        """Probe until the breaker is closed, and publish its state after each probe."""
        pause = FIRST_PAUSE if circuit.is_address else COOL_DOWN
        while not circuit.over.wait(pause):
            try:
                is_well = self._is_well(circuit)
            except Exception as error:
                log.exception("breaker_not_probed", cause=type(error).__name__)
                is_well = circuit.is_address  # without its probe the address would stay ejected for ever
            if is_well and not circuit.over.is_set():
                self._close(key)
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            if circuit.is_address:
                circuit.opened_at, circuit.cool_down = self._clock(), pause + settings.UPSTREAM_CONNECT_TIMEOUT
            self._publish_state(circuit)

    def _is_well(self, circuit: _Circuit) -> bool:
        """Probe once; return whether the breaker is to be closed."""
        address, (deployment, *_) = address_of(circuit.route), circuit.deployments
        try:
            served = self._served()
        except DependencyUnavailable:  # unknown while the database is unavailable
            served = [circuit.route]
        if circuit.is_address:
            served = [route for route in served if address_of(route) == address]
        else:
            served = [route for route in served if route.deployment_id == deployment]
        if not served:
            return True
        was_wanted, circuit.is_wanted = circuit.is_wanted, False
        if circuit.is_address:
            circuit.is_reached = self._reaches(served[0], settings.UPSTREAM_CONNECT_TIMEOUT)
            trouble = None if was_wanted or not circuit.is_reached else self._listing(served[0])
            circuit.has_failed_probe |= trouble is not None or not circuit.is_reached
            circuit.cause = trouble or circuit.cause
            return circuit.is_reached and trouble is None
        if was_wanted or circuit.has_trial or circuit.needs_call or not circuit.is_half_open(self._clock()):
            return False
        trouble = self._listing(served[0])
        if trouble is None:
            return circuit.has_failed_probe or self._clock() - circuit.failed_at >= STILL_FAILING.total_seconds()
        circuit.cause, circuit.has_failed_probe = trouble, True
        return False


breakers = Breakers()
