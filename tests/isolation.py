"""A pytest plugin for bin/test (`-p tests.isolation`): parallel test processes don't share a Redis database.

Django's settings read REDIS_URL before any conftest is loaded, so it is changed here, when the plugin is imported.
pytest-django gives each process an SQL database of its own already.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit


def own_database(url: str, worker: str) -> str:
    """Return the URL with the database number of a pytest-xdist worker (`gw0` is 1, `gw1` is 2, none is 0)."""
    number = int(worker.removeprefix("gw")) + 1 if worker else 0
    return urlunsplit(urlsplit(url)._replace(path=f"/{number}"))


for name in ("REDIS_URL", "CACHE_URL"):
    if os.environ.get(name):
        os.environ[name] = own_database(os.environ[name], os.environ.get("PYTEST_XDIST_WORKER", ""))
