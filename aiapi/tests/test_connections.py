"""The connections of a worker: whose wait ends when an address, or all together, have too many."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import gevent
import pytest

from aiapi.connections import ClientPool, Connection

Enter = Callable[..., tuple[socket.socket, gevent.Greenlet]]


@pytest.fixture
def enter() -> Iterator[Enter]:
    """Return a function that has a new connection wait for a request; it gives the client's end, and what was read."""
    opened: list[socket.socket] = []

    def enter(pool: ClientPool, host: str, *, seconds: float = 60) -> tuple[socket.socket, gevent.Greenlet]:
        ours, theirs = socket.socketpair()
        opened.append(theirs)
        connection = Connection(ours.family, ours.type, ours.proto, fileno=ours.detach())
        pool.enter(connection, (host, 1))
        connection.await_request(seconds)
        reading = pool.spawn(connection.recv, 1024)
        gevent.sleep(0)
        return theirs, reading

    yield enter
    for connection in opened:
        connection.close()


@pytest.mark.parametrize(
    ("hosts", "ends"),
    [
        (["192.0.2.1"] * 3, True),
        (["192.0.2.1", "192.0.2.1", "192.0.2.2"], False),
        (["2001:db8::1", "2001:db8::2", "2001:db8::ffff"], True),
        (["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1"], False),
        (["::ffff:192.0.2.1", "::ffff:192.0.2.2", "::ffff:192.0.2.3"], False),
    ],
)
def test_it_ends_the_oldest_wait_of_an_address_that_has_too_many(enter: Enter, hosts: list[str], ends: bool) -> None:
    pool = ClientPool(8, bounds_addresses=True)
    waits = [enter(pool, host) for host in hosts]
    gevent.sleep(0.01)
    assert [reading.ready() for _, reading in waits] == [ends, False, False]
    assert not ends or waits[0][1].value == b""


def test_it_bounds_no_address_where_all_come_from_proxies(enter: Enter) -> None:
    pool = ClientPool(8, bounds_addresses=False)
    waits = [enter(pool, "192.0.2.1") for _ in range(7)]
    gevent.sleep(0.01)
    assert not any(reading.ready() for _, reading in waits)


def test_it_makes_room_by_the_connection_that_has_waited_longest(enter: Enter) -> None:
    pool = ClientPool(2, bounds_addresses=False)
    waits = [enter(pool, "192.0.2.1") for _ in range(2)]
    assert pool.full(), "asked before the next is accepted"
    gevent.sleep(0.01)
    assert [reading.ready() for _, reading in waits] == [True, False]


def test_it_reads_what_came_before_it_ended_the_wait(enter: Enter) -> None:
    pool = ClientPool(1, bounds_addresses=False)
    client, reading = enter(pool, "192.0.2.1")
    assert pool.full()
    client.sendall(b"GET")
    assert reading.get(timeout=1) == b"GET"


def test_it_ends_a_wait_whose_deadline_is_over(enter: Enter) -> None:
    pool = ClientPool(2, bounds_addresses=False)
    (_, late), (_, in_time) = enter(pool, "192.0.2.1", seconds=-1), enter(pool, "192.0.2.1")
    pool.end_overdue()
    assert late.get(timeout=1) == b""
    assert not in_time.ready()
