"""Addresses that can't be reached: put aside for everybody at the first connection that fails, until one succeeds.

No request is the cause of a connection that can't be made, and whoever waits for one loses seconds: so one is enough,
and all deployments at that address are passed by, in the same call already. No call tries it again either: a probe does
that beside them, one at a time, after FIRST_PAUSE, and twice as long after each that failed, LONGEST_PAUSE at most. So
a provider that is down costs a caller one connect timeout, once.

An answer that arrives all the same, over a connection that was there before, takes the address back at once. The state
is a process's own, since one node may reach what another can't; notices tell others about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import structlog
from django.conf import settings

from inference.catalog import Route
from inference.upstream.breaker import BreakerState, breakers
from inference.upstream.client import client
from inference.upstream.notices import publish
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
    """An address that is put aside, and the deployments there that calls have asked for, by id with their names."""

    route: Route
    since: float
    deployments: dict[int, str] = field(default_factory=dict)
    is_told: bool = False
    is_wanted: bool = False
    over: threading.Event = field(default_factory=threading.Event)


class Addresses:
    """The addresses that a process has put aside.

    `reaches` tries to connect, within so many seconds; `publish` tells others of a deployment, as notices do.
    """

    def __init__(
        self,
        reaches: Callable[[Route, float], bool] = client.reaches,
        clock: Callable[[], float] = time.monotonic,
        publish: Callable[[int, float], None] | None = None,
    ) -> None:
        self._reaches = reaches
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
        return True

    def failed(self, route: Route) -> None:
        """Note that no connection could be made, and put the address aside."""
        address = address_of(route)
        with self._lock:
            if address in self._aside:  # this call was on its way when another put it aside
                return
            aside = self._aside[address] = _Aside(route, self._clock(), {route.deployment_id: route.name})
        log.warning("address_aside", address=address[0], port=address[1])
        threading.Thread(target=self._probe, args=[address, aside], name="address-probe", daemon=True).start()

    def answered(self, route: Route) -> None:
        """Note that an answer came from there."""
        if self._aside:
            address = address_of(route)
            aside = self._aside.get(address)
            if aside is not None:
                self._take_back(address, aside)

    def snapshot(self) -> dict[int, datetime]:
        """Tell which deployments' addresses are aside, and since when."""
        now, moment = datetime.now(UTC), self._clock()
        held = list(self._aside.values())
        return {each: now - timedelta(seconds=moment - one.since) for one in held for each in tuple(one.deployments)}

    def forget(self) -> None:
        """Take all back."""
        for address, aside in list(self._aside.items()):
            self._take_back(address, aside)

    def _probe(self, address: Address, aside: _Aside) -> None:
        """Try to connect until that works, or nobody has asked for long; and tell others what comes of it."""
        try:
            is_back = self._try_again(aside)
        except Exception as error:
            log.exception("address_not_probed", cause=type(error).__name__)
            is_back = False
        finally:
            self._take_back(address, aside)  # nobody may be left aside by a probe that has ended
        if is_back:
            log.info("address_back", address=address[0], port=address[1])
            self._tell(aside, 0)

    def _try_again(self, aside: _Aside) -> bool:
        """Try to connect, one time after another; False if nobody has asked for long."""
        pause = FIRST_PAUSE
        while not aside.over.wait(pause):
            if self._reaches(aside.route, settings.UPSTREAM_CONNECT_TIMEOUT):
                break
            if pause == LONGEST_PAUSE and not aside.is_wanted:
                return False
            aside.is_wanted = False
            pause = min(2 * pause, LONGEST_PAUSE)
            self._tell(aside, pause + settings.UPSTREAM_CONNECT_TIMEOUT)
        return True

    def _take_back(self, address: Address, aside: _Aside) -> None:
        """Let calls pass again."""
        with self._lock:
            if self._aside.get(address) is not aside:
                return
            del self._aside[address]
        aside.over.set()
        for deployment, name in tuple(aside.deployments.items()):
            observe_breaker(name, breakers.state(deployment))

    def _tell(self, aside: _Aside, seconds: float) -> None:
        """Tell others once a probe has failed as well: a single connection may have been a moment's trouble."""
        if not seconds and not aside.is_told:
            return
        aside.is_told = True
        for deployment in tuple(aside.deployments):
            if seconds or breakers.state(deployment) is BreakerState.CLOSED:
                self._publish(deployment, seconds)


addresses = Addresses(publish=publish)
