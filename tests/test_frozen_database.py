"""A database that freezes with its connections open: known keys are served, others told, and nobody waits for long."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from accounts.keys import generate_key
from launch.environment import free_port
from tests.catalogue import make
from tests.processes import READY_TIMEOUT, spawn, stop, wait_until
from tests.servers import ROOT, SECRETS, Service, aiapi_server, clean_environment
from tests.stores import Postgres, redis_server

KEYS = 6
#: Seconds in which everybody has an answer, on a machine that may be busy with other tests.
PROMPT = 2.0


@dataclass(frozen=True)
class Frozen:
    """Two servers on one database, of which one goes on with known keys without it; and those keys."""

    postgres: Postgres
    strict: Service
    patient: Service
    keys: list[str]

    def ask(self, service: Service, *, rounds: int = 1, key: str = "", within: float = PROMPT) -> list[int]:
        """Ask with every key at once, or so often with one; return the statuses, each of which came in time."""

        def one(plain: str) -> int:
            began = time.monotonic()
            answer = service.request("POST", "/chat", {"message": uuid.uuid4().hex}, key=plain)
            assert time.monotonic() - began < within
            assert answer.status == 200 or answer.json()["code"] == "dependency_unavailable"
            return answer.status

        with ThreadPoolExecutor(3 * KEYS) as pool:
            return list(pool.map(one, ([key] if key else self.keys) * rounds))


@contextmanager
def threaded_server(env: dict[str, str], log: Path) -> Iterator[Service]:
    """Run `manage.py runserver`, where requests are threads and not greenlets."""
    port = free_port()
    complete = {**clean_environment(), **SECRETS, **env}
    command = [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
    process = spawn(command, log, env=complete, cwd=ROOT)
    service = Service(port, complete, log, process)
    try:
        wait_until(service.is_live, "runserver")
        yield service
    finally:
        stop(process, 15)


@pytest.fixture(scope="module", params=["gevent", "threads"])
def frozen(
    request: pytest.FixtureRequest,
    prepared: Callable[[], dict[str, str]],
    postgres: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Frozen]:

    def serve(env: dict[str, str]) -> Any:
        if request.param == "gevent":
            return aiapi_server(env, prepare=False)
        return threaded_server(env, tmp_path_factory.mktemp("threaded") / "log")

    with redis_server() as redis:
        env = {**prepared(), "REDIS_URL": redis.url, "LOG_LEVEL": "WARNING"}
        with serve(env) as strict, serve({**env, "AUTH_STALE_SECONDS": "600"}) as patient:
            keys = {f"key-{n}": {"monthly_token_budget": 10**6} if n % 2 else {} for n in range(KEYS)}
            (owned,) = make(strict, [], ("frozen", {}, keys))
            yield Frozen(postgres, strict, patient, list(owned.plain.values()))


def test_it_serves_known_keys_and_refuses_others_while_the_database_is_frozen(
    frozen: Frozen, scale: Callable[[int, int], int]
) -> None:
    everybody = [200] * KEYS
    for service in (frozen.strict, frozen.patient):  # the first calls of a process import what they need
        assert frozen.ask(service, within=READY_TIMEOUT) == everybody
    unknown = generate_key("development")
    for _ in range(scale(1, 2)):
        time.sleep(1.1)  # the snapshots of the keys are a second old
        with frozen.postgres.frozen():
            assert frozen.ask(frozen.patient, rounds=2) == 2 * everybody
            assert set(frozen.ask(frozen.strict)) == {503}
            for service in (frozen.patient, frozen.strict):
                assert frozen.ask(service, rounds=3, key=unknown) == [503] * 3
                began = time.monotonic()
                assert service.request("GET", "/health").status == 503
                assert time.monotonic() - began < 2 * PROMPT
            for _ in range(4):
                assert frozen.ask(frozen.patient) == everybody
                time.sleep(0.5)
        wait_until(lambda: frozen.ask(frozen.strict) == everybody, "the strict one to ask it again", timeout=10)
        assert frozen.ask(frozen.patient, rounds=3) == 3 * everybody
        assert frozen.strict.request("GET", "/usage", key=frozen.keys[0]).status == 200
