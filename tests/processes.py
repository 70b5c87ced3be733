"""Start a server process for a test, wait for it, and end it: what all the real servers here share."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from launch.processes import end_with_parent
from tests.manager import Forked

Process = subprocess.Popen[bytes] | Forked

#: Seconds that a server may take to answer at first, on a busy machine.
READY_TIMEOUT = 60.0
STOP_TIMEOUT = 40.0


def spawn(
    command: list[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a process whose output goes to the end of the log file; it ends when the test process does."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=session,
            restore_signals=False,  # a file that may not grow is then an error, as on a full disk, and no death
            preexec_fn=end_with_parent,  # noqa: PLW1509  (started from the main thread)
        )


def wait_until(ready: Callable[[], bool], what: str, timeout: float = READY_TIMEOUT) -> None:
    """Poll until the condition holds; raise AssertionError that names what did not come within so many seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.02)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the process listens on its port of 127.0.0.1; raise AssertionError with its log when it ends first."""

    def listening() -> bool:
        assert process.poll() is None, f"it ended with status {process.returncode}:\n{tail(log)}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listening, f"port {port}")


def stop(process: Process, number: int) -> None:
    """Send the signal if it still runs, and kill it when it has not ended in time."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def is_running(pid: int) -> bool:
    """Tell whether a process exists, and is no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def tail(log: Path, lines: int = 40) -> str:
    """Return the last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
