"""What each process has of its own, background threads, a clean stop for long commands, and pauses between steps.

A background loop runs once in each process and continues after a step has failed. A gevent worker runs one greenlet at
a time, so a CPU-bound step that doesn't yield delays every other request of the worker.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import structlog

Start = Callable[[Callable[[], None]], None]
"""Runs a function in the background: in a thread, or in a greenlet where gevent has patched threads."""

log = structlog.get_logger(__name__)

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that each process builds on its first use. A forked process inherits no threads and builds its own."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._built: tuple[int, T] | None = None  # with the id of the process

    def get(self) -> T:
        """Return the value of this process; raises what building it raises."""
        built = self._built
        if built is None or built[0] != os.getpid():
            with self._lock:
                built = self._built
                if built is None or built[0] != os.getpid():
                    built = self._built = os.getpid(), self._build()
        return built[1]

    def drop(self) -> T | None:
        """Forget the value, so that the next use builds another; return it if this process has built it."""
        built, self._built = self._built, None
        return built[1] if built is not None and built[0] == os.getpid() else None


def run_step(step: Callable[[], object], *, event: str) -> bool:
    """Run one step of a loop and return whether it succeeded. An exception is logged by its class, without its text."""
    try:
        step()
    except Exception as error:  # noqa: BLE001  (the loop has to survive any failure of a step)
        log.error(event, cause=type(error).__name__)
        return False
    return True


class ProcessThread:
    """A thread that is started at most once in each process. A fork inherits no threads and starts its own."""

    def __init__(self, run: Callable[[], None], *, name: str) -> None:
        self._run = run
        self._name = name
        self._lock = threading.Lock()
        self._pid = 0

    def start(self) -> bool:
        """Start the thread unless this process has started it already; return whether it was started now."""
        if self._pid == os.getpid():
            return False
        with self._lock:
            if self._pid == os.getpid():
                return False
            self._pid = os.getpid()
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return True


class PeriodicThread:
    """A thread that runs a step periodically while there is work.

    Call `begin` after adding work. The thread ends when `has_work` returns False, or for good after `end`. An exception
    of a step is logged as `event`, and the thread continues. `seconds` returns the length of the next wait; `start`
    runs a function in the background (by default in a daemon thread).
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
        self._event = event
        self._start = start or (lambda run: threading.Thread(target=run, name=name, daemon=True).start())
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._runs_in = 0  # process id: a forked process inherits no threads
        self._is_over = False

    def begin(self) -> None:
        """Start the thread unless it is running."""
        with self._lock:
            if self._is_over or self._runs_in == os.getpid():
                return
            self._runs_in = os.getpid()
        try:
            self._start(self.run)
        except BaseException:  # no thread, or a killed greenlet: the next `begin` tries again
            self._runs_in = 0
            raise

    def end(self) -> None:
        """Run no further step, even if work is left, and wait for the current step to finish."""
        self._is_over = True
        with self._stepping:
            pass

    def run(self) -> None:
        """Run steps until no work is left. This is the thread's main function."""
        try:
            while True:
                time.sleep(self._seconds())
                with self._stepping:
                    if self._is_over:
                        return
                    run_step(self._step, event=self._event)
                with self._lock:
                    if not self._has_work():
                        self._runs_in = 0
                        return
        except BaseException:  # a killed greenlet: the next `begin` starts another
            self._runs_in = 0
            raise


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set instead of ending the process. Main thread only."""
    stopping = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


#: Seconds. Not 0, because gevent would then resume this greenlet before it polls for new connections and data.
LEAST_SLEEP = 0.0005
#: Bytes from which a step takes several milliseconds, so that other greenlets should run after it.
LARGE = 1024 * 1024


def yield_to_others(size: int) -> None:
    """Let other greenlets run after a step that processed `size` bytes, if that is LARGE or more."""
    if size >= LARGE:
        time.sleep(LEAST_SLEEP)
