"""Management commands, servers and workers in forks of a process that has loaded Django: a start takes seconds of CPU.

Platforms differ by their settings alone, so a fork reads those anew. Tests that try `manage.py` itself start it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from launch.processes import end_with_parent

#: An environment variable of a server that takes itself to be overloaded.
TESTED_AS_OVERLOADED = "TESTED_AS_OVERLOADED"
ROOT = Path(__file__).resolve().parents[1]


class Manager:
    """The process that forks. It ends with this one, whose end of its input is then closed, and its forks with it."""

    def __init__(self, *, serves: bool) -> None:
        self._lock = threading.Lock()
        command = [sys.executable, "-m", "tests.manager", *(["serve"] if serves else [])]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "bin")}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, env: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
        """Run a command with nothing but these settings; return its status, output and errors."""
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (output, errors)]
            status = Forked(self, self.ask([dict(env), arguments, files])).wait()
            return status, output.read(), errors.read()

    def start(self, env: Mapping[str, str], log: Path, *arguments: str) -> Forked:
        """Start a command that goes on, with nothing but these settings and its output at the end of the log."""
        log.touch()
        return Forked(self, self.ask([dict(env), arguments, [str(log), str(log)]]))

    def ask(self, request: Any) -> Any:
        """Send one request, and return what is answered."""
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            return json.loads(self._process.stdout.readline())


class Forked:
    """A process that a manager has started: a part of subprocess.Popen's interface."""

    def __init__(self, manager: Manager, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._manager = manager

    def poll(self) -> int | None:
        """Return its status, None while it lives."""
        if self.returncode is None:
            self.returncode = self._manager.ask(self.pid)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Wait until it has ended, and return its status; raise subprocess.TimeoutExpired after so many seconds."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal if it lives."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


@cache
def manager(*, serves: bool = False) -> Manager:
    """Return the process of this session, started when it is first asked for; one that `serves` starts web servers.

    They need gevent in all that they import, and other commands are tried without it.
    """
    return Manager(serves=serves)


def _serve() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiapi.settings")
    fork, waitpid = os.fork, os.waitpid
    if serves := "serve" in sys.argv:
        from gevent import monkey
        from gevent.os import fork_gevent

        fork = fork_gevent
        monkey.patch_all()
        from core.telemetry.metrics_folder import make_folder

        make_folder()  # so that metrics are made for several processes; a server makes a folder of its own
    import django

    django.setup()
    import aiapi.urls  # (system checks ask for it)

    if serves:
        import aiapi.server
        import aiapi.worker  # noqa: F401
        from inference.protocols.base import count_tokens

        count_tokens([], model="")
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            pid, status = waitpid(request, os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif child := fork():
            print(child, flush=True)
        else:
            _run(*request)


def _run(env: dict[str, str], arguments: list[str], files: list[str]) -> None:
    """Run a command in this fork, and end it."""
    from django.conf import settings
    from django.core.cache import caches
    from django.db import connections
    from django.utils.functional import empty

    import manage

    status = 1
    try:
        end_with_parent()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), number)
        os.environ.clear()
        os.environ.update(env)
        tempfile.tempdir = None  # TMPDIR is a setting as well
        del sys.modules["aiapi.settings"]
        settings._wrapped = empty
        for handler in (connections, caches):
            handler.__dict__.pop("settings", None)
            handler.__init__()  # type: ignore[misc]  # without what was made by the settings before
        if env.get(TESTED_AS_OVERLOADED):
            from aiapi.overload import Overload

            Overload.is_on = True  # type: ignore[assignment, method-assign]
        sys.argv = ["manage.py", *arguments]
        manage.main()
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  (the fork must not go on as its parent)
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
