"""bin/run: from a fresh clone to a running service in one command.

Once everything is installed, it loads the platform, and its processes are forks: they share that memory and start at
once. So it has no threads, and no connection to a database.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn

from launch import LaunchError, environment, install, say
from launch.processes import Group, Stopped, end_on_signals
from launch.valkey import Valkey

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for the local model, and then for the server, to answer at first.
START_TIMEOUT = 90.0
PROVIDER = "OPENAI_API_KEY or OPENAI_BASE_URL"
#: The variable that keeps when bin/run began, in seconds of the monotonic clock, while it starts itself again.
BEGAN = "BIN_RUN_BEGAN"


def main(arguments: Sequence[str], *, installed: bool = False) -> int:
    """Start everything and stay until it ends, or run one management command; return the exit status.

    A stop by Ctrl-C or SIGTERM is no failure: 0. `installed`: this Python has everything but the local model (in the
    image); otherwise .venv gets what is missing.
    """
    started = float(os.environ.pop(BEGAN, time.monotonic()))
    outside = dict(os.environ)
    if arguments[:1] in (["-h"], ["--help"]):
        say(sys.modules["__main__"].__doc__ or "")
        return 0
    os.chdir(ROOT)
    end_on_signals()
    group = Group()
    number: int = signal.SIGTERM
    held = ExitStack()
    try:
        env = environment.load(ROOT, outside)
        store = None if environment.is_set(env, "REDIS_URL") else Valkey(ROOT, env)
        own = store.settings() if store else {}
        if arguments:
            python = sys.executable if installed else install.ensure_environment(ROOT, [install.BASE])
            command = [python, "manage.py", *arguments]
            return subprocess.run(command, env=env | own, check=False).returncode
        host, port = environment.address(env)
        environment.require_free_port(host, port)
        local = not environment.has_provider(env)
        if local and installed:
            raise LaunchError(f"no provider is configured: set {PROVIDER}")
        if not installed:
            files = [install.BASE, *([install.EMBEDDED] if store else []), *([install.LOCAL] if local else [])]
            python = install.ensure_environment(ROOT, files)
            if python != sys.executable:
                _go_on_with(python, outside, started)
        group.grace = environment.graceful_timeout(env) + 5
        if store:
            held.enter_context(store.held())
        os.environ.update(env | own)
        sys.path.insert(0, str(ROOT))
        import manage

        manage.patch()  # before the first process starts: gevent's loop would take the status of others
        if local:
            model_port = _start_local_model(group)
        _prepare(group, store)
        if store and store.settings() != own:  # the first start, or another database: its sockets were not known
            group.stop()
            held.close()
            _go_on_with(sys.executable, outside, started)
        if local:
            say(f"No provider is configured: a small demo model answers, often wrongly. Set {PROVIDER}.")
            _wait_for(group, "the local model", "127.0.0.1", model_port, "/v1/models")  # or early calls would fail
        _start_all(group, store)
        _wait_for(group, "the server", _shown(host), port, "/health/live")
        _welcome(f"http://{_shown(host)}:{port}", env, time.monotonic() - started)
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


def _go_on_with(python: str, outside: Mapping[str, str], started: float) -> NoReturn:
    """Start this script again in this process, with the environment that it was given."""
    atexit._run_exitfuncs()  # they remove the metrics' folder
    env = {**outside, "PYTHONUNBUFFERED": "1", BEGAN: str(started)}
    os.execve(python, [python, str(sys.modules["__main__"].__file__)], env)  # noqa: S606


def _start_local_model(group: Group) -> int:
    """Start the small model that a package ships, and return its port."""
    install.ensure_debian_package(ROOT, "libgomp1")
    port = environment.free_port()
    os.environ["LOCAL_MODEL_URL"] = f"http://127.0.0.1:{port}/v1"
    command = [sys.executable, "manage.py", "local_model", "--port", str(port)]
    patient = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # threads don't spin: 30 times faster on a busy machine
    group.start("the local model", command, patient, ROOT / "var" / "log" / "local_model.log")
    return port


def _prepare(group: Group, store: Valkey | None) -> None:
    """Load the platform, and prepare the database."""
    import manage

    manage.load(serves=True)
    from aiapi.server import load

    load()
    group.run("manage.py prepare", partial(manage.run, "prepare", *([str(store.installation)] if store else [])))


def _start_all(group: Group, store: Valkey | None) -> None:
    import manage

    if store:
        store.start(group, sys.executable)
    group.fork("the worker", partial(manage.run, "worker"))
    group.fork("the server", partial(manage.run, "serve", "--checked"))


def _wait_for(group: Group, what: str, host: str, port: int, path: str) -> None:
    group.wait_until(lambda: _answers(host, port, path), timeout=START_TIMEOUT, what=what)


def _answers(host: str, port: int, path: str) -> bool:
    import http.client  # not earlier: gevent has to patch what it imports

    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
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


def _welcome(base: str, env: Mapping[str, str], seconds: float) -> None:
    """Print where everything is, at every start."""
    user = env.get("ADMIN_USERNAME") or "admin"
    keys, key = "dev_key_123 (free), prod_key_456 (premium)", "dev_key_123"
    if env.get("ENVIRONMENT") == "production":
        keys, key = "make one: bin/run key create --account NAME --tier free --name NAME", "YOUR_KEY"
    model = f"""smollm2-135m-instruct, a small demo model that is often wrong:
               set {PROVIDER}, or add a provider: """
    if environment.has_provider(env):
        model = f"{env.get('OPENAI_MODEL') or 'gpt-3.5-turbo'} by default; add providers: "
    say(f"""
AI API is ready after {seconds:.0f} seconds.

  Admin        {base}/admin/
               user {user}; its password was printed once, at the first start
               (a new one: bin/run changepassword {user})
  Playground   {base}/playground/
  API docs     {base}/docs
  Keys         {keys}
  Model        {model}{base}/admin/inference/provider/add/
  Sample data  bin/run demo  (and bin/run demo --remove)
  Try          curl -s {base}/chat -H 'X-API-Key: {key}' -H 'Content-Type: application/json' \\
                 -d '{{"message": "Write a short welcome to a new developer."}}'

Ctrl-C stops everything.
""")
