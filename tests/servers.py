"""Real servers for end-to-end tests: the platform as `bin/run` starts it, its stores, a fake provider, a browser.

Each is a context manager that hands over something that answers, and leaves nothing behind.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import redis as redis_client
from playwright.sync_api import Browser, sync_playwright

from accounts.limits.scripts import records_stream
from accounts.limits.types import SHARDS
from launch.environment import free_port
from launch.install import chromium
from launch.valkey import Valkey
from tests.answers import Answer
from tests.manager import manager
from tests.processes import Process, spawn, stop, tail, wait_until
from tests.stores import redis_server

ROOT = Path(__file__).resolve().parents[1]
PEPPER = "p" * 25 + "0123456789abcde"
SECRETS = {"SECRET_KEY": "k" * 25 + "0123456789abcdefghijklmnopqrstuvwxyz", "API_KEY_PEPPERS": PEPPER}

#: The paths whose answers tell of records.
READING_RECORDS = ("/stats", "/usage", "/requests", "/admin")

#: Debian's Chromium as root, and silent on the network apart from the page it is told to open.
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Service:
    """A running platform; `log` has what all its processes printed.

    One with an `ingested` store (its URL) has a worker beside it: what reads records waits until they are written.
    """

    port: int
    env: dict[str, str]
    log: Path
    process: Process
    folder: Path = ROOT
    ingested: str = ""

    @property
    def base_url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str = "",
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """Send one request on a connection of its own; a body that is not bytes goes as JSON, a key as X-API-Key."""
        label = uuid.uuid4().hex
        sent = {"X-Request-ID": label, **({"X-API-Key": key} if key else {}), **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        if method == "GET" and path.startswith(READING_RECORDS):
            self.await_records()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read(), sent["X-Request-ID"])
        except TimeoutError as error:
            error.add_note(f"the log of the server that did not answer:\n{tail(self.log)}")
            raise
        finally:
            connection.close()

    def manage(self, *arguments: str) -> str:
        """Run a management command in the platform's environment and return what it printed; fail with its output."""
        self.await_records()
        return _manage(self.env, self.folder, *arguments)

    def await_records(self) -> None:
        """Wait until what was recorded before is in the database, where a worker runs beside the platform."""
        if self.ingested:
            wait_until(lambda: not self._waiting(), "the worker to ingest")

    def _waiting(self) -> int:
        """Count the records that wait to be ingested."""
        with redis_client.Redis.from_url(self.ingested) as client:
            pipeline = client.pipeline(transaction=False)
            for shard in range(SHARDS):
                pipeline.xlen(records_stream(shard))
            return sum(pipeline.execute())

    def create_key(self, *, account: str, tier: str, name: str, scopes: Sequence[str] = ()) -> str:
        """Make a key as an operator does and return its secret."""
        command = ["key", "create", "--account", account, "--tier", tier, "--name", name, "--json"]
        command += [part for scope in scopes for part in ("--scope", scope)]
        key: str = json.loads(self.manage(*command).strip().splitlines()[-1])["key"]
        return key

    def worker_pids(self) -> list[int]:
        """List the web workers that run now (the children of gunicorn's arbiter)."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def kill_worker(self, pid: int) -> None:
        """Kill a worker as the kernel does when memory is short, and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in self.worker_pids(), f"worker {pid} to be gone")

    def is_live(self) -> bool:
        """Tell whether /health/live answers 200; fail with the log when the process has ended."""
        assert self.process.poll() is None, f"it ended with status {self.process.returncode}:\n{tail(self.log)}"
        with suppress(OSError, http.client.HTTPException):
            return self.request("GET", "/health/live").status == http.HTTPStatus.OK
        return False


def start_worker(env: Mapping[str, str], log: Path, root: Path = ROOT) -> Process:
    """Run `manage.py worker`. Unless `env` says otherwise it only watches after an hour: tests look by themselves."""
    return _start("worker", {"WATCH_SECONDS": "3600", **env}, log, root)


@contextmanager
def running_worker(env: Mapping[str, str], log: Path) -> Iterator[Process]:
    """Run a worker beside a platform with these settings."""
    process = start_worker(env, log)
    try:
        yield process
    finally:
        stop(process, signal.SIGTERM)


def _start(command: str, env: Mapping[str, str], log: Path, root: Path, user: str | None = None) -> Process:
    """Start a command that goes on: in a fork, unless another folder, user or clock has to be there from its begin."""
    if root == ROOT and user is None and "LD_PRELOAD" not in env:
        forks = manager(serves=True) if command == "serve" else manager()
        return forks.start(env, log, command)
    return spawn([sys.executable, "manage.py", command], log, env=env, cwd=root, user=user)


@contextmanager
def aiapi_server(
    env: Mapping[str, str] | None = None,
    *,
    workers: int = 1,
    prepare: bool = True,
    root: Path = ROOT,
    user: str | None = None,
) -> Iterator[Service]:
    """Run the platform by `manage.py serve` on a free port, migrated and bootstrapped unless `prepare` is false.

    Without DATABASE_URL in `env` it has an SQLite file of its own, without REDIS_URL a Valkey and a worker, and
    without CACHE_URL it caches where its state is. Nothing of the caller's environment that the platform reads gets
    through: only `env` counts. It runs from the folder `root`, as `user` where that is given.
    """
    with tempfile.TemporaryDirectory(prefix="aiapi-service-") as folder, ExitStack() as stack:
        port, log = free_port(), Path(folder, "log")
        own = {"PORT": str(port), "WEB_CONCURRENCY": str(workers), "DATABASE_URL": f"sqlite:///{folder}/aiapi.sqlite3"}
        own["SHED_DELAY"] = "0"  # a busy machine would make any test's calls fail
        complete = {**clean_environment(), **SECRETS, **own, **(env or {})}
        has_own_store = "REDIS_URL" not in complete
        if has_own_store:
            complete["REDIS_URL"] = stack.enter_context(redis_server()).url
        if "+cluster" not in complete["REDIS_URL"]:
            complete.setdefault("CACHE_URL", complete["REDIS_URL"])
        if prepare:
            prepare_database(complete, root)
        process = _start("serve", complete, log, root, user)
        stack.callback(stop, process, signal.SIGTERM)
        if has_own_store:
            stack.callback(stop, start_worker(complete, log, root), signal.SIGTERM)
        ingested = complete["REDIS_URL"] if has_own_store else ""
        service = Service(port, complete, log, process, root, ingested)
        wait_until(service.is_live, "/health/live")
        wait_until(lambda: workers == 1 or len(service.worker_pids()) == workers, "all workers")
        yield service


@contextmanager
def launched(
    env: Mapping[str, str] | None = None,
    *,
    command: Sequence[str] = (sys.executable, "bin/run"),
    root: Path = ROOT,
    user: str | None = None,
) -> Iterator[Service]:
    """Run the whole of bin/run, or another command, on a free port, without anybody's .env, until it is ready.

    Its processes are a session of their own; a SIGINT to `service.process` is a Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="aiapi-launched-") as folder:
        port, log = free_port(), Path(folder, "log")
        own = {"PORT": str(port), "ENV_FILE": os.devnull, "DATABASE_URL": f"sqlite:///{folder}/aiapi.sqlite3"}
        complete = {**clean_environment(), **own, **(env or {})}
        process = spawn([*command], log, env=complete, cwd=root, user=user, session=True)
        service = Service(port, complete, log, process, root)
        try:
            wait_until(lambda: service.is_live() and "is ready" in log.read_text(), "bin/run to be ready", timeout=120)
            service.ingested = Valkey(root, complete).settings().get("REDIS_URL", "")
            yield service
        finally:
            stop(process, signal.SIGTERM)
            subprocess.run(["pkill", "-KILL", "--session", str(process.pid)], check=False)  # where a test killed it


@contextmanager
def local_model() -> Iterator[str]:
    """Run the local model on a free port and yield its base URL (that ends in /v1)."""
    with tempfile.TemporaryDirectory(prefix="aiapi-model-") as folder:
        port, log = free_port(), Path(folder, "log")
        command = [sys.executable, "manage.py", "local_model", "--port", str(port)]
        env = {**clean_environment(), "OMP_WAIT_POLICY": "passive"}  # as bin/run does
        process = spawn(command, log, env=env, cwd=ROOT)
        service = Service(port, {}, log, process)
        try:
            wait_until(lambda: _lists_models(service), "the local model")
            yield f"{service.base_url}/v1"
        finally:
            stop(process, signal.SIGTERM)


@contextmanager
def browser() -> Iterator[Browser]:
    """Run Debian's Chromium; `browser.new_page()` gives a page with no cookies."""
    path = chromium()
    assert path, "chromium is missing: bin/test installs it (Debian: apt-get install chromium)"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        try:
            yield launched
        finally:
            launched.close()


def clean_environment() -> dict[str, str]:
    """Return what any process needs of this one's environment, and no setting of the platform."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_START")
    return {"PYTHONUNBUFFERED": "1", **{name: os.environ[name] for name in kept if name in os.environ}}


def prepare_database(env: Mapping[str, str], root: Path = ROOT) -> None:
    """Migrate and bootstrap the database of an environment; a new SQLite file begins as a copy of a migrated one."""
    complete = {**clean_environment(), **SECRETS, **env}
    file = Path(complete["DATABASE_URL"].removeprefix("sqlite:///"))
    if root != ROOT or not file.is_absolute() or file.exists():
        _manage(complete, root, "prepare")
    else:
        shutil.copy(_migrated(), file)
        _manage(complete, root, "bootstrap")


@cache
def _migrated() -> Path:
    """Make the SQLite file of this session that is migrated, and nothing else."""
    folder = tempfile.mkdtemp(prefix="aiapi-migrated-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder, "aiapi.sqlite3")
    env = {**clean_environment(), **SECRETS, "DATABASE_URL": f"sqlite:///{file}"}
    _manage(env, ROOT, "migrate", "--verbosity", "0")
    return file


def _manage(env: Mapping[str, str], root: Path, *arguments: str) -> str:
    if root == ROOT and "LD_PRELOAD" not in env:  # a clock that a test moves is loaded when a process starts
        status, output, errors = manager().run(env, *arguments)
    else:
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(command, env=dict(env), cwd=root, capture_output=True, text=True, check=False)
        status, output, errors = done.returncode, done.stdout, done.stderr
    assert status == 0, f"manage.py {' '.join(arguments)}:\n{output}{errors}"
    return output


def _lists_models(service: Service) -> bool:
    assert service.process.poll() is None, f"the local model ended:\n{tail(service.log)}"
    with suppress(OSError, http.client.HTTPException):
        return service.request("GET", "/v1/models").status == http.HTTPStatus.OK
    return False
