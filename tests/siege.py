"""Thousands of connections, from many addresses, that take a server's places and ask for nothing."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.network import in_loop

#: Seconds between two bytes, and before a connection that was closed is opened again.
PAUSE = 1.0


@dataclass(frozen=True)
class Manner:
    """How a connection behaves: what it sends at once, then byte by byte, and whether it reads what it gets."""

    at_once: bytes = b""
    byte_by_byte: bytes = b""
    reads: bool = True


class Siege:
    """Connections to a port of 127.0.0.1 that are opened again when they are closed."""

    def __init__(
        self, port: int, manners: list[Manner], *, connections: int, addresses: int, a_second: int = 1000
    ) -> None:
        self._port = port
        self._manners = itertools.cycle(manners)
        self._sources = itertools.cycle([f"127.0.{1 + place // 250}.{1 + place % 250}" for place in range(addresses)])
        self._number, self._a_second = connections, a_second
        #: How many have been opened, and how many of them are open now.
        self.opened = 0
        self.open = 0

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Besiege the port until it is told to stop."""
        tasks = [asyncio.create_task(self._hold(next(self._manners), place, stop)) for place in range(self._number)]
        ready()
        await stop.wait()
        for task in tasks:
            task.cancel()

    async def _hold(self, manner: Manner, place: int, stop: asyncio.Event) -> None:
        await asyncio.sleep(place / self._a_second)
        while not stop.is_set():
            with suppress(OSError), _connection(next(self._sources), reads=manner.reads) as connection:
                loop = asyncio.get_running_loop()
                await loop.sock_connect(connection, ("127.0.0.1", self._port))
                self.opened += 1
                self.open += 1
                try:
                    await loop.sock_sendall(connection, manner.at_once)
                    await self._drip(connection, manner)
                finally:
                    self.open -= 1
            await asyncio.sleep(PAUSE)

    async def _drip(self, connection: socket.socket, manner: Manner) -> None:
        """Send byte after byte, then nothing, until the server closes the connection."""
        loop = asyncio.get_running_loop()
        dripping = asyncio.create_task(_send_slowly(connection, manner.byte_by_byte))
        try:
            while await loop.sock_recv(connection, 4096) if manner.reads else await _is_there(connection):
                pass
        finally:
            dripping.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await dripping


async def _send_slowly(connection: socket.socket, content: bytes) -> None:
    for place in range(len(content)):
        await asyncio.sleep(PAUSE)
        await asyncio.get_running_loop().sock_sendall(connection, content[place : place + 1])


async def _is_there(connection: socket.socket) -> bool:
    """Wait, and look whether the other side has closed the connection, without taking what it sent."""
    await asyncio.sleep(PAUSE)
    return not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and not _has_ended(connection)


def _has_ended(connection: socket.socket) -> bool:
    # The first byte of TCP_INFO is the state; 1 is ESTABLISHED.
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\x01"


@contextmanager
def _connection(source: str, *, reads: bool) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        connection.setblocking(False)
        if not reads:  # with small buffers at both ends: of the server's, the segments' size is the measure
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        connection.bind((source, 0))
        yield connection


@contextmanager
def besieged(port: int, manners: list[Manner], **how: int) -> Iterator[Siege]:
    """Besiege a port while inside; `how` is Siege's: connections, addresses, and how many are opened a second."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    siege = Siege(port, manners, **how)
    with in_loop(siege.run):
        yield siege
