"""A TCP proxy that makes a server slow: what stands between a client and it on a bad network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from launch.environment import free_port

CHUNK = 65_536


@dataclass
class SlowProxy:
    """A proxy to a port of 127.0.0.1; every reply is held back for `delay` seconds."""

    port: int
    target: int
    delay: float = 0.0

    async def serve(self, stop: asyncio.Event) -> None:
        """Listen until it is told to stop."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        async with server:
            await stop.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, far_writer, slow=False), self._pass(far_reader, writer, slow=True))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        with suppress(OSError):
            while content := await reader.read(CHUNK):
                if slow and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(content)
                await writer.drain()
        writer.close()


@contextmanager
def slow_proxy(target: int) -> Iterator[SlowProxy]:
    """Run a proxy to a port, at first without delay."""
    proxy = SlowProxy(free_port(), target)
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    def run() -> None:
        loop.call_soon(ready.set)
        loop.run_until_complete(proxy.serve(stop))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="slow-proxy")
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
