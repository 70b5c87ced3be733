"""Addresses that can't be reached: put aside at the first connection that fails, tried again beside the calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.conf import LazySettings

from inference.catalog import Route
from inference.fake_provider import FakeUpstream
from inference.prices import Rates
from inference.tests.samples import unanswered
from inference.upstream import breaker as module
from inference.upstream.breaker import FAILURES_TO_OPEN, Breakers, BreakerState, address_of
from inference.upstream.client import upstream
from launch.environment import free_port
from tests.processes import wait_until


def route(base_url: str, number: int = 1, *, is_guarded: bool = False) -> Route:
    """Make a deployment at an address."""
    return Route(number, f"p/{number}", "p", base_url, "", (), "m", "max_tokens", 0, 1, Rates(), is_guarded=is_guarded)


HERE, THERE, ELSEWHERE = route("http://one:1/v1"), route("http://one:1/other", 2), route("http://one:2/v1", 3)


class Network:
    """Lets connections be made, or not, and counts the attempts."""

    def __init__(self) -> None:
        self.is_up = False
        self.tried = 0
        self.probes: set[int] = set()
        #: By deployment, for how many seconds calls are kept away, as others were told last.
        self.told: dict[int, float | None] = {}
        #: What is wrong with the list of models, and how often it was asked for.
        self.trouble: str | None = None
        self.listed = 0
        self.served = [HERE, THERE]

    def __call__(self, to: Route, seconds: float) -> bool:
        """Try to connect."""
        self.tried += 1
        self.probes.add(threading.get_ident())
        return self.is_up

    def publish(self, deployment: int, seconds: float | None, cause: str = "", **since: datetime) -> None:
        """Take what others are told."""
        self.told[deployment] = seconds

    def listing(self, to: Route) -> str | None:
        """Ask for the list of models."""
        self.listed += 1
        return self.trouble

    def breakers(self) -> Breakers:
        """Make the breakers of a process that has this network."""
        return Breakers(publish=self.publish, reaches=self, listing=self.listing, served=lambda: self.served)


@pytest.fixture
def network() -> Network:
    """Return a network that is down."""
    return Network()


@pytest.fixture
def known(network: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[Breakers]:
    """Return the breakers of a process, which is quick to try again."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    breakers = network.breakers()
    yield breakers
    breakers.forget()


def is_aside(breakers: Breakers, to: Route) -> bool:
    """Return whether calls must skip a deployment, as a call finds out."""
    return not breakers.admits(to, 1)


@pytest.mark.parametrize(
    ("base_url", "host", "port"),
    [
        ("https://api.example.com/v1", "api.example.com", 443),
        ("http://api.example.com/v1", "api.example.com", 80),
        ("http://API.example.com:8000/v1", "api.example.com", 8000),
        ("http://[::1]:8000/v1", "::1", 8000),
    ],
)
def test_it_tells_addresses_by_host_and_port(base_url: str, host: str, port: int) -> None:
    assert address_of(route(base_url)) == (host, port, False)
    assert address_of(route(base_url, is_guarded=True)) == (host, port, True)


def test_it_puts_an_address_aside_at_once_for_all_deployments_there(network: Network) -> None:
    addresses = network.breakers()
    assert not is_aside(addresses, HERE)
    addresses.eject(HERE)
    assert [is_aside(addresses, each) for each in (HERE, THERE, ELSEWHERE)] == [True, True, False]
    addresses.forget()
    assert not is_aside(addresses, HERE)


def test_it_takes_an_address_back_when_something_answers(network: Network) -> None:
    addresses = network.breakers()
    addresses.eject(HERE)
    addresses.answered(ELSEWHERE, 1)
    assert is_aside(addresses, HERE)
    addresses.answered(THERE, 1)
    assert not is_aside(addresses, HERE)
    assert network.tried == 0


def test_it_tries_beside_the_calls_until_a_connection_is_made(known: Breakers, network: Network) -> None:
    known.eject(HERE)
    wait_until(lambda: network.tried >= 3, "a few attempts")
    assert is_aside(known, HERE)
    network.is_up = True
    wait_until(lambda: not is_aside(known, HERE), "the address to be taken back")


def test_it_tries_each_address_by_one_probe_at_a_time(known: Breakers, network: Network) -> None:
    for each in (HERE, THERE, HERE):
        known.eject(each)
    wait_until(lambda: network.tried >= 3, "a few attempts")
    assert len(network.probes) == 1


def test_it_tries_less_and_less_often(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses, pauses = network.breakers(), []
    aside = module._Circuit(HERE, is_address=True, cool_down=1.0)
    addresses._shared[address_of(HERE)] = aside

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        assert is_aside(addresses, HERE)
        return len(pauses) == 9

    monkeypatch.setattr(aside.over, "wait", wait)
    addresses._watch(address_of(HERE), aside)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_it_tries_as_long_as_something_is_served_there(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = network.breakers()
    aside = module._Circuit(HERE, is_address=True, cool_down=1.0, deployments={1: HERE.name})
    addresses._shared[address_of(HERE)] = aside

    def wait(seconds: float) -> bool:
        network.served = network.served if network.tried < 99 else [ELSEWHERE]
        return False

    monkeypatch.setattr(aside.over, "wait", wait)
    addresses._watch(address_of(HERE), aside)
    assert network.tried == 99
    assert not is_aside(addresses, HERE)
    assert network.told == {1: None}


def test_it_waits_for_the_list_of_models_where_nobody_calls(known: Breakers, network: Network) -> None:
    network.trouble = "http 503"
    known.eject(HERE, "connection refused")
    wait_until(lambda: 1 in network.told, "others to be told")
    network.is_up = True
    wait_until(lambda: network.told[1] == 0, "a connection to be made")
    assert not is_aside(known, HERE), "a call may go there"
    assert known.snapshot()[1].state is BreakerState.HALF_OPEN
    network.trouble = None
    wait_until(lambda: network.told[1] is None, "others to be told that it is back")
    assert known.snapshot() == {}


def test_it_asks_for_no_list_of_models_while_somebody_calls(known: Breakers, network: Network) -> None:
    network.trouble = "http 503"
    known.eject(HERE)
    wait_until(lambda: is_aside(known, HERE) and network.tried >= 3, "a few attempts")
    network.is_up = True
    wait_until(lambda: not is_aside(known, HERE), "the address to be taken back")
    assert network.listed == 0


def test_it_leaves_nothing_aside_by_a_probe_that_broke(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    broke: list[str] = []
    looked = threading.Event()

    def break_down(to: Route, seconds: float) -> bool:
        looked.wait(10)
        broke.append(to.name)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    served = lambda: [HERE]  # noqa: E731
    addresses = Breakers(publish=network.publish, reaches=break_down, listing=network.listing, served=served)
    addresses.eject(HERE)
    assert is_aside(addresses, HERE)
    looked.set()
    wait_until(lambda: not is_aside(addresses, HERE), "calls to find out by themselves")
    assert broke == [HERE.name], "it is the probe that ended it, and no other was made"
    assert network.told == {}, "nobody knows more than before"


def test_it_tells_others_once_a_probe_has_failed_too(known: Breakers, network: Network, settings: LazySettings) -> None:
    known.eject(HERE)
    wait_until(lambda: 1 in network.told, "others to be told")
    assert network.tried >= 1
    assert (network.told[1] or 0) > settings.UPSTREAM_CONNECT_TIMEOUT, "until the next probe is over"
    assert is_aside(known, THERE)
    wait_until(lambda: 2 in network.told, "others to be told of what was asked for meanwhile")
    assert set(known.snapshot()) == {1, 2}
    since = known.snapshot()[2].since
    assert since is not None
    assert (datetime.now(UTC) - since).total_seconds() < 60
    network.is_up = True
    wait_until(lambda: network.told == {1: None, 2: None}, "others to be told that it is back")


def test_it_tells_nobody_of_a_moment_s_trouble(known: Breakers, network: Network) -> None:
    network.is_up = True
    known.eject(HERE)
    wait_until(lambda: not is_aside(known, HERE), "the address to be taken back")
    assert network.told == {}


def test_it_takes_back_no_notice_of_an_open_breaker(known: Breakers, network: Network) -> None:
    for account in range(FAILURES_TO_OPEN):
        known.failed(HERE, account)
    known.eject(HERE)
    assert is_aside(known, THERE)
    wait_until(lambda: network.told.keys() == {1, 2}, "others to be told")
    network.is_up = True
    wait_until(lambda: network.told[2] is None, "others to be told that it is back")
    assert network.told[1]


# What a real connection is


def test_it_reaches_what_listens(fake: FakeUpstream) -> None:
    fake.reset()
    assert upstream.reaches(route(fake.base_url), 1)
    assert fake.requests == [], "nothing is sent"


def test_it_reaches_nobody_where_nothing_listens(settings: LazySettings) -> None:
    assert not upstream.reaches(route(f"http://127.0.0.1:{free_port()}/v1"), 1)
    assert not upstream.reaches(route("http://no-such-host.invalid/v1"), 1)


def test_it_reaches_nobody_in_a_black_hole() -> None:
    with unanswered() as port:
        assert not upstream.reaches(route(f"http://127.0.0.1:{port}/v1"), 0.2)


def test_it_reaches_no_address_that_is_forbidden(fake: FakeUpstream) -> None:
    assert not upstream.reaches(route(fake.base_url, is_guarded=True), 1)
