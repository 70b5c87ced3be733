"""What every test can use: isolation, real stores, and the size of a proof. A skipped test fails the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import redis as redis_client
from django.conf import settings
from hypothesis import settings as hypothesis

from launch.checks import TIMED
from tests.stores import Postgres, Redis, postgres_server, redis_server

#: The slowest files, which start first: a late one would delay the end. Those that mostly wait come before the others.
LONGEST = (
    "tests/test_chaos.py",
    "tests/test_run.py",
    "tests/test_provider_states.py",
    "tests/test_watchers.py",
    "tests/test_provider_streams.py",
    "tests/test_provider_http.py",
    "tests/test_image.py",
    "tests/test_made_keys.py",
    "tests/test_idempotency.py",
    "tests/test_random_faults.py",
    "tests/test_workers.py",
    "tests/test_admin_browser.py",
    "tests/test_fault_matrix.py",
    "tests/test_codex.py",
    "tests/test_claude_code.py",
    "tests/test_ledger_check.py",
)
#: No time limit for an example: a busy machine would exceed it.
hypothesis.register_profile("untimed", deadline=None)
hypothesis.load_profile("untimed")
#: Marks a Redis database as one that tests may empty.
TESTS_OWN = "aiapi:owned-by-tests"


@pytest.fixture(scope="session")
def _redis_databases() -> Iterator[list[redis_client.Redis]]:
    """Connect to the Redis databases of the settings, which tests empty; end the session if one holds other data."""
    urls = sorted({settings.REDIS_URL, settings.CACHE_URL} - {""})
    clients = [redis_client.Redis.from_url(url) for url in urls]
    if any(client.dbsize() and not client.exists(TESTS_OWN) for client in clients):
        pytest.exit("REDIS_URL or CACHE_URL names a database that is not empty: tests would delete what it holds")
    yield clients
    for client in clients:
        client.flushdb()
        client.close()


@pytest.fixture(autouse=True, scope="session")
def _static_files_when_asked_for() -> None:
    """Look for static files when one is asked for: each test's client would list hundreds of them at its start."""
    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture(autouse=True, scope="session")
def _model_calls_by_their_own_middleware() -> None:
    """Let Django's test client pass model calls through the middleware that they have in the server (aiapi.wsgi)."""
    from django.test.client import ClientHandler

    from aiapi.wsgi import is_model_call, model_call_chain

    load_middleware = ClientHandler.load_middleware

    def load_both(self: ClientHandler, is_async: bool = False) -> None:
        load_middleware(self, is_async)
        pages, calls = self._middleware_chain, model_call_chain(self._get_response)
        self._middleware_chain = lambda request: (calls if is_model_call(request.method, request.path_info) else pages)(
            request
        )

    ClientHandler.load_middleware = load_both


@pytest.fixture(autouse=True)
def _isolated(_redis_databases: list[redis_client.Redis]) -> None:
    """Begin without what an earlier test left in Redis, in caches, or in this process."""
    from accounts.key_cache import key_cache
    from accounts.limits import reset_limits
    from core.cache import forget_outages
    from core.database import database_outage
    from core.redis.leases import leases
    from inference.catalog import catalog
    from inference.upstream.breaker import breakers
    from monitoring.selectors import recent_stats
    from operations.dashboard.data import recent_readings
    from operations.dashboard.sections import recent_rankings
    from operations.health import reachable_routes, recent_reports

    for client in _redis_databases:
        client.pipeline().flushdb().set(TESTS_OWN, 1).execute()
    known = (key_cache, catalog, breakers, leases)
    recent = (recent_reports, reachable_routes, recent_rankings, recent_readings, recent_stats)
    forgetting = [*(each.clear for each in recent), *(each.forget for each in known)]
    for forget in (reset_limits, forget_outages, database_outage.succeeded, *forgetting):
        forget()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """Run a Valkey of this session's own, which a test may crash and restart."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> str:
    """Return the URL of the Valkey that the settings use, in a database of this process's own."""
    return os.environ["REDIS_URL"]


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is held to seconds; put the longest first, then the others that start servers."""
    for item in items:
        if _file_of(item) in TIMED:
            item.add_marker(pytest.mark.timed)
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(_file_of(item), len(LONGEST) + (not _file_of(item).startswith("tests/"))))


def _file_of(item: pytest.Item) -> str:
    return item.path.relative_to(item.config.rootpath).as_posix()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have to tell: `record_property("told", ...)`."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, ())]
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "told" and report.when == "call":
                terminalreporter.write_line(str(value))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session when a test was skipped: what is not run proves nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line("skipped tests count as failures here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
