"""Steps of bin/test: each a process group of its own that ends with the step, timed, and summed up at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from launch.console import say

T = TypeVar("T")

#: Seconds that an interrupted step may take to end.
GRACE = 10.0
#: Seconds between two looks at the steps that run.
TICK = 0.05


@dataclass(frozen=True)
class Step:
    """One command; `live` shows its output as it comes, else only when it fails."""

    name: str
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    live: bool = False


class _Running:
    """A step that was started, with what it has told so far."""

    def __init__(self, step: Step, env: Mapping[str, str]) -> None:
        self.step = step
        #: How long it took; None while it runs.
        self.seconds: float | None = None
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed by end)
        self._started = time.monotonic()
        self._process = _start(step, env, None if step.live else self._output.fileno())

    def look(self) -> None:
        """Note it if it has ended, and end what it left behind."""
        if self.seconds is None and self._process.poll() is not None:
            seconds = time.monotonic() - self._started
            _end_group(self._process)
            self.seconds = seconds

    def passed(self) -> bool:
        """Say whether it ended well."""
        return self._process.returncode == 0

    def told(self) -> str:
        """Return its output, unless that went to the terminal."""
        self._output.seek(0)
        return self._output.read()

    def end(self) -> None:
        """End it if it is interrupted, and forget its output."""
        if self.seconds is None:
            _end_group(self._process)
        self._output.close()


@dataclass
class Results:
    """What came out: (name, passed, seconds) of every step so far; all of it counts from `started`."""

    rows: list[tuple[str, bool, float]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def timed(self, name: str, action: Callable[[], T]) -> T:
        """Run what comes before the steps, and count its time; its exceptions go through."""
        started = time.monotonic()
        value = action()
        self.rows.append((name, True, time.monotonic() - started))
        return value

    def run(self, steps: Sequence[Step], env: Mapping[str, str]) -> None:
        """Run steps side by side to their ends, and tell of one after the other; failures are kept for the summary."""
        with ExitStack() as stack:
            running = []
            for step in steps:
                running.append(_Running(step, env))
                stack.callback(running[-1].end)
            for each in running:
                say(f"\n== {each.step.name}")
                while each.seconds is None:
                    time.sleep(TICK)
                    for other in running:
                        other.look()
                self._tell(each)

    def _tell(self, ended: _Running) -> None:
        told, passed, seconds = ended.told(), ended.passed(), ended.seconds or 0.0
        if told and not passed:
            say(told.rstrip())
        say(f"   {'passed' if passed else 'FAILED'} in {seconds:.1f} s")
        self.rows.append((ended.step.name, passed, seconds))

    def summary(self) -> int:
        """Print every step with its time, and return the exit status: 0 when all passed.

        The time of all is that of the clock, less than the sum where steps ran side by side.
        """
        failed = sum(not passed for _, passed, _ in self.rows)
        say(f"\n{'step':<38} {'result':<7} seconds")
        for name, passed, seconds in self.rows:
            say(f"{name:<38} {'passed' if passed else 'FAILED':<7} {seconds:7.1f}")
        say(f"{'all':<38} {'FAILED' if failed else 'passed':<7} {time.monotonic() - self.started:7.1f}")
        say(f"steps: {len(self.rows) - failed} passed, {failed} failed")
        return 1 if failed else 0


def _start(step: Step, env: Mapping[str, str], output: int | None) -> subprocess.Popen[bytes]:
    """Start a step in a process group of its own, with its output in a file (None: the terminal).

    A pipe would stay open, and so be waited for, as long as anything that the step left behind.
    """
    return subprocess.Popen(
        step.command,
        env={**env, **step.env},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        process_group=0,
    )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the step's process group: gently while its leader lives (an interruption), then whatever is left of it."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
