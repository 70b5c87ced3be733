"""A pytest plugin: the stores of the tests that run in pytest's own process, a PostgreSQL and a Valkey out of wheels.

The environment may name others: DATABASE_URL, REDIS_URL, CACHE_URL, or TEST_DATABASE_URL and TEST_REDIS_URL. Django's
settings are read before any conftest is loaded, so all is done when the plugin is imported. Parallel test processes
share the servers of the one that started them: pytest-django gives each an SQL database of its own, and here each gets
a database of Valkey's.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

# Plugins are imported before `pythonpath` of pyproject.toml takes effect.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bin"))

from tests.stores import postgres_server, redis_server


def own_database(url: str, worker: str) -> str:
    """Return the URL with the database number of a pytest-xdist worker (`gw0` is 1, `gw1` is 2, none is 0)."""
    number = int(worker.removeprefix("gw")) + 1 if worker else 0
    return urlunsplit(urlsplit(url)._replace(path=f"/{number}"))


def provide_stores(env: os._Environ[str]) -> None:
    """Start what the environment does not name, until this process ends, and name it there."""
    servers = ExitStack()
    atexit.register(servers.close)
    if not env.get("DATABASE_URL"):
        env["DATABASE_URL"] = env.get("TEST_DATABASE_URL") or servers.enter_context(postgres_server()).create_database()
    if not env.get("REDIS_URL"):
        env["REDIS_URL"] = env.get("TEST_REDIS_URL") or servers.enter_context(redis_server()).url
    if not env.get("CACHE_URL"):
        env["CACHE_URL"] = env["REDIS_URL"]


worker_name = os.environ.get("PYTEST_XDIST_WORKER", "")
if not worker_name:
    provide_stores(os.environ)
for name in ("REDIS_URL", "CACHE_URL"):
    os.environ[name] = own_database(os.environ[name], worker_name)
