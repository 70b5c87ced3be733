"""docker compose with any POSTGRES_PASSWORD: PostgreSQL and the platform get the same one, letter by letter.

compose itself is not run: its file is filled in from a .env as compose does, and the command of `prepare` is run with
the result against a server that asks for the password, as PostgreSQL's protocol has it.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from tests.servers import ROOT, clean_environment
from tests.stores import Redis
from tests.test_deploy import compose

#: What stands in the .env beside the password.
ENV_FILE = {"SECRET_KEY": "s" * 64, "API_KEY_PEPPERS": "p" * 64, "OPENAI_API_KEY": "sk-none", "REDIS_PASSWORD": "12ab"}
PASSWORDS = ["plain", "a/b#c?d%41@:[x p w%ü+&="]
VARIABLE = re.compile(r"\$\{(\w+)(?::?([-?])([^}]*))?\}")
PLATFORM = ("api", "worker", "prepare")
ASKS_PASSWORD = struct.pack("!cii", b"R", 8, 3)
CODES_BEFORE_START = (80877103, 80877104)  # whether it speaks TLS, or GSSAPI


def filled_in(service: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return a service's environment, with the variables of compose's file filled in as compose does."""

    def value_of(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        assert values.get(name) or kind == "-", f"compose stops: {name} is missing"
        return values.get(name) or default

    environment = compose()["services"][service]["environment"]
    return {name: VARIABLE.sub(value_of, str(value)) for name, value in environment.items()}


class Door(ThreadingTCPServer):
    """A server that speaks enough of PostgreSQL's protocol to ask for a password; `told` are those it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        super().__init__(("127.0.0.1", 0), Asking)


class Asking(StreamRequestHandler):
    """Ask each that connects, and hang up."""

    server: Door

    def handle(self) -> None:
        code = CODES_BEFORE_START[0]
        while code in CODES_BEFORE_START:
            length, code = struct.unpack("!ii", self.rfile.read(8))
            self.rfile.read(length - 8)
            self.wfile.write(b"N" if code in CODES_BEFORE_START else ASKS_PASSWORD)
        head = self.rfile.read(5)
        if head[:1] == b"p":
            self.server.told.append(self.rfile.read(struct.unpack("!i", head[1:])[0] - 4).rstrip(b"\0").decode())


@pytest.mark.parametrize("password", PASSWORDS)
def test_it_gives_the_platform_the_password_that_postgres_has(password: str) -> None:
    values = {**ENV_FILE, "POSTGRES_PASSWORD": password}
    own = filled_in("postgres", values)["POSTGRES_PASSWORD"]
    with Door() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        env = filled_in("prepare", values)
        address = f"127.0.0.1:{server.server_address[1]}"
        env["DATABASE_URL"] = env["DATABASE_URL"].replace("postgres:5432", address)
        command = [sys.executable, "manage.py", "migrate", "--no-input"]
        complete = {**clean_environment(), **env}
        done = subprocess.run(command, cwd=ROOT, env=complete, capture_output=True, text=True, timeout=120, check=False)
        server.shutdown()
    assert server.told, done.stderr
    assert set(server.told) == {own} == {password}
    assert password not in done.stdout + done.stderr


@pytest.mark.parametrize("service", PLATFORM)
def test_it_writes_the_password_into_no_address(service: str) -> None:
    values = {**ENV_FILE, "POSTGRES_PASSWORD": "a/b#c?d"}
    env = filled_in(service, values)
    assert env["PGPASSWORD"] == "a/b#c?d"
    assert "a/b#c?d" not in env["DATABASE_URL"]


def test_it_runs_the_worker_which_gets_no_keys(prepared: Callable[[], dict[str, str]], own_redis: Redis) -> None:
    values = {**ENV_FILE, "POSTGRES_PASSWORD": "plain"}
    env = {**clean_environment(), **filled_in("worker", values), "DATABASE_URL": prepared()["DATABASE_URL"]}
    stores = {"REDIS_URL": own_redis.url, "CACHE_URL": f"{own_redis.url[:-1]}1", "OPENAI_API_KEY": ""}
    command = [sys.executable, *compose()["services"]["worker"]["command"][1:], "--once"]
    done = subprocess.run(
        command, cwd=ROOT, env={**env, **stores}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    ingested, checked, watched, pruned = done.stdout.splitlines()
    assert ingested == "Ingested 0 records."
    assert checked == "The rollups and the ledgers agree with the log."
    assert watched.endswith(" deliveries arrived.")
    assert pruned == "Pruned 0 rows."


def test_it_says_how_a_password_is_written_where_an_address_holds_it() -> None:
    env = {**clean_environment(), "DATABASE_URL": "postgresql://aiapi:a/b#c?d@postgres:5432/aiapi"}
    command = [sys.executable, "manage.py", "check"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    told = done.stdout + done.stderr
    assert done.returncode != 0
    assert "DATABASE_URL" in told
    assert "%2F" in told
    assert "a/b#c?d" not in told
