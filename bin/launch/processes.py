"""A few processes that live and end together: programs, and forks of this one.

Each is a process group of its own: a Ctrl-C reaches the launcher alone, which passes it on once, and what a process
leaves behind can be ended with it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch import LaunchError

#: Seconds that members may take to end after SIGTERM, unless the group is given others: gunicorn lets running requests
#: finish for 30.
GRACE = 35.0
#: Seconds between two looks at the members.
TICK = 0.05
#: prctl(2): the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """Someone asked the whole group to end, by the signal `number` (Ctrl-C is SIGINT).

    A SystemExit, since gevent passes that on from its loop to the main thread.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_on_signals() -> None:
    """Turn the signals of STOPPING into Stopped, raised in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    for number in STOPPING:
        signal.signal(number, stop)


class Adopted:
    """A process that another launcher started, and left: a part of subprocess.Popen's interface."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return None while it lives, else 0: nobody knows its status."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self.returncode = 0
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal if it lives."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait until it is gone."""
        while self.poll() is None:
            time.sleep(TICK)
        return 0


class Forked(Adopted):
    """A fork of this process that runs a function, in a process group of its own and without input."""

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__(os.fork())
        if self.pid == 0:
            _end_with(run)

    def poll(self) -> int | None:
        """Return its status, None while it lives."""
        return self._take(os.WNOHANG)

    def wait(self) -> int:
        """Wait until it has ended, and return its status."""
        return self._take(0) or 0

    def _take(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _end_with(run: Callable[[], object]) -> NoReturn:
    """Run a function in this fork, and end it: it must not go on as its parent."""
    status: object = 1
    try:
        atexit._clear()  # what is registered is the parent's
        os.setpgid(0, 0)
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        if sys.platform == "linux":
            end_with_parent()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        run()
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:  # noqa: BLE001  (as Python does at the end of a program)
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        if isinstance(status, str):
            print(status, file=sys.stderr)
        sys.stdout.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


@dataclass(frozen=True)
class Member:
    """One process of a group; `log` is where its output goes, None for the terminal or for an adopted one.

    One that `serves_others` ends after them.
    """

    name: str
    process: subprocess.Popen[bytes] | Adopted
    log: Path | None = None
    serves_others: bool = False


class Group:
    """Start processes, watch them, and end all of them when one ends or a signal comes.

    On Linux they also end when the launcher is killed outright, but for those that serve others. `grace` is in seconds.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self.members: list[Member] = []
        self.grace = grace

    def start(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path | None = None,
        *,
        serves_others: bool = False,
    ) -> Member:
        """Add a process; with a log, its output goes there, over that of the start before."""
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        ends_with_launcher = sys.platform == "linux" and not serves_others
        with (log or Path(os.devnull)).open("wb") as output:
            process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output if log else None,
                stderr=subprocess.STDOUT if log else None,
                process_group=0,
                preexec_fn=end_with_parent if ends_with_launcher else None,  # noqa: PLW1509  (no threads here)
            )
        member = Member(name, process, log, serves_others)
        self.members.append(member)
        return member

    def fork(self, name: str, run: Callable[[], object]) -> None:
        """Add a process that runs a function: it shares the memory of all that is loaded here."""
        # A signal waits until the fork is a member, and no longer handles signals as this process does.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self.members.append(Member(name, Forked(run)))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def run(self, name: str, run: Callable[[], object]) -> None:
        """Run a function in a process to its end; raise LaunchError when it fails."""
        self.fork(name, run)
        if self.members[-1].process.wait() != 0:
            raise LaunchError(f"{name} failed: see above")
        self.members.pop()

    def adopt(self, name: str, pid: int) -> None:
        """Add a process that runs already, as one that serves others; it must lead a process group."""
        self.members.append(Member(name, Adopted(pid), serves_others=True))

    def check(self) -> None:
        """Raise LaunchError, with the last line of its log, when a member has ended."""
        for member in self.members:
            if member.process.poll() is not None:
                printed = member.log.read_text(errors="replace").strip().splitlines()[-1:] if member.log else []
                last = f": {printed[0]} (whole output: {member.log})" if printed else ""
                raise LaunchError(f"{member.name} ended by itself with status {member.process.returncode}{last}")

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

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End every member by a signal, and kill what is left of them after the grace or a second signal.

        Then end those that serve others in the same way. gunicorn ends at once on SIGINT, and lets open requests end
        first on SIGTERM.
        """
        for serves_others in (False, True):
            members = [each.process for each in reversed(self.members) if each.serves_others is serves_others]
            with suppress(Stopped):
                for process in members:
                    if process.poll() is None:
                        process.send_signal(number)
                deadline = time.monotonic() + self.grace
                while any(process.poll() is None for process in members) and time.monotonic() < deadline:
                    time.sleep(TICK)
            for process in members:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when the thread that started it is gone (Linux; for preexec_fn)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
