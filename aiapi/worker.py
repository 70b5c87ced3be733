"""gunicorn's gevent worker with an orderly end, and with deadlines for what clients send (aiapi.connections).

The end begins with SIGTERM. For LAST_SECONDS the worker goes on as before, but says `Connection: close` in each
answer, so that no client sends another request on a connection that it keeps. Then it accepts no more, and closes
connections that wait for a request; a request that has begun to come by then is answered. Open streams get
GRACEFUL_TIMEOUT to end, and then an error, so that each is settled for what it used before the process ends.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import gevent
import structlog
from django.conf import settings
from django.urls import get_resolver
from gunicorn.workers.ggevent import GeventWorker

from aiapi.connections import FIRST_BYTE_SECONDS, Connection, Crowd, Listener

log = structlog.get_logger(__name__)

#: Seconds that streams get to settle after GRACEFUL_TIMEOUT, before gunicorn kills the worker.
SETTLE_SECONDS = 4
#: Seconds for which `Connection: close` is said, and that a connection gets for another request once it ends.
LAST_SECONDS = 1.0
#: Seconds for handshakes that have begun when the whole server ends.
HANDSHAKE_SECONDS = 0.3
#: One at a time where workers share a socket, so that they share the connections too (as gunicorn has it).
MAX_ACCEPT = 100
UNBOUND = contextlib.nullcontext()


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Lets open requests end within graceful_timeout, and closes idle connections before."""

    #: Whether the master has sent it SIGTERM (the master's own note).
    is_told_to_end = False

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.is_ending = False
        self.listeners: list[Listener] = []

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what the worker can't do (gunicorn calls this at the start)."""
        if cfg.is_ssl:
            log.error("HTTPS is spoken by the proxy in front: certfile and keyfile have no use here.")
            sys.exit(1)

    def server_class(self, listener: Any, **options: Any) -> Listener:
        """Make what accepts connections (gunicorn calls this for each listening socket)."""
        crowd = Crowd(self.worker_connections, bounds_addresses=not settings.TRUSTED_PROXIES)
        max_accept = 1 if self.cfg.workers > 1 else MAX_ACCEPT

        def serve(client: Connection, address: Any) -> None:
            crowd.enter(client, address)
            client.await_request(LAST_SECONDS if self.is_ending else FIRST_BYTE_SECONDS)
            try:
                self.handle(listener, client, address)
            finally:
                crowd.leave(client)

        self.listeners.append(Listener(listener, serve, crowd, max_accept=max_accept))
        return self.listeners[-1]

    def timeout_ctx(self) -> AbstractContextManager[None]:
        """Bound nothing: a connection has deadlines of its own."""
        return UNBOUND

    def notify(self) -> None:
        """Tell the master that the worker lives, and see to the deadlines (gunicorn calls this every second)."""
        super().notify()
        for listener in self.listeners:
            listener.pool.end_overdue()

    def handle_request(self, listener_name: Any, req: Any, sock: Connection, addr: Any) -> None:
        """Answer a request, then wait for the next."""
        sock.begin(req)
        if self.is_ending:
            req.force_close()
        super().handle_request(listener_name, req, sock, addr)
        if not sock.take_rest():
            raise StopIteration
        sock.await_request(LAST_SECONDS if self.is_ending else self.cfg.keepalive)

    def run(self) -> None:
        """Serve until the end; then wait for what goes on without a client: other callers wait for its answer."""
        from core.telemetry.tracing import stop_exporting
        from inference.open_streams import open_streams
        from monitoring.payload_log import keeper

        _warm_up()
        get_resolver().url_patterns  # noqa: B018  (loads the views, before what is loaded is frozen)
        gc.collect()
        gc.freeze()  # to look through all of it again and again would stop every stream for a tenth of a second
        super().run()
        open_streams.wait(self.cfg.graceful_timeout)
        keeper.flush()
        stop_exporting()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end (SIGTERM, from gunicorn's master or from somebody else)."""
        if not self.is_ending:
            self.is_ending = True
            gevent.spawn(self._end)
            gevent.spawn_later(self.cfg.graceful_timeout - SETTLE_SECONDS, self._stop_streams)

    def _end(self) -> None:
        """Announce the end to whoever keeps a connection, then have `run` accept no more."""
        connections = [connection for listener in self.listeners for connection in listener.pool.connections]
        waiting = [connection for connection in connections if connection.is_idle]
        for connection in connections:
            connection.announce_close()
        if connections:
            gevent.sleep(LAST_SECONDS)
        if getattr(self.app, "ends", False):  # of aiapi.server
            for listener in self.listeners:
                listener.drain(HANDSHAKE_SECONDS)
        for connection in waiting:
            if connection.is_idle:
                connection.stop_reading()
        self.alive = False

    @staticmethod
    def _stop_streams() -> None:
        from inference.open_streams import open_streams

        open_streams.stop()


def _warm_up() -> None:
    """Do what takes long before the first requests come, all at once: import the SDK, look a cluster up."""
    from accounts.limits import get_limits
    from accounts.limits.types import Unavailable
    from inference.upstream.sdk import sdk

    sdk()
    try:
        get_limits().now()
    except Unavailable as error:
        log.warning("limits_not_ready", cause=type(error).__name__)
