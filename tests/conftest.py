"""Servers for the end-to-end tests, started once a session where sharing them is safe."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import redis
from playwright.sync_api import Browser, Page

from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import api, handler, upstream
from tests.running import (
    CHAT,
    EMBEDDER,
    EMBEDDINGS,
    MODEL,
    SHORT,
    Model,
    Platform,
    ScriptedProvider,
    Served,
    running_platform,
    scripted_provider,
)
from tests.servers import Service, aiapi_server, browser, prepare_database, running_worker
from tests.sites import SITE_SETTINGS, WORKERS, Site
from tests.stores import Postgres, Redis, redis_server

__all__ = ["api", "handler", "upstream"]


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeUpstream]:
    """Run the fake provider that `service` calls."""
    with FakeUpstream() as server:
        yield server


@pytest.fixture(scope="session")
def service(fake: FakeUpstream) -> Iterator[Service]:
    """Run the platform on SQLite and a Valkey of its own against the fake provider."""
    with aiapi_server(settings_of(fake)) as server:
        yield server


@pytest.fixture(scope="session")
def provider() -> Iterator[ScriptedProvider]:
    """Run the provider of `platform`, which answers what tests script."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="session")
def providers(provider: ScriptedProvider) -> Iterator[dict[str, ScriptedProvider]]:
    """Return a provider of each style: that of `platform`, and one like Anthropic."""
    with scripted_provider() as running:
        yield {"openai": provider, "anthropic": running}


@pytest.fixture(scope="session")
def spare() -> Iterator[ScriptedProvider]:
    """Run the provider of its second deployments."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="session")
def platform(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run the platform that tests share: with short waits, and two models which they let nothing happen to."""
    served = [Served(MODEL, [provider.base_url]), Served(EMBEDDER, [provider.base_url], kind="embedding")]
    with running_platform({**prepared(), **SHORT}, served) as running:
        yield running


@pytest.fixture(scope="session")
def make_model(platform: Platform, provider: ScriptedProvider, spare: ScriptedProvider) -> Callable[..., Model]:
    """Return what makes a model that an endpoint takes, at the shared platform."""

    def made(kind: str) -> Iterator[Model]:
        at = [provider.base_url, spare.base_url]
        for begin in itertools.count(0, 50):
            names = [f"{kind}-{begin + number}" for number in range(50)]
            alone = [Served(name, at[:1], kind=kind) for name in names]
            platform.add([*alone, *(Served(f"{name}-spared", at, kind=kind) for name in names)], account=names[0])
            yield from (Model(platform, provider, spare, name, f"{name}-spared") for name in names)

    pools = {kind: made(kind) for kind in ("chat", "embedding")}
    return lambda path=CHAT: next(pools["embedding" if path == EMBEDDINGS else "chat"])


@pytest.fixture
def model(make_model: Callable[..., Model]) -> Model:
    """Make a model for chats."""
    return make_model()


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
    prepare_database({**settings_of(fake), "DATABASE_URL": template})
    name = template.rpartition("/")[2]
    return lambda: {**settings_of(fake), "DATABASE_URL": postgres.create_database(name)}


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
        with aiapi_server(env, workers=WORKERS, prepare=False) as running, running_worker(running.env, log):
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


def settings_of(fake: FakeUpstream) -> dict[str, str]:
    """Return the settings that make the fake provider the platform's."""
    return {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-of-the-fake-provider"}


@pytest.fixture
def at_work(
    prepared: Callable[[], dict[str, str]], fake: FakeUpstream, postgres: Postgres, own_redis: Redis
) -> Iterator[Site]:
    """Run a platform of two web workers and no worker, so that records wait until one runs."""
    fake.reset()
    with aiapi_server({**prepared(), "REDIS_URL": own_redis.url}, workers=2, prepare=False) as service:
        yield Site(service, fake, own_redis, postgres)
    fake.reset()
    redis.Redis.from_url(own_redis.url).flushall()
