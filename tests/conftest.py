"""Servers for the end-to-end tests, started once a session where sharing them is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page

from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import api, handler, upstream
from tests.ledgers import ingester
from tests.servers import (
    Postgres,
    Redis,
    Service,
    aiapi_server,
    browser,
    fake_upstream,
    prepare_database,
    redis_server,
)
from tests.sites import SITE_SETTINGS, WORKERS, Site

__all__ = ["api", "handler", "upstream"]


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeUpstream]:
    """Run the fake provider that `service` and `full_service` call."""
    with fake_upstream() as server:
        yield server


@pytest.fixture(scope="session")
def service(fake: FakeUpstream) -> Iterator[Service]:
    """Run the platform on SQLite and a Valkey of its own against the fake provider."""
    with aiapi_server(provider(fake)) as server:
        yield server


@pytest.fixture(scope="session")
def full_service(prepared: Callable[[], dict[str, str]], redis: Redis) -> Iterator[Service]:
    """Run the platform on PostgreSQL and Redis with two workers against the fake provider."""
    with aiapi_server({**prepared(), "REDIS_URL": redis.url}, workers=2, prepare=False) as server:
        yield server


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    """Run a Redis of a module's own: records and limits of other platforms have no place in it."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def prepared(fake: FakeUpstream, postgres: Postgres) -> Callable[[], dict[str, str]]:
    """Return a function that gives the settings of the fake provider and of a new database that has all it needs.

    For `aiapi_server(settings, prepare=False)`: to migrate takes longer than to copy what was migrated once.
    """
    template = postgres.create_database()
    prepare_database({**provider(fake), "DATABASE_URL": template})
    name = template.rpartition("/")[2]
    return lambda: {**provider(fake), "DATABASE_URL": postgres.create_database(name)}


@pytest.fixture(scope="session")
def shared_site(
    prepared: Callable[[], dict[str, str]],
    fake: FakeUpstream,
    postgres: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Run a platform of four web workers and a worker on a Redis of its own."""
    with redis_server() as server:
        env = {**prepared(), **SITE_SETTINGS, "REDIS_URL": server.url}
        log = tmp_path_factory.mktemp("site") / "worker.log"
        with aiapi_server(env, workers=WORKERS, prepare=False) as running, ingester(running, log):
            yield Site(running, fake, server, postgres)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """Return that platform, with a provider that answers at once."""
    shared_site.fake.reset()
    yield shared_site
    shared_site.fake.reset()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Run a real browser; only a module's time, since playwright's event loop forbids Django's ORM meanwhile."""
    with browser() as launched:
        yield launched


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """Open a page without cookies or history, 1440 pixels wide."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    yield context.new_page()
    context.close()


def provider(fake: FakeUpstream) -> dict[str, str]:
    """Return the settings that make the fake provider the platform's."""
    return {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-of-the-fake-provider"}
