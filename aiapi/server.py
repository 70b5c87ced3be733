"""gunicorn, with an order in which its workers begin and end.

On SIGHUP gunicorn starts new workers and ends the old ones in the same moment; until the new ones have loaded the
application, which takes seconds, nobody would serve. Here old workers end once the new ones serve.
"""

from __future__ import annotations

import mmap
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

#: Seconds that new workers get to load the application; after them the old ones end all the same.
START_SECONDS = 60.0


class Server(WSGIApplication):  # type: ignore[misc]  # gunicorn has no types
    """The application as gunicorn runs it. Its workers, which it is forked into, see whether the whole server ends."""

    def __init__(self) -> None:
        self._ends = mmap.mmap(-1, 1)  # shared by all processes of the server
        super().__init__("%(prog)s [OPTIONS] [APP_MODULE]", prog="aiapi.server")

    @property
    def ends(self) -> bool:
        """Return whether nobody will listen on the server's sockets once its workers have ended."""
        return bool(self._ends[0])

    def end(self) -> None:
        """Tell the workers that the server ends."""
        self._ends[0] = 1

    def run(self) -> None:
        """Serve until the end."""
        Master(self).run()


class _Reloaded(Exception):
    """The old workers have been told to end."""


class Master(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's master process."""

    def __init__(self, app: Server) -> None:
        super().__init__(app)
        self.START_CTX["args"] = [sys.executable, "-m", "aiapi.server", *sys.argv[1:]]  # for an upgrade by SIGUSR2
        self._reloads = False

    def reload(self) -> None:
        """Start new workers, and end the old ones once the new ones serve.

        gunicorn then waits until the old ones have ended, deaf to signals and to workers that die meanwhile.
        """
        self._reloads = True
        try:
            with suppress(_Reloaded):
                super().reload()
        finally:
            self._reloads = False

    def manage_workers(self) -> None:
        """Start workers that are missing, and end the oldest where there are too many."""
        if self._reloads:
            self._await_newest()
        super().manage_workers()
        if self._reloads:
            raise _Reloaded

    def _await_newest(self) -> None:
        """Wait until the new workers serve; those that can't start leave their places to old ones."""
        newest = sorted(self.WORKERS.values(), key=lambda worker: worker.age)[-self.num_workers :]
        until = time.monotonic() + START_SECONDS
        while not all(map(_serves, newest)) and time.monotonic() < until:
            time.sleep(0.05)
            with suppress(HaltServer):  # gunicorn ends the server when a worker could not start
                self.reap_workers()
            if any(worker.pid not in self.WORKERS for worker in newest):
                self.log.error("Not reloaded: a new worker could not start, so an old one goes on.")
                newest = [worker for worker in newest if worker.pid in self.WORKERS]

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a worker a signal; SIGTERM once alone: at its very end it has no handler for another any more."""
        worker = self.WORKERS.get(pid)
        if worker is not None and sig == signal.SIGTERM:
            if worker.is_told_to_end:
                return
            worker.is_told_to_end = True
        super().kill_worker(pid, sig)

    def stop(self, graceful: bool = True) -> None:
        """End the server."""
        listens_alone = self.reexec_pid == self.master_pid == 0 and not self.systemd and not self.cfg.reuse_port
        if graceful and listens_alone:
            self.app.end()
        super().stop(graceful)


def _serves(worker: Any) -> bool:
    """Return whether a worker accepts connections: its first heartbeat sets the file's time, monotonic from then on."""
    return bool(worker.tmp.last_update() <= time.monotonic())


if __name__ == "__main__":
    Server().run()
