"""What every test can use: real stores, and the size of a proof. A skipped test fails the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.stores import Postgres, Redis, postgres_server, redis_server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """Run a real Redis server of this session's own, which a test may crash and restart."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a real Redis: the one that the settings use where they use one, else a server of our own."""
    url: str = os.environ.get("REDIS_URL") or request.getfixturevalue("redis").url
    return url


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run a real PostgreSQL server of this session's own."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def scale() -> Callable[[int, int], int]:
    """Choose the size of a heavy proof: scale(bounded, full) is the second under `bin/test --full` (FULL=1)."""
    full_size = os.environ.get("FULL") == "1"
    return lambda bounded, full: full if full_size else bounded


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session when a test was skipped: what is not run proves nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line("skipped tests count as failures here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
