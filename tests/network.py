"""What stands between clients and servers: a balancer, a slow link, and whatever else runs in a loop of its own."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from launch.environment import free_port

CHUNK = 65_536


class Balancer:
    """A TCP balancer to ports of 127.0.0.1, each in turn; it tries another only where one refuses.

    `targets` and `delay`, the seconds for which each reply is held back, may be changed while it runs.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.port = free_port()
        self.targets = list(targets)
        self.delay = 0.0
        self._turns = itertools.count()
        #: What passes bytes on: held here, since nothing else holds it once its client has left.
        self._open: set[asyncio.Task[None] | None] = set()

    async def serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Listen until it is told to stop."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
        async with server:
            ready()
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
            to_server = asyncio.create_task(self._pass(reader, far[1]))
            try:
                await self._pass(far[0], writer, is_reply=True)  # until the server closes, as when its client leaves
            finally:
                to_server.cancel()
                far[1].close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        first = next(self._turns)
        for place in range(2 * len(self.targets)):
            with suppress(ConnectionRefusedError):
                return await asyncio.open_connection("127.0.0.1", self.targets[(first + place) % len(self.targets)])
        return None

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool = False
    ) -> None:
        """Pass bytes on until the end, then end the other side's: a connection that is reset is passed on as such."""
        try:
            while content := await reader.read(CHUNK):
                if is_reply and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(content)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()


@contextmanager
def balancer(*targets: int) -> Iterator[Balancer]:
    """Run a balancer to servers on these ports."""
    running = Balancer(targets)
    with in_loop(running.serve):
        yield running


@contextmanager
def in_loop(serve: Callable[[Callable[[], None], asyncio.Event], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run a coroutine in a loop and thread of its own; it says when it is ready, and waits for the event to end."""
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    def run() -> None:
        loop.run_until_complete(serve(ready.set, stop))
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks, timeout=1))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
