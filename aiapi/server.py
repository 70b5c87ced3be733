"""gunicorn with reloads that don't interrupt the service.

The master loads the application once, and its workers share that memory. So imports must create nothing that differs
between processes, and start no threads. On SIGHUP, gunicorn starts new workers and stops the old ones at once, so that
for some time no worker accepts connections. Here, the old workers stop when the new ones serve.
"""

from __future__ import annotations

import gc
import mmap
import signal
import time
from contextlib import suppress
from typing import Any

from gunicorn.app.base import Application
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

#: Seconds for new workers to serve; afterwards the old ones are stopped in any case.
START_SECONDS = 60.0


class Server(Application):  # type: ignore[misc]  # gunicorn has no types
    """The gunicorn application. Its workers can see whether the whole server is stopping."""

    def __init__(self) -> None:
        self._ends = mmap.mmap(-1, 1)  # shared by all processes of the server
        super().__init__()

    def load_config(self) -> None:
        """Read gunicorn's settings: those of aiapi.gunicorn_config alone."""
        self.load_config_from_module_name_or_filename("python:aiapi.gunicorn_config")

    def load(self) -> Any:
        """Return the WSGI application, which the master loads before it forks."""
        from aiapi.wsgi import application
        from inference.upstream.client import sdk

        sdk()
        gc.collect()
        gc.freeze()  # a full collection of these objects would block every stream for 100 ms, and unshare their memory
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
