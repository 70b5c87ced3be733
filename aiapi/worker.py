"""gunicorn's gevent worker, with an orderly end.

At shutdown it doesn't wait for connections that only might bring another request; open streams get GRACEFUL_TIMEOUT
to end, and then an error, so that each is settled for what it used before the process ends.
"""

from __future__ import annotations

import gc
from types import FrameType, TracebackType

import gevent
import structlog
from django.urls import get_resolver
from gunicorn.workers.ggevent import GeventWorker

log = structlog.get_logger(__name__)

#: Seconds that streams get to settle after GRACEFUL_TIMEOUT, before gunicorn kills the worker.
SETTLE_SECONDS = 4
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

    def run(self) -> None:
        """Serve until the end; then wait for what goes on without a client: other callers wait for its answer."""
        from inference.open_streams import open_streams
        from monitoring.content import keeper
        from monitoring.tracing import stop_exporting

        _warm_up()
        get_resolver().url_patterns  # noqa: B018  (loads the views, before what is loaded is frozen)
        gc.collect()
        gc.freeze()  # to look through all of it again and again would stop every stream for a tenth of a second
        super().run()
        open_streams.wait(self.cfg.graceful_timeout)
        keeper.flush()
        stop_exporting()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end (SIGTERM)."""
        super().handle_exit(sig, frame)
        gevent.spawn(gevent.killall, list(self.waiting), block=False)
        gevent.spawn_later(self.cfg.graceful_timeout - SETTLE_SECONDS, self._stop_streams)

    @staticmethod
    def _stop_streams() -> None:
        from inference.open_streams import open_streams

        open_streams.stop()


def _warm_up() -> None:
    """Do what takes long before the first requests come, all at once: import the SDK, look a cluster up."""
    from accounts.limits import get_limits
    from accounts.limits.contract import Unavailable
    from inference.upstream.sdk import sdk

    sdk()
    try:
        get_limits().now()
    except Unavailable as error:
        log.warning("limits_not_ready", cause=type(error).__name__)


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
