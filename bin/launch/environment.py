"""The environment of the processes: what was set outside, then `.env`; and the ports that it names."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from pathlib import Path

from launch import LaunchError

DEFAULT_PORT = 8000


def load(root: Path, outside: Mapping[str, str]) -> dict[str, str]:
    """Merge `.env` (or the file that ENV_FILE names) under the variables set outside; empty ones there count as unset.

    No `.env` is fine. Raises LaunchError for a line that is no NAME=value, and for an ENV_FILE that can't be read.
    """
    named = outside.get("ENV_FILE")
    path = root / (named or ".env")
    try:
        inside = parse(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        if named or path.exists():
            raise LaunchError(f"{path} can't be read ({error.strerror})") from None
        inside = {}
    return {**inside, **{name: value for name, value in outside.items() if value or name not in inside}}


def parse(text: str, source: str = ".env") -> dict[str, str]:
    """Read NAME=value lines as docker compose does in its simple cases: comments, `export`, quotes, no expansion."""
    values: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip().isidentifier():
            raise LaunchError(f"{source}, line {number}: write it as NAME=value")
        text = value.strip()
        is_quoted = text[:1] in ("'", '"')
        values[name.strip()] = text[1:].partition(text[0])[0] if is_quoted else value.split(" #", 1)[0].strip()
    return values


def address(env: Mapping[str, str]) -> tuple[str, int]:
    """Return HOST and PORT with their defaults; raise LaunchError when PORT is no port number."""
    port = env.get("PORT") or str(DEFAULT_PORT)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise LaunchError("PORT must be a whole number from 1 to 65535")
    return env.get("HOST") or "127.0.0.1", int(port)


def is_set(env: Mapping[str, str], *names: str) -> bool:
    """Return whether one of the variables has a value, directly or by a file with it."""
    return any(env.get(name) or env.get(f"{name}_FILE") for name in names)


def has_provider(env: Mapping[str, str]) -> bool:
    """Return whether a provider is configured; otherwise bin/run starts the local model."""
    return is_set(env, "OPENAI_API_KEY", "OPENAI_BASE_URL")


def graceful_timeout(env: Mapping[str, str]) -> float:
    """Return the seconds that open requests get to end, as far as they can be read: the settings judge the value."""
    given = env.get("GRACEFUL_TIMEOUT", "")
    return float(given) if given.isdecimal() else 30.0


def require_free_port(host: str, port: int) -> None:
    """Raise LaunchError when something listens on the port already or it may not be used."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
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
