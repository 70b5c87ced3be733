"""Addresses that can't be reached: put aside for everybody at the first connection that fails, until one succeeds.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import structlog
from django.conf import settings

from accounts.exceptions import DependencyUnavailable
from inference.catalog import Route
from inference.upstream.breaker import BreakerReading, BreakerState, Reason, breakers
from inference.upstream.client import client
from inference.upstream.notices import Publish, publish
from inference.upstream.probes import listing_trouble, served_routes
from monitoring.metrics import observe_breaker

FIRST_PAUSE = 1.0  # seconds
LONGEST_PAUSE = 60.0

#: Host and port, and whether connections there are held to the addresses that a provider may have.
Address = tuple[str, int, bool]

log = structlog.get_logger(__name__)


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
