"""A balancer before several servers: it passes bytes on, and tries another server only where one refuses."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from launch.environment import free_port

CHUNK = 65_536


class Balancer:
    """A TCP balancer to ports of 127.0.0.1, each in turn; `targets` may be changed while it runs."""

    def __init__(self, targets: Sequence[int]) -> None:
        self.port = free_port()
        self.targets = list(targets)
        self._turns = itertools.count()
        #: What passes bytes on: held here, since nothing else holds it once its client has left.
        self._open: set[asyncio.Task[None] | None] = set()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Listen until it is told to stop."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
        async with server:
            ready.set()
            await stop.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._open.add(task)
        try:
            with suppress(asyncio.CancelledError):  # as all are when the balancer ends
                await self._carry(reader, writer)
        finally:
            writer.close()
            self._open.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if far := await self._connect():
            to_server = asyncio.create_task(_pass(reader, far[1]))
            try:
                await _pass(far[0], writer)  # until the server closes; a client that leaves has it do so
            finally:
                to_server.cancel()
                far[1].close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        first = next(self._turns)
        for place in range(2 * len(self.targets)):
            with suppress(ConnectionRefusedError):
                return await asyncio.open_connection("127.0.0.1", self.targets[(first + place) % len(self.targets)])
        return None


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the end, then end the other side's: a connection that is reset is passed on as such."""
    try:
        while content := await reader.read(CHUNK):
            writer.write(content)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


@contextmanager
def balancer(*targets: int) -> Iterator[Balancer]:
    """Run a balancer to servers on these ports."""
    running = Balancer(targets)
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    def run() -> None:
        loop.run_until_complete(running.serve(ready, stop))
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="balancer")
    thread.start()
    assert ready.wait(10)
    try:
        yield running
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
