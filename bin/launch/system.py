"""What the machine itself must have: shared libraries, programs, free ports."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from launch.commands import run_logged
from launch.console import LaunchError


def ensure_libgomp(root: Path) -> None:
    """Have libgomp1, which the local model's server is linked to and bare Debian lacks; raise LaunchError if not."""
    why = "the local model needs it; or set OPENAI_API_KEY to use a provider"
    _ensure(root, "libgomp1", lambda: _has_library("libgomp.so.1"), why)


def ensure_chromium(root: Path) -> str:
    """Have Debian's Chromium for the browser tests and return its path; raise LaunchError if it can't be had.

    The Node.js that playwright brings to drive it is linked to libatomic1, which bare Debian lacks.
    """
    _ensure(root, "libatomic1", lambda: _has_library("libatomic.so.1"), "the browser tests need it")
    _ensure(root, "chromium", lambda: chromium() is not None, "the browser tests need it")
    return chromium() or "chromium"


def chromium() -> str | None:
    """Find Chromium on the PATH; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def require_free_port(host: str, port: int) -> None:
    """Raise LaunchError when something listens on the port already or it may not be used."""
    try:
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LaunchError(f"port {port} is in use: stop what listens there, or choose another by PORT") from None
        raise LaunchError(f"can't listen on {host}:{port} ({error.strerror}): set HOST and PORT") from None


def free_port() -> int:
    """Pick a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _ensure(root: Path, package: str, present: Callable[[], bool], why: str) -> None:
    """Install a Debian package unless what it brings is present, as root; else say what to do in one line."""
    if present():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LaunchError(f"{package} is missing: install it (Debian, Ubuntu: sudo apt-get install {package}); {why}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    log = root / "var" / "log" / "install.log"
    run_logged("Refreshing Debian's package lists", ["apt-get", "update"], log, env=env)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", package]
    run_logged(f"Installing {package} (Debian)", install, log, env=env)
    if not present():
        raise LaunchError(f"{package} is installed and still not usable; {why}")
