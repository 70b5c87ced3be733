"""The fake provider's server, in a thread of a test or of a command, controlled by methods or over HTTP."""

import asyncio
import json
import logging
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

from inference.fake_provider.answers import Json
from inference.fake_provider.http import Connection, Reply, Request
from inference.fake_provider.ledger import Call, Ledger, Received
from inference.fake_provider.replies import Provider, json_reply
from inference.fake_provider.settings import FakeSettings, FaultPlan, check_fault

CONTROL = "/_fake/"
_START_SECONDS = 10.0
_BACKLOG = 4096
_ACCEPT_PAUSE = 0.05

logger = logging.getLogger(__name__)


class FakeUpstream:
    """An OpenAI-compatible provider on a real socket, whose answers and failures are set by FakeSettings.

    Use it as a context manager, or call `start` and `stop`. Methods may be called from any thread. Other processes
    control it over HTTP: GET /_fake/ledger (`?calls=0` for the totals alone), GET /_fake/requests, POST /_fake/settings
    (any settings, `fail_next` as `{"kind": ..., "times": 1}`, and `refuse_ms`), POST /_fake/reset. These need no key:
    never expose the port.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0, **settings: Any) -> None:
        self._first_settings = FakeSettings().changed(settings)
        self._ledger = Ledger()
        self._plan = FaultPlan(seed)
        self._provider = Provider(self._first_settings, self._plan, self._ledger)
        self._host, self.port = host, port
        self._connections: set[Connection] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._refusing: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-upstream", daemon=True)

    # Start and stop

    def start(self) -> Self:
        """Start to listen, in a thread of its own; raises OSError if the port is taken."""
        self._socket = self._reserve()
        self._thread.start()
        self.listen()
        return self

    def stop(self) -> None:
        """Close the socket and all connections, and end the thread."""
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_SECONDS)

    def _reserve(self) -> socket.socket:
        """Bind the port without listening: connections are refused, but no other process can take it."""
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        reserved.setblocking(False)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind((self._host, self.port))
        except OSError:
            reserved.close()
            raise
        self.port = reserved.getsockname()[1]
        return reserved

    async def _listen(self) -> None:
        if self._accepting is None:
            self._socket.listen(_BACKLOG)
            self._accepting = asyncio.create_task(self._accept(self._socket))

    async def _accept(self, listener: socket.socket) -> None:
        # Not asyncio's own server: closing it leaks a connection that it accepts at the same time.
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError:
                # Too many open files, or a client that disconnected at once: go on serving the others.
                logger.warning("the fake upstream could not accept a connection", exc_info=True)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            await loop.connect_accepted_socket(self._connection, accepted)

    async def _refuse(self) -> None:
        await self._shut()
        self._socket = self._reserve()

    async def _stop(self) -> None:
        if self._refusing is not None:
            self._refusing.cancel()
        await self._shut()

    async def _shut(self) -> None:
        """Close the socket and every connection."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._accepting = None
        self._socket.close()
        for connection in list(self._connections):
            connection.close()
        # Aborted connections end their calls in the next iterations of the event loop.
        await asyncio.sleep(0.01)

    def _connection(self) -> Connection:
        return Connection(self._handle, self._connections)

    # Drive it

    @property
    def base_url(self) -> str:
        """Return the URL for an OpenAI client, ending in /v1."""
        return f"http://{self._host}:{self.port}/v1"

    @property
    def settings(self) -> FakeSettings:
        """Return the settings in force."""
        return self._provider.settings

    def set(self, **changes: Any) -> None:
        """Change settings from the next call on; raises ValueError for an unknown or invalid setting."""
        self._provider.settings = self.settings.changed(changes)

    def fail_next(self, kind: str, times: int = 1) -> None:
        """Make the next `times` calls to a model fail; `refuse` closes the socket until `listen` or `reset`."""
        if check_fault(kind) == "refuse":
            self.refuse()
        else:
            self._plan.fail_next(kind, times)

    def refuse(self) -> None:
        """Close the listening socket and every connection, but keep the port."""
        self._call(self._refuse())

    def listen(self) -> None:
        """Listen again after `refuse`."""
        self._call(self._listen())

    def reset(self) -> None:
        """Forget calls, requests and faults, and restore the initial settings."""
        self._forget()
        self.listen()

    def _forget(self) -> None:
        self._ledger.clear()
        self._plan.clear()
        self._provider.settings = self._first_settings

    # Look at it

    @property
    def requests(self) -> list[Received]:
        """Return the latest 10,000 requests in order."""
        return list(self._ledger.requests)

    @property
    def billed(self) -> list[Call]:
        """Return every call to a model with the tokens billed for it, in order, including running calls."""
        return list(self._ledger.calls)

    def totals(self) -> dict[str, int]:
        """Return the number of calls, of running ones, and the sums of prompt, cached and completion tokens."""
        return self._ledger.totals()

    def wait_idle(self, timeout: float = 5.0) -> None:
        """Wait until no call runs; raises TimeoutError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.totals()["running"]:
            if time.monotonic() > end:
                raise TimeoutError(f"the fake upstream still runs {self.totals()['running']} calls")
            time.sleep(0.005)

    # Over HTTP

    def _handle(self, request: Request) -> Reply:
        if request.path.startswith(CONTROL):
            return self._control(request)
        return self._provider.reply(request)

    def _control(self, request: Request) -> Reply:
        match (request.method, request.path.removeprefix(CONTROL)):
            case ("GET", "ledger"):
                return json_reply(200, self._ledger.as_json(with_calls=request.query != "calls=0"))
            case ("GET", "requests"):
                return json_reply(200, [_plain(each) for each in self._ledger.requests])
            case ("POST", "reset"):
                self._forget()
                return json_reply(200, {"reset": True})
            case ("POST", "settings"):
                return self._settings_posted(request)
        return json_reply(404, {"error": "unknown path"})

    def _settings_posted(self, request: Request) -> Reply:
        try:
            self._apply(json.loads(request.body))
        except (ValueError, TypeError, KeyError) as error:
            return json_reply(400, {"error": str(error)})
        return json_reply(200, {"set": True})

    def _apply(self, posted: Json) -> None:
        fail, refuse_ms = posted.pop("fail_next", None), posted.pop("refuse_ms", None)
        self.set(**posted)
        if fail is not None:
            self._plan.fail_next(fail["kind"], fail.get("times", 1))
        if refuse_ms is not None:
            self._refusing = asyncio.create_task(self._refuse_for(refuse_ms / 1000))

    async def _refuse_for(self, seconds: float) -> None:
        # Let the response to this request be sent first.
        await asyncio.sleep(0.01)
        await self._refuse()
        await asyncio.sleep(seconds)
        await self._listen()


def _plain(received: Received) -> Json:
    return {"method": received.method, "path": received.path, "headers": received.headers, "body": received.body}
