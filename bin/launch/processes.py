"""A few processes that live and end together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.console import LaunchError

#: Seconds that a member may take to end after SIGTERM: gunicorn lets running requests finish for 30.
GRACE = 35.0
#: Seconds between two looks at the members.
TICK = 0.1
#: prctl(2): the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1


class Stopped(BaseException):
    """Someone asked the whole group to end, by the signal `number` (Ctrl-C is SIGINT)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Member:
    """One process of the group; `log` is where its output goes, None for the terminal."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None

    def ended(self) -> LaunchError:
        """Say in one line that it ended by itself, with the last line of its log."""
        told = self.log.read_text(errors="replace").strip().splitlines()[-1:] if self.log else []
        last = f": {told[0]} (whole output: {self.log})" if told else ""
        return LaunchError(f"{self.name} ended by itself with status {self.process.returncode}{last}")


class Group:
    """Start processes, watch them, and end all of them when one ends or a signal comes.

    Each is a process group of its own, so that a Ctrl-C reaches the caller alone and is passed on once, and what a
    member leaves behind can be ended with it. On Linux they also end when the caller is killed outright.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path | None = None) -> None:
        """Add a process; with a log, its output goes there, over that of the start before."""
        if log is None:
            process = _start(command, env)
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                process = _start(command, env, stdout=output.fileno(), stderr=subprocess.STDOUT)
        self.members.append(Member(name, process, log))

    def check(self) -> None:
        """Raise LaunchError when a member has ended."""
        for member in self.members:
            if member.process.poll() is not None:
                raise member.ended()

    def wait_until(self, ready: Callable[[], bool], *, timeout: float, what: str) -> None:
        """Wait for a condition while every member lives; raise LaunchError when one ends or the time (s) is over."""
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise LaunchError(f"{what} did not answer within {timeout:.0f} seconds")
            time.sleep(TICK)

    def watch(self) -> None:
        """Wait until a member ends, and raise LaunchError for it."""
        while True:
            self.check()
            time.sleep(TICK)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End every member, the last started first, by a signal; kill what is left after the grace or a second signal.

        gunicorn ends at once on SIGINT, and lets open requests end first on SIGTERM.
        """
        alive = [member.process for member in reversed(self.members) if member.process.poll() is None]
        with suppress(Stopped):
            for process in alive:
                process.send_signal(number)
            deadline = time.monotonic() + GRACE
            while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
                time.sleep(TICK)
        for member in self.members:
            with suppress(ProcessLookupError):
                os.killpg(member.process.pid, signal.SIGKILL)
            member.process.wait()


def end_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into Stopped, raised in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _start(
    command: Sequence[str], env: Mapping[str, str], stdout: int | None = None, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  (no threads here)
    )


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when the thread that started it is gone (Linux; for preexec_fn)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
