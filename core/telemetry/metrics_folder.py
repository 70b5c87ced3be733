"""The folder in which the workers of a server share their metrics (prometheus_client's multiprocess mode).

The server creates a new private folder before it starts workers, and removes it when it ends. The folder of a server
that was killed is removed at a later start: the server locks a file in the folder, its workers inherit the lock, and
the kernel releases it when the last of them has ended.

prometheus_client reads the folder's name when it is first imported: `make_folder` has to run before that, and nothing
here imports it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

#: The variable from which prometheus_client reads the folder.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "aiapi-metrics-"
LOCK = "lock"
#: Seconds for which an unlocked folder is kept, because its arbiter may be about to lock it.
YOUNG_SECONDS = 60


def make_folder() -> Path:
    """Create this server's folder, lock it until this process has ended, and set PROMETHEUS_MULTIPROC_DIR."""
    _remove_left_behind(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    _lock(folder)
    os.environ[VARIABLE] = str(folder)
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    """Remove a server's folder at the end of its process, not at the end of a fork."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def forget_worker(pid: int) -> None:
    """Remove the gauges of a worker that has ended, such as open streams; its counters stay."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _remove_left_behind(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        about = folder.lstat()
        if about.st_uid != os.getuid() or time.time() - about.st_mtime < YOUNG_SECONDS:
            continue
        descriptor = _lock(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Lock a folder for this process and its forks; return the lock's descriptor, None if another server holds it."""
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
