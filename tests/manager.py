"""Management commands in forks of one process that has loaded Django: a start costs a second, and tests set up much.

Platforms differ by their settings alone, so a fork reads those anew. Tests that try `manage.py` itself start it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Manager:
    """The process that forks. It ends with this one, whose end of its input is then closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        command, env = [sys.executable, "-m", "tests.manager"], {**os.environ, "PYTHONPATH": str(ROOT / "bin")}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, env: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
        """Run a command with nothing but these settings; return its status, output and errors."""
        assert self._process.stdin
        assert self._process.stdout
        with self._lock, tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (output, errors)]
            self._process.stdin.write(json.dumps([dict(env), arguments, files]) + "\n")
            status = int(self._process.stdout.readline())
            return status, output.read(), errors.read()


@cache
def manager() -> Manager:
    """Return the process of this session, started when it is first asked for."""
    return Manager()


def _serve() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiapi.settings")
    import django

    django.setup()
    import aiapi.urls  # noqa: F401  (system checks ask for it)

    for line in sys.stdin:
        env, arguments, files = json.loads(line)
        if (child := os.fork()) == 0:
            _run(env, arguments, files)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(env: dict[str, str], arguments: list[str], files: list[str]) -> None:
    """Run a command in this fork, and end it."""
    from django.conf import settings
    from django.core.cache import caches
    from django.db import connections
    from django.utils.functional import empty

    import manage

    status = 1
    try:
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_RDWR), number)
        os.environ.clear()
        os.environ.update(env)
        del sys.modules["aiapi.settings"]
        settings._wrapped = empty
        for handler in (connections, caches):
            handler.__dict__.pop("settings", None)
            handler.__init__()  # type: ignore[misc]  # without what was made by the settings before
        sys.argv = ["manage.py", *arguments]
        manage.main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  (the fork must not go on as its parent)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
