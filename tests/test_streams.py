"""Streams on the real platform: nothing is held back, nothing is lost when one breaks off, nobody pays for silence."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from inference.fake_provider import FakeUpstream
from tests.answers import data_of, said
from tests.catalogue import Served, record_of, set_up
from tests.processes import wait_until
from tests.servers import Service, aiapi_server
from tests.streams import Stream, asked

FIRST_BYTE = 1.0
KEEP_ALIVE = 0.5
FAST = {
    "STREAM_FIRST_BYTE_SECONDS": str(FIRST_BYTE),
    "STREAM_KEEP_ALIVE_SECONDS": str(KEEP_ALIVE),
    "UPSTREAM_IDLE_TIMEOUT": "2",
    "UPSTREAM_TIMEOUT": "8",
}
MODEL = "streamed"
HELLO = "You said: hello there"


@dataclass
class Platform:
    """A platform and its provider."""

    service: Service
    fake: FakeUpstream
    key: str

    def stream(self, text: str = "hello there", **more: Any) -> Stream:
        """Ask for a stream of a chat completion, and wait for its headers."""
        stream = Stream(self.service, asked(MODEL, text, **more), key=self.key)
        stream.answer()
        return stream

    def standing(self) -> dict[str, int]:
        """Return the caller's reserved tokens and open slots."""
        limits = self.service.request("GET", "/usage", key=self.key).json()["limits"]
        return {each["name"]: each["used"] for each in limits if each["owner"] == "key"}


@pytest.fixture(scope="module")
def served(fake: FakeUpstream, prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    with aiapi_server({**prepared(), **FAST}, prepare=False) as service:
        key = set_up(service, [Served(MODEL, [fake.base_url])], concurrent_requests=4)
        yield Platform(service, fake, key)


@pytest.fixture
def platform(served: Platform) -> Iterator[Platform]:
    """Return the platform with a provider without a past."""
    served.fake.reset()
    yield served
    served.fake.reset()


def test_it_forwards_each_chunk_as_soon_as_it_comes(platform: Platform) -> None:
    """When the client reads a word, the provider has not sent the next: nothing waits for what follows it."""
    platform.fake.set(chunk_interval_ms=500, tokens=4)
    stream = platform.stream()
    sent, read = [], 0
    for _, line in stream.lines():
        read += bool(said(line))
        sent.append((read, platform.fake.billed[-1].completion_tokens))
    assert read == 4
    assert [each for each in sent if each[1] > each[0]] == []
    assert sent[0][0] == 0, "not even what comes before the first word waits for it"


def test_it_tells_the_tokens_that_it_leaves_to_others(platform: Platform) -> None:
    key = set_up(platform.service, [], account="metered", tokens_per_minute=100_000)
    stream = Stream(platform.service, asked(MODEL, max_tokens=500), key=key)
    told = int(stream.answer().headers["x-ratelimit-remaining-tokens"])
    assert 99_000 < told <= 100_000 - 500
    assert said(stream.text()) == HELLO


def test_it_loses_nothing_of_what_a_slow_client_reads(platform: Platform) -> None:
    platform.fake.set(tokens=20_000)
    key = set_up(platform.service, [], account="long", max_output_tokens=20_000)
    stream = Stream(platform.service, asked(MODEL, "slow", max_tokens=20_000), key=key)
    answer = stream.answer()
    text = b""
    while piece := answer.read1(4096 if len(text) < 100_000 else 1 << 20):
        text += piece
        time.sleep(0.02 if len(text) < 100_000 else 0)
    assert len(text) > 4_000_000, "more than the buffers of the sockets hold"
    assert text.endswith(b"data: [DONE]\n\n")
    assert len(said(text.decode()).split()) == 20_000
    assert record_of(platform.service, stream.label).output_tokens == 20_000


def test_it_lets_nothing_on_the_way_buffer(platform: Platform) -> None:
    stream = Stream(platform.service, asked(MODEL), key=platform.key)
    answer = stream.answer()
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert answer.headers["X-Request-ID"] == stream.label
    assert "Content-Length" not in answer.headers
    assert answer.headers["Content-Encoding"] is None
    assert float(answer.headers["X-Process-Time"]) < 1
    assert "upstream" in answer.headers["Server-Timing"]
    assert said(stream.text()) == HELLO
    record = record_of(platform.service, stream.label)
    assert (record.status, record.usage_source, record.is_partial, record.cache) == (200, "provider", False, "bypass")
    assert (record.input_tokens, record.output_tokens) == (2, 4)
    assert record.first_token_ms
    assert platform.fake.requests[-1].body["stream_options"] == {"include_usage": True}


def test_it_keeps_a_silent_connection_alive(platform: Platform) -> None:
    platform.fake.set(chunk_interval_ms=700, tokens=1)
    text = platform.stream().text()
    assert text.count(": keep-alive\n\n") >= 2
    assert said(text) == "You"


def test_it_sends_keep_alives_before_the_first_byte_too(platform: Platform) -> None:
    platform.fake.set(first_token_ms=2500)
    stream = platform.stream()
    assert stream.headed_at - stream.asked_at == pytest.approx(FIRST_BYTE, abs=0.5)
    text = stream.text()
    assert text.startswith(": keep-alive\n\n")
    assert said(text) == HELLO


def test_it_sends_a_failure_after_the_headers_as_an_event(platform: Platform) -> None:
    platform.fake.set(faults={"http_401": 1}, latency_ms=1500)
    stream = Stream(platform.service, asked(MODEL), key=platform.key)
    assert stream.answer().status == 200
    events = data_of(stream.text())
    assert events[-1]["error"]["code"] == "upstream_failed"
    record = record_of(platform.service, stream.label)
    assert (record.status, record.is_partial, record.cost) == (502, False, 0)


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_it_notices_within_a_second_that_a_client_has_left(platform: Platform, half: bool) -> None:
    platform.fake.set(chunk_interval_ms=50, tokens=400)
    before = platform.standing()
    stream = platform.stream(max_tokens=500)
    for (_, line), _ in zip(stream.lines(), range(4), strict=False):
        assert line
    assert platform.standing() != before
    left_at = stream.leave(half=half)
    wait_until(lambda: platform.fake.billed[-1].outcome == "client_left", "the provider's stream to be closed", 5)
    assert (platform.fake.billed[-1].ended_at or 0) - left_at < 1
    record = record_of(platform.service, stream.label)
    assert (record.status, record.error_code, record.is_partial) == (499, "client_left", True)
    assert record.usage_source == "estimated"
    assert 3 <= record.output_tokens <= 40
    after = platform.standing()
    assert after["concurrent_requests"] == before["concurrent_requests"] == 0


@pytest.mark.parametrize("fault", ["", "stall"])
def test_it_notices_it_while_the_provider_is_silent(platform: Platform, fault: str) -> None:
    platform.fake.set(chunk_interval_ms=0 if fault else 1800)
    if fault:
        platform.fake.fail_next(fault)
    stream = platform.stream()
    next(stream.lines())
    left_at = stream.leave()
    wait_until(lambda: platform.fake.billed[-1].outcome == "client_left", "the provider's stream to be closed", 5)
    assert (platform.fake.billed[-1].ended_at or 0) - left_at < 1
    assert record_of(platform.service, stream.label).error_code == "client_left"


def test_it_notices_it_in_the_pause_that_the_provider_asked_for(platform: Platform) -> None:
    platform.fake.set(faults={"http_429": 1}, retry_after=5)
    stream = Stream(platform.service, asked(MODEL), key=platform.key)
    wait_until(lambda: bool(platform.fake.requests), "the call to arrive", 5)
    stream.leave()
    wait_until(lambda: platform.standing()["concurrent_requests"] == 0, "the slot to be given back", 3)
    record = record_of(platform.service, stream.label)
    assert (record.error_code, record.attempts, record.cost) == ("client_left", 1, 0)


def test_it_notices_it_before_the_first_byte(platform: Platform) -> None:
    platform.fake.set(latency_ms=3000)
    stream = Stream(platform.service, asked(MODEL), key=platform.key)
    wait_until(lambda: bool(platform.fake.billed), "the call to arrive", 5)
    left_at = stream.leave()
    wait_until(lambda: platform.fake.billed[-1].outcome == "client_left", "the call to be broken off", 5)
    assert (platform.fake.billed[-1].ended_at or 0) - left_at < 1
    record = record_of(platform.service, stream.label)
    assert (record.error_code, record.output_tokens, record.is_partial) == ("client_left", 0, True)
    assert record.usage_source == "estimated"


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_it_lets_a_plain_call_run_to_its_end_without_its_client(platform: Platform, half: bool) -> None:
    platform.fake.set(latency_ms=700)
    stream = Stream(platform.service, {**asked(MODEL), "stream": False}, key=platform.key)
    wait_until(lambda: bool(platform.fake.billed), "the call to arrive", 5)
    stream.leave(half=half)
    assert not half or stream.answer().status == 200
    record = record_of(platform.service, stream.label)
    assert (record.status, record.output_tokens, record.usage_source) == (200, 4, "provider")


@pytest.mark.parametrize(("body", "headers"), [({"stream": True}, {}), ({}, {"Accept": "text/event-stream"})])
def test_it_streams_chat_too(platform: Platform, body: dict[str, bool], headers: dict[str, str]) -> None:
    sent = {"message": f"hello {len(headers)}", "model": MODEL, **body}
    first, second = (Stream(platform.service, sent, key=platform.key, path="/chat", headers=headers) for _ in range(2))
    answers = []
    for stream in (first, second):
        answer = stream.answer()
        assert answer.headers["Content-Type"] == "text/event-stream"
        answers.append((answer.headers["X-Cache"], stream.text()))
    answers.sort(key=lambda answer: answer[0] != "MISS")  # either may be first at a worker
    assert answers[0][0] == "MISS"
    assert answers[1][0] in ("HIT", "COALESCED")
    for number, (_, text) in enumerate(answers):
        *deltas, done = data_of(text)
        assert text.count("event: delta\n") == len(deltas)
        assert "".join(delta["text"] for delta in deltas) == done["response"] == f"You said: hello {len(headers)}"
        assert done["cached"] is bool(number)
        assert done["tokens_used"] == 12  # the system message has six, the question two, the answer four


def test_it_sends_chat_s_errors_as_events_of_its_own(platform: Platform) -> None:
    platform.fake.set(chunk_interval_ms=20)
    platform.fake.fail_next("cut")
    stream = Stream(
        platform.service, {"message": "cut me", "model": MODEL, "stream": True}, key=platform.key, path="/chat"
    )
    stream.answer()
    text = stream.text()
    assert "event: error\n" in text
    assert data_of(text)[-1] == {
        "detail": "The model provider failed to answer.",
        "code": "upstream_failed",
        "request_id": stream.label,
    }


def test_it_replays_a_hit_as_a_stream_that_costs_nothing(platform: Platform) -> None:
    texts, costs = [], []
    for outcome in ("MISS", "HIT"):
        stream = Stream(platform.service, asked(MODEL, "replayed", temperature=0), key=platform.key)
        told = stream.answer().headers
        assert told["X-Cache"] == outcome
        assert told["X-Cost-USD"] == (None if outcome == "MISS" else "0.000000000")
        texts.append(stream.text())
        record = record_of(platform.service, stream.label)
        assert record.cache == outcome.lower()
        assert bool(record.cost) is (outcome == "MISS")
        costs.append(record.cost - record.saved_cost)
    assert costs[0] == -costs[1] > 0
    assert texts[0] == texts[1]
    assert len(platform.fake.billed) == 1


def test_it_keeps_followers_alive_and_replays_the_leader_s_answer(platform: Platform) -> None:
    platform.fake.set(chunk_interval_ms=400, tokens=5)
    body = asked(MODEL, "followed", temperature=0)
    leader = Stream(platform.service, body, key=platform.key)
    leader.answer()
    follower = Stream(platform.service, body, key=platform.key)
    answer = follower.answer()
    assert answer.status == 200
    assert follower.headed_at - follower.asked_at < FIRST_BYTE + 0.5
    assert answer.headers["X-Cache"] == "COALESCED"
    assert answer.headers["X-Cost-USD"] is None, "it may still have to make the call itself"
    text = follower.text()
    assert text.startswith(": keep-alive\n\n")
    assert text.replace(": keep-alive\n\n", "") == leader.text().replace(": keep-alive\n\n", "")
    assert len(platform.fake.billed) == 1
    record = record_of(platform.service, follower.label)
    assert (record.cache, record.cost, record.status) == ("coalesced", 0, 200)
    assert record.saved_cost == record_of(platform.service, leader.label).cost > 0


def test_it_replays_a_stream_under_its_idempotency_key_and_records_what_that_saved(platform: Platform) -> None:
    headers = {"Idempotency-Key": "streamed-once"}
    texts, labels = [], []
    for replays in (None, "true"):
        stream = Stream(platform.service, asked(MODEL, "replayed by key"), key=platform.key, headers=headers)
        told = stream.answer().headers
        assert (told["X-Model"], told["X-Fallback"], told["Idempotency-Replayed"]) == (MODEL, "false", replays)
        texts.append(stream.text())
        labels.append(stream.label)
    assert texts[0] == texts[1]
    assert len(platform.fake.billed) == 1
    billed, replayed = (record_of(platform.service, label) for label in labels)
    assert (replayed.cache, replayed.model, replayed.cost) == ("replay", MODEL, 0)
    assert replayed.saved_cost == billed.cost > 0


def test_it_goes_on_for_followers_when_the_leader_s_client_leaves(platform: Platform) -> None:
    platform.fake.set(chunk_interval_ms=300, tokens=5)
    body = asked(MODEL, "left behind", temperature=0)
    leader = Stream(platform.service, body, key=platform.key)
    leader.answer()
    follower = Stream(platform.service, body, key=platform.key)
    time.sleep(0.3)
    leader.leave()
    follower.answer()
    assert data_of(follower.text())[-1] == "[DONE]"
    assert [call.outcome for call in platform.fake.billed] == ["complete"]
    assert record_of(platform.service, leader.label).status == 200


def test_it_keeps_the_assembled_answer_where_an_account_s_content_is_logged(platform: Platform) -> None:
    platform.service.manage(
        "shell", "-c", "from accounts.models import Account; Account.objects.update(logs_content=True)"
    )
    time.sleep(1)  # what the worker knows of the key grows old
    stream = platform.stream("please repeat me")
    stream.text()
    kept = "from monitoring.models import RequestContent as R; print([[r.prompt, r.answer] for r in R.objects.all()])"
    seen: list[str] = []

    def is_there() -> bool:
        seen[:] = [platform.service.manage("shell", "-c", kept)]
        return "You said: please repeat me" in seen[0]

    wait_until(is_there, "the content of a stream", 20)
    assert seen[0].count("please repeat me") == 2  # once as it was asked, once in the answer, and no piece of it twice
    platform.service.manage(
        "shell", "-c", "from accounts.models import Account; Account.objects.update(logs_content=False)"
    )


def test_it_ends_open_streams_in_order_when_the_worker_is_told_to(
    fake: FakeUpstream, prepared: Callable[[], dict[str, str]]
) -> None:
    fake.reset()
    with aiapi_server({**prepared(), **FAST, "GRACEFUL_TIMEOUT": "2"}, prepare=False) as service:
        key = set_up(service, [Served(MODEL, [fake.base_url])])
        fake.set(chunk_interval_ms=100, tokens=10)
        short = Stream(service, asked(MODEL), key=key)
        short.answer()
        fake.set(tokens=1000)
        long = Stream(service, asked(MODEL, max_tokens=2000), key=key)
        long.answer()
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert data_of(short.text())[-1] == "[DONE]"
        assert data_of(long.text())[-1]["error"]["code"] == "unavailable"
        assert 1.5 < time.monotonic() - began < 4
        service.process.wait(10)
        assert time.monotonic() - began < 8
        assert record_of(service, short.label).status == 200
        record = record_of(service, long.label)
        assert (record.status, record.is_partial, record.usage_source) == (503, True, "estimated")
        assert 10 < record.output_tokens < 60
    assert [call.outcome for call in fake.billed] == ["complete", "client_left"]
    fake.reset()
