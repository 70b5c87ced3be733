"""gunicorn's gevent worker, which at shutdown doesn't wait for connections that only might bring another request."""

from __future__ import annotations

from types import FrameType, TracebackType

import gevent
from gunicorn.workers.ggevent import GeventWorker

#: Seconds that a connection gets for another request once the worker is to end.
LAST_WAIT = 0.01


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Lets open requests end within graceful_timeout, and closes idle connections at once."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.waiting: set[gevent.Greenlet] = set()

    def timeout_ctx(self) -> _Wait:
        """Bound the wait for a connection's next request."""
        return _Wait(self.waiting, self.cfg.keepalive if self.alive else LAST_WAIT)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end (SIGTERM)."""
        super().handle_exit(sig, frame)
        gevent.spawn(gevent.killall, list(self.waiting), block=False)


class _Wait:
    """A gevent timeout that says nothing when it is over, and tells the worker who is in it."""

    def __init__(self, waiting: set[gevent.Greenlet], seconds: float) -> None:
        self._waiting = waiting
        self._timeout = gevent.Timeout(seconds, False)

    def __enter__(self) -> None:
        self._waiting.add(gevent.getcurrent())
        self._timeout.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timeout.close()
        self._waiting.discard(gevent.getcurrent())
        return error is self._timeout
