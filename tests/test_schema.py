"""The OpenAPI document and the code agree: schemathesis makes requests of the one and judges the other's answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.conf import LazySettings
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from accounts.tests.factories import make_key, make_tier
from accounts.validators import SCOPES
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import Api

#: Requests made of each operation.
EXAMPLES = 15
#: Where a request that fits the document may be refused all the same: because of a key's state or the asking key's own
#: limits; for a time that is none, or a zone that nobody knows; and under /v1, where the document tells only what the
#: platform looks at of what OpenAI's reference has.
JUDGED_BY_MORE = ("/keys", "/usage", "/v1/")

schema = schemathesis.openapi.from_wsgi("/openapi.json", WSGIHandler())


@pytest.fixture(autouse=True)
def _open_connection() -> Iterator[None]:
    """Leave the test's transaction open after a request, as Django's own test client does."""
    signals = (request_started, request_finished)
    connected = [signal for signal in signals if signal.disconnect(close_old_connections)]
    yield
    for signal in connected:
        signal.connect(close_old_connections)


@pytest.fixture
def headers(api: Api, upstream: FakeUpstream, settings: LazySettings) -> dict[str, str]:
    """Return the headers of a caller whom no limit stops and who may do everything."""
    settings.FAILED_KEY_RATE = "100000/s"
    tier = make_tier("unlimited", requests_per_minute=None)
    return {"X-API-Key": make_key(account=api.key.key.account, tier=tier, scopes=list(SCOPES)).plain}


@schema.parametrize()
@hypothesis(max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck))
def test_it_answers_as_documented(case: Any, headers: dict[str, str]) -> None:
    if case.headers:
        case.headers.pop("Idempotency-Key", None)  # a case is judged by itself, not by what an earlier one sent
    is_judged_by_more = case.operation.path.startswith(JUDGED_BY_MORE)
    excluded = [positive_data_acceptance] if is_judged_by_more else []
    case.call_and_validate(headers=headers, excluded_checks=excluded)
