"""A caller's W3C trace reaches the provider, also where the platform itself sends no traces anywhere."""

from __future__ import annotations

import sys

from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import Api

SENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}


def told(upstream: FakeUpstream) -> dict[str, str]:
    """Return what the provider was last told of a trace."""
    return {name: text for name, text in upstream.requests[-1].headers.items() if name in SENT}


def test_it_passes_the_callers_trace_on(api: Api, upstream: FakeUpstream) -> None:
    assert api.chat("with a trace", headers=SENT).status_code == 200
    assert told(upstream) == SENT


def test_it_passes_nothing_on_of_one_that_is_malformed_or_of_another_request(api: Api, upstream: FakeUpstream) -> None:
    api.chat("with a trace", headers=SENT)
    assert api.chat("malformed", headers={**SENT, "traceparent": "00-zz"}).status_code == 200
    assert told(upstream) == {}
    assert api.chat("without").status_code == 200
    assert told(upstream) == {}


def test_it_imports_nothing_of_opentelemetry_while_traces_are_off(api: Api, upstream: FakeUpstream) -> None:
    api.chat("without")
    assert "core.telemetry.otel" not in sys.modules
