"""gunicorn with reloads that don't interrupt the service.

The master loads the application once, and its workers share that memory. So imports must create nothing that differs
between processes, and start no threads. On SIGHUP, gunicorn starts new workers and stops the old ones at once, so that
for some time no worker accepts connections. Here, the old workers stop when the new ones serve.
"""

from __future__ import annotations

import gc
import mmap
import resource
import signal
import time
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import django
from django.conf import settings
from django.core import signals
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.db import close_old_connections, reset_queries
from gunicorn.app.base import Application
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

#: Seconds for new workers to serve; afterwards the old ones are stopped in any case.
START_SECONDS = 60.0
#: Open files for a worker: each call has a connection to its client and one to a provider.
FILES = 8192
#: Receivers that would take a tenth of a cache hit's CPU time, and do nothing here: caches and URL configuration stay,
#: and the log of queries is off. What is left gives the database connections back after a request.
NEEDLESS_RECEIVERS = (
    (signals.request_started, reset_queries),
    (signals.request_started, close_old_connections),
    (signals.request_finished, close_caches),
    (signals.request_finished, reset_urlconf),
)


@cache
def load() -> Any:
    """Load what a server and a worker use, for forks to share, and return the WSGI application."""
    django.setup()
    from aiapi.wsgi import application

    for module in (settings.ROOT_URLCONF, "aiapi.worker", "operations.worker"):
        import_module(module)
    for sender, receiver in NEEDLESS_RECEIVERS:
        sender.disconnect(receiver)
    gc.collect()
    gc.freeze()  # a full collection of these objects would block every stream for 100 ms, and unshare their memory
    return application


class QuietLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger without the access line, which it would format although there is no access log."""

    def access(self, *args: object) -> None:
        """Do nothing: aiapi.middleware logs each request."""


class Server(Application):  # type: ignore[misc]  # gunicorn has no types
    """The gunicorn application. Its workers can see whether the whole server is stopping."""

    def __init__(self) -> None:
        self._ends = mmap.mmap(-1, 1)  # shared by all processes of the server
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's settings: no file and no command line has a say."""
        from aiapi.connections import KEEP_ALIVE_SECONDS
        from aiapi.logs import configuration
        from aiapi.worker import SETTLE_SECONDS
        from core.telemetry.metrics_folder import forget_worker

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < files:  # often 1,024
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        for name, value in {
            "bind": f"{settings.HOST}:{settings.PORT}",
            "workers": settings.WEB_CONCURRENCY,
            "preload_app": True,
            "worker_class": "aiapi.worker.WebWorker",
            "worker_connections": min(2500, files // 2),
            "http_parser": "auto",  # gunicorn_h1c, the C parser, if it is installed
            "graceful_timeout": settings.GRACEFUL_TIMEOUT + SETTLE_SECONDS,  # seconds until gunicorn kills a worker
            "timeout": 60,  # seconds after which a worker with a blocked event loop is replaced
            "sendfile": False,  # gevent has no sendfile; with sendall, waits for slow clients are tracked
            "keepalive": KEEP_ALIVE_SECONDS,
            "max_requests": 0,
            "limit_request_line": 8190,
            # Trust no forwarding headers: by default gunicorn trusts all clients on this machine. Django reads
            # X-Forwarded-Proto itself, if TRUSTED_PROXIES is set.
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "logger_class": QuietLogger,
            "logconfig_dict": configuration(settings.LOG_LEVEL),  # gunicorn's own lines are JSON like the others
            "control_socket_disable": True,
            "child_exit": lambda _, worker: forget_worker(worker.pid),  # removes the gauges of an ended worker
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the WSGI application, which the master loads before it forks."""
        application = load()
        gc.collect()
        gc.freeze()  # again: in bin/run, gunicorn and the models' encodings were loaded since
        return application

    @property
    def ends(self) -> bool:
        """Return whether the server's sockets will be closed once its workers have ended."""
        return bool(self._ends[0])

    def end(self) -> None:
        """Signal to the workers that the whole server is stopping."""
        self._ends[0] = 1

    def run(self) -> None:
        """Run the master process until the server is stopped."""
        Master(self).run()


class _Reloaded(Exception):
    """Ends a reload once the old workers have been sent SIGTERM."""


class Master(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's master process."""

    _reloads = False

    def reload(self) -> None:
        """Start new workers, and stop the old ones once the new ones serve.

        gunicorn's own reload would then wait until the old ones have ended, without handling signals or dead workers.
        """
        self._reloads = True
        try:
            with suppress(_Reloaded):
                super().reload()
        finally:
            self._reloads = False

    def manage_workers(self) -> None:
        """Start missing workers, and stop the oldest if there are too many."""
        if self._reloads:
            self._await_newest()
        super().manage_workers()
        if self._reloads:
            raise _Reloaded

    def _await_newest(self) -> None:
        """Wait until the new workers serve. For each that fails to start, an old one is kept."""
        newest = sorted(self.WORKERS.values(), key=lambda worker: worker.age)[-self.num_workers :]
        until = time.monotonic() + START_SECONDS
        # A worker that accepts connections has sent a heartbeat, which sets its file's time to monotonic seconds.
        while time.monotonic() < until and any(each.tmp.last_update() > time.monotonic() for each in newest):
            time.sleep(0.05)
            with suppress(HaltServer):  # raised when a worker failed to start
                self.reap_workers()
            if any(worker.pid not in self.WORKERS for worker in newest):
                self.log.error("Not reloaded: a new worker could not start, so an old one goes on.")
                newest = [worker for worker in newest if worker.pid in self.WORKERS]

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a signal to a worker; SIGTERM only once, because an exiting worker no longer handles it."""
        worker = self.WORKERS.get(pid)
        if worker is not None and sig == signal.SIGTERM:
            if worker.has_sigterm:
                return
            worker.has_sigterm = True
        super().kill_worker(pid, sig)

    def stop(self, graceful: bool = True) -> None:
        """Stop the server."""
        listens_alone = self.reexec_pid == self.master_pid == 0 and not self.systemd and not self.cfg.reuse_port
        if graceful and listens_alone:
            self.app.end()
        super().stop(graceful)
