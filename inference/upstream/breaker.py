"""Which deployments fail, written down for whoever looks from another process: the admin, and `manage.py watch`.

In the database, which all processes of every way to run share. A notice that can't be written is logged and done
without: it must not cost the call whose failure opened the breaker. The process that wrote it renews it while the
deployment goes on failing, and takes it back when it answers; that of a process that has ended counts for
STILL_FAILING.

A circuit breaker for each deployment: one that is reached, and fails, is left alone for a while.

closed     calls pass; FAILURES in a row open it
open       no call passes for a while: COOL_DOWN at first, twice as long after each failed trial, LONGEST at most
half open  one call passes as a trial: success closes the breaker, failure opens it again; where no call comes, the
           provider is asked for its list of models instead (inference.upstream.breaker)

Nobody closes a deployment to all others by what he asks of it. A failure (5xx, a broken answer, a timeout) may be the
doing of the request: of those a single account's count up to OF_ONE_ACCOUNT, and a trial that fails proves nothing
until another account's has failed as well. What an account's own calls meet opens a breaker for that account alone, so
that its callers don't wait for it either. A connection that can't be made is nobody's doing: see addresses.

The state is a process's own: a process learns of a failing deployment by its own calls, which is FAILURES of them.
What opens or closes for all is published in inference.upstream.breaker, for others who look from outside.

Deployments that failed and that nobody calls any more: their provider is asked for its list of models instead.

That spends no token. Each process asks for what it has open itself, once a minute at most after a while, until the
list comes, a call does, or the deployment is not served any more. An answer of any kind counts that a call's would.

Addresses that can't be reached: put aside for everybody at the first connection that fails, until one succeeds.

No request is the cause of a connection that can't be made, and whoever waits for one loses seconds: so one is enough,
and all deployments at that address are passed by, in the same call already. No call tries it again either: a probe does
that beside them, one at a time, after FIRST_PAUSE, and twice as long after each that failed, LONGEST_PAUSE at most. So
a provider that is down costs a caller one connect timeout, once.

The first connection that is made lets calls pass again. Where nobody has called meanwhile, the provider has to answer
as well: it is asked for its list of models, and until that comes the deployments there count as on trial. The probes
end when no deployment there is served any more.

An answer that arrives all the same, over a connection that was there before, takes the address back at once. The state
is a process's own, since one node may reach what another can't; notices tell others about it.
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

from core.background import WorkThread
from core.database import PROMPT_SECONDS, database_outage, impatient, release_connections
from core.errors import DependencyUnavailable
from core.telemetry.metrics import observe_breaker
from inference.catalog import Route, catalog
from inference.models import BreakerNotice
from inference.upstream.client import client

#: For how long a deployment counts as failing that nobody has found failing since: longer than any trial takes.
STILL_FAILING = timedelta(seconds=900)

#: Tells others of a deployment: see publish.
Publish = Callable[[int, float | None, str], None]

log = structlog.get_logger(__name__)


def publish(deployment_id: int, seconds: float | None, cause: str = "") -> None:
    """Tell others that a deployment fails, why, and for how many seconds no call goes there (0: the next is a trial).

    None: it answers again.
    """
    if database_outage.is_on:
        return
    try:
        with impatient(PROMPT_SECONDS):
            if seconds is None:
                BreakerNotice.objects.filter(pk=deployment_id).delete()
            else:
                _write(deployment_id, seconds, cause)
    except DatabaseError as error:
        log.warning("breaker_not_published", deployment_id=deployment_id, cause=type(error).__name__)
    finally:
        release_connections()


def _write(deployment_id: int, seconds: float, cause: str) -> None:
    """Renew a notice, or begin one."""
    now = timezone.now()
    told = {"open_until": now + timedelta(seconds=seconds), "seen_at": now, "cause": cause[:100]}
    # Another process may keep its calls away for longer.
    renewed = {**told, "open_until": Greatest(F("open_until"), Value(told["open_until"]))}
    if not failing().filter(pk=deployment_id).update(**renewed):
        BreakerNotice.objects.bulk_create(
            [BreakerNotice(deployment_id=deployment_id, since=now, **told)],
            update_conflicts=True,
            unique_fields=["deployment_id"],
            update_fields=["since", *told],
        )


def failing() -> QuerySet[BreakerNotice]:
    """Select the deployments that fail: no call goes there, or the next is a trial, or one is on its way."""
    now = timezone.now()
    return BreakerNotice.objects.filter(Q(seen_at__gt=now - STILL_FAILING) | Q(open_until__gt=now))


FAILURES = 5
OF_ONE_ACCOUNT = 3
COOL_DOWN = 5.0  # seconds
LONGEST_COOL_DOWN = 60.0


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

#: Seconds between two looks whether a deployment waits for a call that does not come.
LOOK_SECONDS = 2.0
#: The longest that a list of models may take.
LISTING_SECONDS = 10.0


def listing_trouble(route: Route) -> str | None:
    """Ask for a provider's list of models; name what shows that calls would fail as well, or None."""
    failure = client.list_models(route, seconds=min(LISTING_SECONDS, settings.UPSTREAM_TIMEOUT))
    return failure.cause if failure is not None and failure.verdict.is_down else None


def served_routes() -> dict[int, Route]:
    """List the deployments that calls may go to, by id; raises DependencyUnavailable as the catalog does."""
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


probes = WorkThread(
    _probe_unasked,
    has_work=breakers.has_open,
    seconds=lambda: LOOK_SECONDS,
    name="deployment-probe",
    event="deployments_not_probed",
)


FIRST_PAUSE = 1.0  # seconds
LONGEST_PAUSE = 60.0

#: Host and port, and whether connections there are held to the addresses that a provider may have.
Address = tuple[str, int, bool]


def address_of(route: Route) -> Address:
    """Return where the connections for a deployment go."""
    parts = urlsplit(route.base_url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), route.is_guarded


@dataclass(slots=True)
class _Aside:
    """An address that is put aside, and the deployments there that calls have asked for, by id with their names.

    `lets_pass`: a connection was made since, but the list of models did not come.
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
    """The addresses that a process has put aside.

    `reaches` tries to connect, within so many seconds; `listing` asks for the list of models and names the trouble with
    it; `publish` tells others of a deployment, as notices do; `served` lists the deployments that calls may go to.
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
        """Say whether calls have to pass a deployment by, since its address can't be reached."""
        aside = self._aside.get(address_of(route)) if self._aside else None
        if aside is None:
            return False
        aside.is_wanted = True
        aside.deployments[route.deployment_id] = route.name
        return not aside.lets_pass

    def reason(self, route: Route) -> Reason | None:
        """Tell why no call goes to a route's address; None if calls do."""
        aside = self._aside.get(address_of(route))
        return self._reason_of(aside) if aside is not None and not aside.lets_pass else None

    def failed(self, route: Route, cause: str = "") -> None:
        """Note that no connection could be made, and why, and put the address aside."""
        address = address_of(route)
        with self._lock:
            aside = self._aside.get(address)
            if aside is not None:  # this call was on its way when another put it aside, or was let pass
                aside.lets_pass = False
                return
            aside = self._aside[address] = _Aside(route, self._clock(), cause, {route.deployment_id: route.name})
        log.warning("address_aside", address=address[0], port=address[1])
        threading.Thread(target=self._probe, args=[address, aside], name="address-probe", daemon=True).start()

    def answered(self, route: Route) -> None:
        """Note that an answer came from there."""
        if self._aside:
            address = address_of(route)
            aside = self._aside.get(address)
            if aside is not None:
                self._take_back(address, aside)

    def snapshot(self) -> dict[int, BreakerReading]:
        """Tell how things stand with the deployments whose addresses are aside: as with open breakers."""
        return {
            deployment: BreakerReading(
                BreakerState.HALF_OPEN if aside.lets_pass else BreakerState.OPEN, self._reason_of(aside), 0
            )
            for aside in list(self._aside.values())
            for deployment in tuple(aside.deployments)
        }

    def forget(self) -> None:
        """Take all back."""
        for address, aside in list(self._aside.items()):
            self._take_back(address, aside)

    def _probe(self, address: Address, aside: _Aside) -> None:
        """Try again until the address is well, or serves nothing any more; and tell others what comes of it."""
        try:
            self._try_again(address, aside)
        except Exception as error:
            log.exception("address_not_probed", cause=type(error).__name__)
            self._take_back(address, aside)  # nobody may be left aside by a probe that has ended
            return
        self._take_back(address, aside)
        log.info("address_back", address=address[0], port=address[1])
        self._tell(aside, None)

    def _try_again(self, address: Address, aside: _Aside) -> None:
        """Try one time after another, until it is well or no deployment there is served."""
        pause = FIRST_PAUSE
        while not aside.over.wait(pause):
            if self._is_well(aside) or not self._is_served(address):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            self._tell(aside, 0 if aside.lets_pass else pause + settings.UPSTREAM_CONNECT_TIMEOUT)

    def _is_well(self, aside: _Aside) -> bool:
        """Say whether a connection can be made, and, where no call has come since the last look, the models listed."""
        was_wanted, aside.is_wanted = aside.is_wanted, False
        is_reached = self._reaches(aside.route, settings.UPSTREAM_CONNECT_TIMEOUT)
        trouble = None if was_wanted or not is_reached else self._listing(aside.route)
        aside.lets_pass = is_reached
        aside.cause = trouble or aside.cause
        return is_reached and trouble is None

    def _is_served(self, address: Address) -> bool:
        try:
            return any(address_of(each) == address for each in self._served().values())
        except DependencyUnavailable:  # nobody knows while the database is away
            return True

    def _reason_of(self, aside: _Aside) -> Reason:
        return Reason(datetime.now(UTC) - timedelta(seconds=self._clock() - aside.since), aside.cause)

    def _take_back(self, address: Address, aside: _Aside) -> None:
        """Let calls pass again."""
        with self._lock:
            if self._aside.get(address) is not aside:
                return
            del self._aside[address]
        aside.over.set()
        for deployment, name in tuple(aside.deployments.items()):
            observe_breaker(name, breakers.state(deployment))

    def _tell(self, aside: _Aside, seconds: float | None) -> None:
        """Tell others once a probe has failed as well: a single connection may have been a moment's trouble."""
        if seconds is None and not aside.is_told:
            return
        aside.is_told = True
        for deployment in tuple(aside.deployments):
            if seconds is not None or breakers.state(deployment) is BreakerState.CLOSED:
                self._publish(deployment, seconds, aside.cause)


addresses = Addresses(publish=publish)
