"""Circuit breakers for deployments that fail, and ejection of addresses that can't be reached.

Breakers. A deployment that is reached and fails is left alone for a while:

closed     calls pass; FAILURES in a row open the breaker
open       no call passes for COOL_DOWN seconds, twice as long after each failed trial, at most LONGEST_COOL_DOWN
half open  one call passes as a trial: success closes the breaker, failure opens it again

No account can close a deployment to others by its requests. The request may be the cause of a failure (5xx, a broken
answer, a timeout), so the failures of one account count up to OF_ONE_ACCOUNT, and a failed trial counts only once a
trial of another account has failed too. An account's own failures open a breaker for that account alone.

If no call comes to a half-open breaker, its provider is asked for its list of models, which costs no token, at
intervals of up to LONGEST_COOL_DOWN. That goes on until the list or a call succeeds or the deployment is no longer
served. Any answer counts that would count for a call.

Addresses. A request can't be the cause of a failed connection, and waiting for one costs seconds. So the first failed
connection ejects the address: all deployments there are skipped, even by the same call. No call tries the address
again; a probe connects after FIRST_PAUSE seconds, then after twice the pause each time, at most LONGEST_PAUSE. A
provider that is down thus costs callers one connect timeout, once. Calls pass again after the first successful
connection. If no call has come meanwhile, the provider must also list its models; until then its deployments count as
on trial. Probes end when no deployment at the address is served. An answer over an older connection takes the address
back at once.

The state is local to a process, since one node may reach a provider that another can't. Each process learns from its
own calls.

Notices tell the admin and `manage.py worker` which deployments fail. They are in the database, which all processes
share in every way to run. A notice that can't be written is logged and skipped: it must not fail the call that opened
the breaker. The process renews its notice while the deployment fails, and deletes it when the deployment answers. The
notice of a process that has ended counts for STILL_FAILING.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Greatest
from django.utils import timezone

from core.background import PeriodicThread
from core.database import PROMPT_SECONDS, database_outage, query_timeout, release_connections
from core.errors import DependencyUnavailable
from core.telemetry.metrics import observe_breaker
from inference.catalog import Route, catalog
from inference.models import BreakerNotice
from inference.upstream.client import client
from inference.upstream.errors import Effect

#: How long a deployment counts as failing after its last failure: longer than any trial takes.
STILL_FAILING = timedelta(seconds=900)

#: A function that publishes the state of a deployment: see `publish`.
Publish = Callable[[int, float | None, str], None]

log = structlog.get_logger(__name__)


def publish(deployment_id: int, seconds: float | None, cause: str = "") -> None:
    """Publish that a deployment fails and gets no calls for `seconds` (0: the next call is a trial).

    None: the deployment answers again.
    """
    if database_outage.is_on:
        return
    try:
        with query_timeout(PROMPT_SECONDS):
            if seconds is None:
                BreakerNotice.objects.filter(pk=deployment_id).delete()
            else:
                _write(deployment_id, seconds, cause)
    except DatabaseError as error:
        log.warning("breaker_not_published", deployment_id=deployment_id, cause=type(error).__name__)
    finally:
        release_connections()


def _write(deployment_id: int, seconds: float, cause: str) -> None:
    """Renew a notice, or create one."""
    now = timezone.now()
    fields = {"open_until": now + timedelta(seconds=seconds), "seen_at": now, "cause": cause[:100]}
    # The breaker of another process may be open for longer.
    renewed = {**fields, "open_until": Greatest(F("open_until"), Value(fields["open_until"]))}
    if not failing().filter(pk=deployment_id).update(**renewed):
        BreakerNotice.objects.bulk_create(
            [BreakerNotice(deployment_id=deployment_id, since=now, **fields)],
            update_conflicts=True,
            unique_fields=["deployment_id"],
            update_fields=["since", *fields],
        )


def failing() -> QuerySet[BreakerNotice]:
    """Return the notices of deployments that fail: open, or on trial."""
    now = timezone.now()
    return BreakerNotice.objects.filter(Q(seen_at__gt=now - STILL_FAILING) | Q(open_until__gt=now))


FAILURES = 5
OF_ONE_ACCOUNT = 3
COOL_DOWN = 5.0  # seconds
LONGEST_COOL_DOWN = 60.0


class BreakerState(StrEnum):
    """The state of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a deployment or an address gets no calls: since when, and the cause of the latest failure."""

    since: datetime
    cause: str


@dataclass(frozen=True, slots=True)
class BreakerReading:
    """The state of a deployment's breaker for all accounts, why it is not closed, and for how many accounts it is open.

    `accounts` counts the accounts whose own breaker is open.
    """

    state: BreakerState
    reason: Reason | None
    accounts: int


@dataclass(slots=True)
class _Circuit:
    """The state of one breaker. `failures` are those in a row, by account; once open, those of its trials."""

    failures: Counter[int] = field(default_factory=Counter)
    cause: str = ""
    failed_at: float = 0.0
    open_since: float = 0.0
    opened_at: float = 0.0
    cool_down: float = 0.0
    has_trial: bool = False
    #: Whether a call has come since the last `unasked`, when the next probe may start, and the pause after it.
    is_wanted: bool = False
    probed_next_at: float = 0.0
    probe_pause: float = 0.0
    #: Whether a probe has failed too, so that a successful probe says something about calls.
    has_failed_probe: bool = False
    #: Whether only a call, not a probe, can close it.
    needs_call: bool = False

    @property
    def is_open(self) -> bool:
        """Return whether it is open or half open."""
        return bool(self.cool_down)

    def trip(self, now: float) -> None:
        """Open; after a failed trial, open again for twice as long."""
        self.open_since = self.open_since if self.is_open else now
        self.cool_down = min(self.cool_down * 2 or COOL_DOWN, LONGEST_COOL_DOWN)
        self.opened_at, self.has_trial = now, False
        self.failures = Counter()

    def rest(self, now: float) -> None:
        """Postpone the next probe, by twice as long each time."""
        self.probe_pause = min(self.probe_pause * 2 or COOL_DOWN, LONGEST_COOL_DOWN)
        self.probed_next_at = now + self.probe_pause


class Breakers:
    """The breakers of a process: one for each deployment, and one for each account with failures at it."""

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
        """Return the state of a deployment's breaker for all accounts."""
        circuit = self._shared.get(deployment_id)
        if circuit is None or not circuit.is_open:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._is_cool(circuit) else BreakerState.OPEN

    def snapshot(self) -> dict[int, BreakerReading]:
        """Return a reading for each deployment with recent failures; any other breaker is closed."""
        with self._lock:
            alone = Counter(
                each for (each, _), circuit in self._own.items() if circuit.is_open and not self._is_cool(circuit)
            )
            known = {*self._shared, *alone}
            return {each: BreakerReading(self.state(each), self._reason(each), alone[each]) for each in known}

    def reason(self, deployment_id: int, account_id: int) -> Reason | None:
        """Return why an account's calls don't go to a deployment; None if no breaker is open."""
        opened = [circuit for circuit in self._circuits(deployment_id, account_id) if circuit.is_open]
        return self._reason_of(opened[0]) if opened else None

    def admits(self, deployment_id: int, account_id: int) -> bool:
        """Return whether a call may go to a deployment now; after the cool-down of an open breaker, one trial may."""
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
        """Note that a call was answered, with whatever result: the provider works."""
        if not self._shared and not self._own:
            return
        with self._lock:
            self._own.pop((deployment_id, account_id), None)
        self.close(deployment_id)

    def failed(self, deployment_id: int, account_id: int, cause: str = "") -> None:
        """Note that a call failed at the provider, and why."""
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
        """Open the breaker for all accounts for `seconds`, after a failure that would meet every other call too.

        Afterwards it stays half open until a call is answered: a list of models proves nothing.
        """
        with self._lock:
            circuit, now = self._shared.setdefault(deployment_id, _Circuit()), self._clock()
            circuit.cause, circuit.failed_at, circuit.needs_call = cause, now, True
            circuit.trip(now)
            circuit.cool_down = seconds
        log.warning("breaker_opened", deployment_id=deployment_id, seconds=seconds)
        self._publish(deployment_id, seconds, cause)

    def seconds_left(self, deployment_id: int, account_id: int) -> float | None:
        """Return the seconds until an account's calls may pass (COOL_DOWN during a trial); None if nothing is open."""
        opened = [circuit for circuit in self._circuits(deployment_id, account_id) if circuit.is_open]
        if not opened:
            return None
        left = max(circuit.opened_at + circuit.cool_down for circuit in opened) - self._clock()
        return left if left > 0 else COOL_DOWN

    def gave_up(self, deployment_id: int, account_id: int) -> None:
        """Note that a trial ended without a result, for example by a disconnect: another call may be the trial."""
        for circuit in self._circuits(deployment_id, account_id):
            circuit.has_trial = False

    def has_open(self) -> bool:
        """Return whether any breaker is open for all accounts."""
        with self._lock:
            return any(circuit.is_open for circuit in self._shared.values())

    def unasked(self) -> list[int]:
        """Return the deployments to probe: half open, without a call since the last look, and past their pause."""
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
        """Note the result of a probe of an open deployment: the cause of its failure, or None for an answer.

        An answer closes the breaker if an earlier probe has failed. Otherwise it proves nothing about calls: the
        breaker stays half open until a call comes, or until none has failed for STILL_FAILING.
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
        """Close a breaker, and publish that if it was open."""
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
        """Count a failure against the account's own breaker; a failed trial of the shared breaker opens it at once."""
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
    """Count a failure, and return whether the breaker opens now, or again.

    While it is open, only trials count: other calls began before it opened.
    """
    if circuit.is_open and not was_trial:
        return False
    circuit.failures[account_id] += 1
    if circuit.is_open:
        return len(circuit.failures) > 1
    return sum(min(each, OF_ONE_ACCOUNT) for each in circuit.failures.values()) >= FAILURES


breakers = Breakers(publish=publish)

#: Seconds between two looks for deployments to probe.
LOOK_SECONDS = 2.0
#: Most seconds for a provider's list of models.
LISTING_SECONDS = 10.0


def listing_trouble(route: Route) -> str | None:
    """Ask a provider for its models, and return the cause if calls would fail too; None otherwise."""
    failure = client.list_models(route, seconds=min(LISTING_SECONDS, settings.UPSTREAM_TIMEOUT))
    return failure.cause if failure is not None and failure.verdict.breaker in (Effect.COUNT, Effect.EJECT) else None


def served_routes() -> dict[int, Route]:
    """Return the routes that calls may take, by the deployment's id; raises DependencyUnavailable like the catalog."""
    try:
        return {route.deployment_id: route for model in catalog.models().values() for route in model.routes}
    finally:
        release_connections()


def _probe_unasked() -> None:
    unasked = breakers.unasked()
    served = served_routes() if unasked else {}
    for deployment_id in unasked:
        route = served.get(deployment_id)
        if route is None:
            breakers.close(deployment_id)
            continue
        breakers.probed(deployment_id, listing_trouble(route))
        observe_breaker(route.name, breakers.state(deployment_id))


probes = PeriodicThread(
    _probe_unasked,
    has_work=breakers.has_open,
    seconds=lambda: LOOK_SECONDS,
    name="deployment-probe",
    event="deployments_not_probed",
)


FIRST_PAUSE = 1.0  # seconds
LONGEST_PAUSE = 60.0

#: Host, port, and whether connections are restricted to the addresses that a provider may have.
Address = tuple[str, int, bool]


def address_of(route: Route) -> Address:
    """Return the address of a deployment's connections."""
    parts = urlsplit(route.base_url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), route.is_guarded


@dataclass(slots=True)
class _Aside:
    """An ejected address, and the names by id of the deployments there that calls have asked for.

    `lets_pass`: a connection has succeeded since, but the list of models has not.
    """

    route: Route
    since: float
    cause: str = ""
    deployments: dict[int, str] = field(default_factory=dict)
    is_told: bool = False
    is_wanted: bool = False
    lets_pass: bool = False
    over: threading.Event = field(default_factory=threading.Event)


class Addresses:
    """The addresses that a process has ejected.

    `reaches` tries to connect within a number of seconds; `listing` asks for the list of models and returns the cause
    of a failure; `publish` publishes the state of a deployment; `served` returns the routes that calls may take.
    """

    def __init__(
        self,
        reaches: Callable[[Route, float], bool] = client.reaches,
        clock: Callable[[], float] = time.monotonic,
        publish: Publish | None = None,
        listing: Callable[[Route], str | None] = listing_trouble,
        served: Callable[[], Mapping[int, Route]] = served_routes,
    ) -> None:
        self._reaches = reaches
        self._listing = listing
        self._served = served
        self._clock = clock
        self._publish = publish or (lambda *_: None)
        self._aside: dict[Address, _Aside] = {}
        self._lock = threading.Lock()

    def is_aside(self, route: Route) -> bool:
        """Return whether calls must skip a deployment because its address is ejected."""
        aside = self._aside.get(address_of(route)) if self._aside else None
        if aside is None:
            return False
        aside.is_wanted = True
        aside.deployments[route.deployment_id] = route.name
        return not aside.lets_pass

    def reason(self, route: Route) -> Reason | None:
        """Return why a route's address gets no calls; None if it does."""
        aside = self._aside.get(address_of(route))
        return self._reason_of(aside) if aside is not None and not aside.lets_pass else None

    def failed(self, route: Route, cause: str = "") -> None:
        """Note that a connection failed, and why, and eject the address."""
        address = address_of(route)
        with self._lock:
            aside = self._aside.get(address)
            if aside is not None:  # ejected while this call was on its way, or the call was let pass
                aside.lets_pass = False
                return
            aside = self._aside[address] = _Aside(route, self._clock(), cause, {route.deployment_id: route.name})
        log.warning("address_aside", address=address[0], port=address[1])
        threading.Thread(target=self._probe, args=[address, aside], name="address-probe", daemon=True).start()

    def answered(self, route: Route) -> None:
        """Note an answer from a route's address, which takes the address back."""
        if self._aside:
            address = address_of(route)
            aside = self._aside.get(address)
            if aside is not None:
                self._take_back(address, aside)

    def snapshot(self) -> dict[int, BreakerReading]:
        """Return a reading, as for breakers, for each deployment at an ejected address."""
        return {
            deployment: BreakerReading(
                BreakerState.HALF_OPEN if aside.lets_pass else BreakerState.OPEN, self._reason_of(aside), 0
            )
            for aside in list(self._aside.values())
            for deployment in tuple(aside.deployments)
        }

    def forget(self) -> None:
        """Take all addresses back."""
        for address, aside in list(self._aside.items()):
            self._take_back(address, aside)

    def _probe(self, address: Address, aside: _Aside) -> None:
        """Probe an address until it works or serves no deployment, and publish the result."""
        try:
            self._try_again(address, aside)
        except Exception as error:
            log.exception("address_not_probed", cause=type(error).__name__)
            self._take_back(address, aside)  # without its probe the address would stay ejected for ever
            return
        self._take_back(address, aside)
        log.info("address_back", address=address[0], port=address[1])
        self._tell(aside, None)

    def _try_again(self, address: Address, aside: _Aside) -> None:
        """Probe repeatedly until the address works or no deployment there is served."""
        pause = FIRST_PAUSE
        while not aside.over.wait(pause):
            if self._is_well(aside) or not self._is_served(address):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            self._tell(aside, 0 if aside.lets_pass else pause + settings.UPSTREAM_CONNECT_TIMEOUT)

    def _is_well(self, aside: _Aside) -> bool:
        """Return whether a connection succeeds and, if no call came since the last probe, the list of models too."""
        was_wanted, aside.is_wanted = aside.is_wanted, False
        is_reached = self._reaches(aside.route, settings.UPSTREAM_CONNECT_TIMEOUT)
        trouble = None if was_wanted or not is_reached else self._listing(aside.route)
        aside.lets_pass = is_reached
        aside.cause = trouble or aside.cause
        return is_reached and trouble is None

    def _is_served(self, address: Address) -> bool:
        try:
            return any(address_of(each) == address for each in self._served().values())
        except DependencyUnavailable:  # unknown while the database is unavailable
            return True

    def _reason_of(self, aside: _Aside) -> Reason:
        return Reason(datetime.now(UTC) - timedelta(seconds=self._clock() - aside.since), aside.cause)

    def _take_back(self, address: Address, aside: _Aside) -> None:
        """Take an address back, so that calls pass again."""
        with self._lock:
            if self._aside.get(address) is not aside:
                return
            del self._aside[address]
        aside.over.set()
        for deployment, name in tuple(aside.deployments.items()):
            observe_breaker(name, breakers.state(deployment))

    def _tell(self, aside: _Aside, seconds: float | None) -> None:
        """Publish the state once a probe has failed too: a single failed connection may be transient."""
        if seconds is None and not aside.is_told:
            return
        aside.is_told = True
        for deployment in tuple(aside.deployments):
            if seconds is not None or breakers.state(deployment) is BreakerState.CLOSED:
                self._publish(deployment, seconds, aside.cause)


addresses = Addresses(publish=publish)
