"""gunicorn's gevent worker with a graceful shutdown and deadlines for clients (aiapi.connections).

Shutdown begins with SIGTERM. For LAST_SECONDS the worker continues, but sends `Connection: close` with each response,
so that clients don't reuse their connections. Then it accepts no more connections and closes those that wait for a
request; a request that has begun to arrive by then is answered. Open streams may continue for GRACEFUL_TIMEOUT seconds
and then end with an error, so that their usage is settled before the process ends.
"""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import gevent
import structlog
from django.conf import settings
from gunicorn.http import wsgi
from gunicorn.workers.ggevent import GeventWorker

from aiapi.connections import FIRST_BYTE_SECONDS, ClientPool, Connection, Listener
from aiapi.overload import Overload, is_call
from core.times import http_date

log = structlog.get_logger(__name__)

#: Seconds for streams to settle after GRACEFUL_TIMEOUT, before gunicorn kills the worker.
SETTLE_SECONDS = 4
#: Seconds for which responses have `Connection: close`, and in which idle connections may then send a last request.
LAST_SECONDS = 1.0
#: Seconds for TCP handshakes that have begun when the whole server stops.
HANDSHAKE_SECONDS = 0.3
#: Connections accepted at a time by a single worker. Several workers accept one each, so that the load is distributed.
MAX_ACCEPT = 100
UNBOUND = contextlib.nullcontext()


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's response, which sends its head together with its body, unless that is a stream.

    It does not check headers: Django refuses line breaks in them. Together that spares a tenth of a cache hit's CPU.
    """

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Take the headers, and the length of the body from them."""
        self.headers = headers
        for name, value in headers:
            if name.lower() == "content-length":
                self.response_length = int(value)

    def head(self) -> bytes:
        """Return the head, which is sent by the caller."""
        major, minor = self.req.version
        lines = [
            f"HTTP/{major}.{minor} {self.status}",
            f"Server: {self.version}",
            f"Date: {http_date()}",
            f"Connection: {'close' if self.should_close() else 'keep-alive'}",
            *(["Transfer-Encoding: chunked"] if self.chunked else []),
            *(f"{name}: {value}" for name, value in self.headers),
            "\r\n",
        ]
        head = "\r\n".join(lines).encode("latin-1")
        self.headers_sent = True
        return head

    def send_headers(self) -> None:
        """Send the head by itself, if it has not been sent."""
        if not self.headers_sent:
            self.sock.sendall(self.head())

    def write(self, data: bytes) -> None:
        """Send a part of the body, and the head before the first."""
        if self.headers_sent or self.chunked or len(data) != self.response_length or self._omits_body:
            super().write(data)
        else:
            self.sent = len(data)
            self.sock.sendall(self.head() + data)


class WebWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """A worker that finishes open requests within graceful_timeout and closes idle connections before."""

    #: Whether the master has sent SIGTERM; set and read by the master only.
    has_sigterm = False

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.is_ending = False
        self.listeners: list[Listener] = []
        self.overload = Overload()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Reject unsupported settings (called by gunicorn at the start)."""
        if cfg.is_ssl:
            log.error("HTTPS is spoken by the proxy in front: certfile and keyfile have no use here.")
            sys.exit(1)

    def server_class(self, listener: Any, **options: Any) -> Listener:
        """Return the server for a listening socket (called by gunicorn for each)."""
        pool = ClientPool(
            self.worker_connections, bounds_addresses=not settings.TRUSTED_PROXIES, refuse=self.refuse_bytes
        )
        max_accept = 1 if self.cfg.workers > 1 else MAX_ACCEPT

        def serve(client: Connection, address: Any) -> None:
            pool.enter(client, address)
            client.await_request(LAST_SECONDS if self.is_ending else FIRST_BYTE_SECONDS)
            try:
                self.handle(listener, client, address)
            finally:
                pool.leave(client)

        self.listeners.append(Listener(listener, serve, pool, max_accept=max_accept))
        return self.listeners[-1]

    def timeout_ctx(self) -> AbstractContextManager[None]:
        """Return no timeout: connections have their own deadlines."""
        return UNBOUND

    def notify(self) -> None:
        """Send the heartbeat to the master and enforce deadlines (called by gunicorn every second)."""
        super().notify()
        for listener in self.listeners:
            listener.pool.end_overdue()

    def handle_request(self, listener_name: Any, req: Any, sock: Connection, addr: Any) -> None:
        """Answer a request, and set the deadline for the next one of the connection."""
        sock.begin(req)
        if self.is_ending:
            req.force_close()
        try:
            waits = is_call(req)
            refused = self.overload.refuse(req) if waits else None
            if refused:
                sock.sendall(refused)
            else:
                if waits:
                    self.overload.await_start()
                    sock.begin(req)  # its client had no part in that wait
                self._respond(listener_name, req, sock, addr)
            if not sock.take_rest() or (refused and req.should_close()):
                raise StopIteration
        except (gevent.GreenletExit, SystemExit):  # the worker is stopping
            raise StopIteration from None
        sock.await_request(LAST_SECONDS if self.is_ending else self.cfg.keepalive)

    def _respond(self, listener_name: Any, req: Any, sock: Connection, addr: Any) -> None:
        """Have the application answer a request; raises StopIteration if the connection ends with that."""
        response, environ = wsgi.create(req, sock, addr, listener_name, self.cfg, response_class=Response)
        try:
            body = self.wsgi(environ, response.start_response)
            try:
                if isinstance(body, wsgi.FileWrapper):
                    response.write_file(body)
                else:
                    for part in body:
                        response.write(part)
                response.close()
            finally:
                body.close()
        except OSError:
            raise
        except Exception:
            if not response.headers_sent:
                raise
            log.exception("answer_broke_off")  # a plain error would now be taken for a part of it
            raise StopIteration from None
        if response.should_close():
            raise StopIteration

    def refuse_bytes(self, data: bytes) -> bytes | None:
        """Return the response to a whole call that is shed before it is parsed; at shutdown, that is done after."""
        return None if self.is_ending else self.overload.refuse_bytes(data)

    def run(self) -> None:
        """Serve until shutdown. Then wait for calls without a client, whose answers other workers may wait for."""
        from core.telemetry.trace import stop_exporting
        from inference.clients import open_streams
        from monitoring.payload_log import keeper

        _warm_up()
        super().run()
        open_streams.wait(self.cfg.graceful_timeout)
        keeper.flush()
        stop_exporting()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown (called by gunicorn at SIGTERM)."""
        if not self.is_ending:
            self.is_ending = True
            gevent.spawn(self._end)
            gevent.spawn_later(self.cfg.graceful_timeout - SETTLE_SECONDS, self._stop_streams)

    def _end(self) -> None:
        """Announce the close on all connections, then make `run` stop accepting."""
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
        from inference.clients import open_streams

        open_streams.stop()


def _warm_up() -> None:
    """Look up the slots of a cluster, and import the SDK if a provider needs it, before the first requests."""
    from accounts.limits import get_limits
    from accounts.limits.types import LimitsUnavailable
    from core.errors import DependencyUnavailable
    from inference.catalog import catalog
    from inference.upstream.client import sdk

    try:
        get_limits().now()
    except LimitsUnavailable as error:
        log.warning("limits_not_ready", cause=type(error).__name__)
    try:
        if any(route.is_azure for model in catalog.models().values() for route in model.routes):
            sdk()
    except DependencyUnavailable as error:
        log.warning("catalog_not_ready", cause=type(error).__name__)
    catalog.forget()  # what is added just after the start is offered at once
