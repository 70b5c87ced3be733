"""What tests of the API share: a caller, the fake provider as the platform's own, the records, the log.

A conftest imports the fixtures that its tests use.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from django.conf import LazySettings
from django.test import Client
from django.test.client import ClientHandler

from accounts.limits import _backend, _installed
from accounts.tests.factories import Cast, IssuedKey, make_cast, make_key, make_tier
from accounts.tests.limits_fixtures import Clock, limits_on
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.seeds import provider_seed
from monitoring.ingester import Ingester
from monitoring.models import RequestRecord
from monitoring.recorder import write_record

if TYPE_CHECKING:
    from django.test.client import _MonkeyPatchedWSGIResponse as TestResponse

PROVIDER_SECRET = "sk-of-the-fake-provider"
PROMPT = "zanzibar seventeen"
MODEL = "gpt-3.5-turbo"

Records = Callable[[], list[RequestRecord]]
LogLines = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Api:
    """A caller with a key of its own, to whom an exception of the server is an answer of status 500."""

    key: IssuedKey
    client: Client

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        """Post a body: bytes as they are, anything else as JSON. See `send` for the options."""
        return self.send("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        """Get a path. See `send` for the options."""
        return self.send("GET", path, None, **options)

    def chat(self, message: Any = PROMPT, *, headers: Mapping[str, str] | None = None, **fields: Any) -> TestResponse:
        """Post to /chat."""
        return self.post("/chat", {"message": message, **fields}, headers=headers)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        **environ: Any,
    ) -> TestResponse:
        """Send a request with this caller's key, another one, or (None) without."""
        sent = dict(headers or {})
        if key is not None:
            sent["X-API-Key"] = key or self.key.plain
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return self.client.generic(method, path, data, content_type, headers=sent, **environ)

    def of(self, key: IssuedKey) -> Api:
        """Return another caller of the same server."""
        return Api(key, self.client)


@pytest.fixture
def cast(db: None) -> Cast:
    """Make everybody whom a test should meet: owner, colleague, stranger, revoked, expired, disabled."""
    return make_cast()


@pytest.fixture(scope="session")
def handler() -> ClientHandler:
    """Return the server behind the clients of all tests: making it lists every static file."""
    return Client().handler


@pytest.fixture
def api(db: None, handler: ClientHandler) -> Api:
    """Return a caller of an account of its own, with 5 requests a minute."""
    client = Client(raise_request_exception=False)
    client.handler = handler
    return Api(make_key(name="caller"), client)


@pytest.fixture
def roomy(api: Api) -> Api:
    """Return a caller of the same account whom no limit stops."""
    return api.of(
        make_key(account=api.key.key.account, name="roomy", tier=make_tier("roomy", requests_per_minute=None))
    )


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeUpstream]:
    """Run the fake provider on a real socket."""
    with FakeUpstream() as server:
        yield server


@pytest.fixture
def upstream(
    db: None, fake: FakeUpstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeUpstream]:
    """Make the fake provider, with no past, the platform's own."""
    fake.reset()
    fake.set(api_key=PROVIDER_SECRET)
    settings.OPENAI_BASE_URL, settings.OPENAI_API_KEY, settings.OPENAI_MODEL = fake.base_url, PROVIDER_SECRET, ""
    monkeypatch.setenv("OPENAI_API_KEY", PROVIDER_SECRET)
    provider_seed(actor="command:test")
    catalog.forget()
    yield fake
    fake.reset()


@pytest.fixture
def records(db: None) -> Records:
    """Return a function that lists the request records, the oldest first, after whatever waits has been ingested."""

    def read() -> list[RequestRecord]:
        ingester = Ingester()
        ingester.run_once()
        ingester.client.close()
        return list(RequestRecord.objects.order_by("admitted_at", "id"))

    return read


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    """Return a function that reads what was logged since the test began, as the server would have written it."""
    stream = io.StringIO()
    monkeypatch.setattr("aiapi.logs.write_line", lambda line: stream.write(f"{line}\n"))
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            monkeypatch.setattr(handler, "stream", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def clock(db: None, settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Hold the limits by a clock that only the test moves."""
    stopped = Clock()
    seeder = _installed.seeder
    assert seeder is not None
    limits = limits_on(settings.REDIS_URL, seeder=seeder, sink=write_record, clock=stopped)
    monkeypatch.setattr(_backend, "_built", (os.getpid(), limits))
    return stopped
