"""Run one command to its end: with its progress shown, its whole output kept, and its failure told in one line."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.console import LaunchError, Progress


def run_logged(
    title: str, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, mend: str = ""
) -> None:
    """Run the command with a progress line made of its output, which goes to the log file as a whole.

    Raises LaunchError with the last telling line of the output when the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    progress, last_error, last = Progress(title), "", ""
    with log.open("a", encoding="utf-8") as kept, _start(command, env) as process:
        try:
            for line in process.stdout or ():
                kept.write(line)
                last = line.strip() or last
                last_error = last if last.lower().startswith(("error", "e:")) else last_error
                progress.update(last)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        hint = f"; {mend}" if mend else ""
        raise LaunchError(f"{title} failed: {last_error or last or 'no output'}{hint} (whole output: {log})")
    progress.done()


def _start(command: Sequence[str], env: Mapping[str, str] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=env,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
