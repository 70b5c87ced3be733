"""OpenTelemetry's traces of a real server: what a collector gets of each request, and what the provider is told."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from inference.fake_provider import FakeUpstream
from tests.answers import Answer
from tests.collector import Collector, Span, collecting
from tests.conftest import settings_of
from tests.servers import aiapi_server
from tests.streams import Stream, asked

MODEL = "gpt-3.5-turbo"
SERVER, CLIENT = 2, 3
PROMPT = "xylophone zanzibar"
#: Longer than the test takes: what is collected was sent at the end of the process, which sends what waits.
SETTINGS = {
    "OTEL_SERVICE_NAME": "my-gateway",
    "OTEL_BSP_SCHEDULE_DELAY": "600000",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=let-me-in",
}
TRACE, PARENT = uuid.uuid4().hex, "b7ad6b7169203331"


@dataclass
class Traced:
    """What a server sent to its collector and to its provider in a short life."""

    collector: Collector
    key: str
    answer: Answer
    streamed: str
    sent: list[str]

    def request(self, label: str) -> Span:
        """Return the span of the request with an X-Request-ID."""
        (span,) = [each for each in self.collector.spans if each.attributes.get("aiapi.request_id") == label]
        return span

    def below(self, parent: Span) -> list[Span]:
        """Return the spans whose parent it is."""
        return [each for each in self.collector.spans if each.parent == parent.id]


@pytest.fixture(scope="module")
def traced(fake: FakeUpstream) -> Iterator[Traced]:
    """Let a server answer one request at the second attempt, stream one, refuse one, and end."""
    with collecting() as collector:
        env = {**settings_of(fake), **SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        with aiapi_server(env) as service:
            key = service.create_key(account="traced", tier="premium", name="first")
            fake.reset()
            fake.fail_next("http_500")
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1", "X-Request-ID": "first"}
            answer = service.request("POST", "/chat", {"message": PROMPT}, key=key, headers=headers)
            stream = Stream(service, asked(MODEL, PROMPT), key=key)
            stream.answer()
            stream.text()
            service.request("POST", "/chat", {"message": PROMPT}, key=f"{key}x", headers={"X-Request-ID": "refused"})
            service.request("GET", "/health")
            sent = [each.headers.get("traceparent", "") for each in fake.requests if each.method == "POST"]
        yield Traced(collector, key, answer, stream.label, sent)


def test_it_sends_traces_as_the_standard_variables_say(traced: Traced) -> None:
    assert traced.collector.paths == {"/v1/traces"}
    assert {headers["authorization"] for headers in traced.collector.headers} == {"let-me-in"}
    assert traced.collector.resource["service.name"] == "my-gateway"


def test_it_continues_the_callers_trace(traced: Traced) -> None:
    assert traced.answer.status == 200
    span = traced.request("first")
    assert (span.name, span.kind, span.trace, span.parent) == ("POST chat", SERVER, TRACE, PARENT)
    told = span.attributes
    assert (told["http.route"], told["http.response.status_code"]) == ("chat", 200)
    assert (told["gen_ai.request.model"], told["aiapi.cache"], told["aiapi.attempts"]) == (MODEL, "miss", 2)
    assert told["gen_ai.usage.output_tokens"] > 0


def test_it_has_a_span_for_each_stage_within_the_request(traced: Traced) -> None:
    span = traced.request("first")
    stages = [each for each in traced.below(span) if each.kind != CLIENT]
    assert {"cache", "flight", "limits", "upstream"} <= {each.name for each in stages}
    assert all(span.began <= each.began <= each.ended <= span.ended for each in stages)


def test_it_has_a_span_for_each_attempt_that_the_provider_is_told(traced: Traced) -> None:
    (upstream,) = [each for each in traced.below(traced.request("first")) if each.name == "upstream"]
    attempts = [each for each in traced.below(upstream) if each.kind == CLIENT]
    assert [(each.name, each.failed) for each in attempts] == [("call openai", True), ("call openai", False)]
    assert attempts[0].attributes["error.type"] == "upstream_failed"
    assert traced.sent[:2] == [f"00-{TRACE}-{each.id}-01" for each in attempts]


def test_it_begins_a_trace_of_its_own_for_a_stream_and_ends_it_with_that(traced: Traced) -> None:
    span = traced.request(traced.streamed)
    assert span.parent == ""
    assert span.attributes["gen_ai.usage.output_tokens"] > 0
    (upstream,) = [each for each in traced.below(span) if each.name == "upstream"]
    (attempt,) = [each for each in traced.below(upstream) if each.kind == CLIENT]
    assert traced.sent[2].startswith(f"00-{span.trace}-{attempt.id}-")


def test_it_tells_of_what_is_refused_and_not_of_probes(traced: Traced) -> None:
    assert traced.request("refused").attributes["http.response.status_code"] == 401
    assert {each.name for each in traced.collector.spans if each.kind == SERVER} == {
        "POST chat",
        "POST v1-chat-completions",
    }


def test_it_sends_no_key_prompt_or_answer(traced: Traced) -> None:
    bodies = b"".join(traced.collector.bodies)
    assert bodies
    for secret in (traced.key, PROMPT, traced.answer.json()["response"]):
        assert secret.encode() not in bodies
