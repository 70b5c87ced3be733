"""Periodic threads, the stop of long commands, and turns between steps that take long.

Background loops run once in each process, and outlive what goes wrong in a step: the next one is for others too.

How a long command learns that it should end.

Turns between what takes long: a worker does one thing at a time, and everybody else waits meanwhile.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

Start = Callable[[Callable[[], None]], None]
"""Runs a function beside the calls: in a thread, or a greenlet where gevent has patched threads."""

log = structlog.get_logger(__name__)


def outlived(step: Callable[[], object], *, event: str) -> bool:
    """Do one step of a loop; answer whether it went well. What it raises is logged by its class, without its text."""
    try:
        step()
    except Exception as error:  # noqa: BLE001  (a loop that ends is worse than any of them)
        log.error(event, cause=type(error).__name__)
        return False
    return True


class ProcessThread:
    """A thread that is started once in each process: a fork takes no threads along."""

    def __init__(self, run: Callable[[], None], *, name: str) -> None:
        self._run = run
        self._name = name
        self._lock = threading.Lock()
        self._pid = 0

    def start(self) -> bool:
        """Start it unless it runs here already; answer whether it was started now."""
        if self._pid == os.getpid():
            return False
        with self._lock:
            if self._pid == os.getpid():
                return False
            self._pid = os.getpid()
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return True


class WorkThread:
    """A thread that takes a step every so many seconds, for as long as there is work.

    Who makes work begins it after that; it ends by itself once `has_work` says that none is left, or is ended for good.
    What a step raises is logged as `event`, and outlived. `seconds` is asked before each wait; `start` runs a function
    in a thread.
    """

    def __init__(
        self,
        step: Callable[[], object],
        *,
        has_work: Callable[[], bool],
        seconds: Callable[[], float],
        name: str,
        event: str,
        start: Start | None = None,
    ) -> None:
        self._step = step
        self._has_work = has_work
        self._seconds = seconds
        self._name = name
        self._event = event
        self._start = start or self._in_thread
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._runs_in = 0  # the process: a fork takes no threads along
        self._is_over = False

    def begin(self) -> None:
        """Let it run, unless it does."""
        with self._lock:
            if self._is_over or self._runs_in == os.getpid():
                return
            self._runs_in = os.getpid()
        self._start(self.run)

    def end(self) -> None:
        """Let it take no further step, whatever is left to do; wait for the step that it is at."""
        self._is_over = True
        with self._stepping:
            pass

    def run(self) -> None:
        """Do the work until none is left: what the thread does."""
        while True:
            time.sleep(self._seconds())
            with self._stepping:
                if self._is_over:
                    return
                outlived(self._step, event=self._event)
            with self._lock:
                if not self._has_work():
                    self._runs_in = 0
                    return

    def _in_thread(self, run: Callable[[], None]) -> None:
        threading.Thread(target=run, name=self._name, daemon=True).start()


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set while inside, instead of ending the process (main thread only)."""
    stopping = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


#: Not 0: then gevent's loop goes on here before it has looked for new connections and bytes.
LEAST_SLEEP = 0.0005
#: Bytes from which on a step takes so many milliseconds that others get their turn after it.
LARGE = 1024 * 1024


def give_turn(size: int) -> None:
    """Let others have their turn after a step over so many bytes, if they are many."""
    if size >= LARGE:
        time.sleep(LEAST_SLEEP)
