"""The folder in which the worker processes of one server share their metrics (prometheus_client's multiprocess mode).

gunicorn's arbiter makes it before there are workers, private to the user and new at each start, and removes it at its
end. One whose arbiter was killed is removed by a later start: the arbiter holds a lock on a file in it, which its
workers inherit and the kernel lets go of when the last of them has ended.

prometheus_client decides where numbers go when it is first imported, so nothing here imports it before that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

#: The folder as prometheus_client knows it.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "aiapi-metrics-"
LOCK = "lock"
#: Seconds for which a folder that nobody has locked is left alone: its arbiter may be about to.
YOUNG_SECONDS = 60


def make_folder() -> Path:
    """Make this server's folder, lock it while the server lives, and name it to prometheus_client."""
    _remove_left_behind(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    _lock(folder)
    os.environ[VARIABLE] = str(folder)
    return folder


def remove_folder() -> None:
    """Remove this server's folder with all that is in it."""
    shutil.rmtree(os.environ[VARIABLE], ignore_errors=True)


def forget_worker(pid: int) -> None:
    """Take what only a living process has, such as open streams, off the metrics; what it counted stays."""
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
    """Lock a folder for this process and those that it forks; None if it is another's."""
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
