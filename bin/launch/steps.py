"""Steps of bin/test: each a process group of its own that ends with the step, timed, and summed up at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from launch.console import say

T = TypeVar("T")

#: Seconds that an interrupted step may take to end.
GRACE = 10.0


@dataclass(frozen=True)
class Step:
    """One command; `live` shows its output as it comes, else only when it fails."""

    name: str
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    live: bool = False


@dataclass
class Results:
    """What came out: (name, passed, seconds) of every step so far."""

    rows: list[tuple[str, bool, float]] = field(default_factory=list)

    def timed(self, name: str, action: Callable[[], T]) -> T:
        """Run what comes before the steps, and count its time; its exceptions go through."""
        started = time.monotonic()
        value = action()
        self.rows.append((name, True, time.monotonic() - started))
        return value

    def run(self, step: Step, env: Mapping[str, str]) -> None:
        """Run one step to its end, and end what it left behind; its failure is kept for the summary."""
        say(f"\n== {step.name}")
        started = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = _start(step, env, None if step.live else output.fileno())
            try:
                process.wait()
            finally:
                _end_group(process)
            output.seek(0)
            told = output.read()
        seconds = time.monotonic() - started
        passed = process.returncode == 0
        if told and not passed:
            say(told.rstrip())
        say(f"   {'passed' if passed else 'FAILED'} in {seconds:.1f} s")
        self.rows.append((step.name, passed, seconds))

    def summary(self) -> int:
        """Print every step with its time, and return the exit status: 0 when all passed."""
        failed = sum(not passed for _, passed, _ in self.rows)
        say(f"\n{'step':<38} {'result':<7} seconds")
        for name, passed, seconds in self.rows:
            say(f"{name:<38} {'passed' if passed else 'FAILED':<7} {seconds:7.1f}")
        say(f"{'all':<38} {'FAILED' if failed else 'passed':<7} {sum(row[2] for row in self.rows):7.1f}")
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
