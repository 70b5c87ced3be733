"""Idempotency-Key on model endpoints: one upstream call, one bill, one answer."""

from __future__ import annotations

import pytest

from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import MODEL, PROMPT, Api, Records

KEY = {"Idempotency-Key": "order-17"}


def test_it_answers_a_retry_from_the_first_answer(roomy: Api, upstream: FakeUpstream, records: Records) -> None:
    headers = {**KEY, "Cache-Control": "no-store"}
    first, again = (roomy.chat(headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert (again["Idempotency-Replayed"], again["X-Cost-USD"]) == ("true", "0.000000000")
    assert "Idempotency-Replayed" not in first
    assert len(upstream.requests) == 1
    assert sorted((each.cache, each.input_tokens > 0) for each in records()) == [("bypass", True), ("replay", False)]


def test_it_records_what_a_replay_saved(roomy: Api, upstream: FakeUpstream, records: Records) -> None:
    headers = {**KEY, "Cache-Control": "no-store"}
    for _ in range(2):
        roomy.chat(headers=headers)
    first, replay = records()
    assert (replay.cache, replay.model) == ("replay", MODEL)
    assert replay.cost == 0
    assert replay.saved_cost == (first.cost or 0) > 0


def test_it_saves_nothing_by_a_replay_of_what_cost_nothing(
    roomy: Api, upstream: FakeUpstream, records: Records
) -> None:
    roomy.chat()
    for _ in range(2):
        roomy.chat(headers=KEY)  # a hit, and its replay
        roomy.chat("", headers={"Idempotency-Key": "invalid"})
    saved = [(each.cache, each.saved_cost > 0) for each in records()]
    assert saved == [("miss", False), ("hit", True), ("", False), ("replay", False), ("replay", False)]


def test_it_counts_a_replay_as_a_request(api: Api, upstream: FakeUpstream) -> None:
    remaining = [api.chat(headers=KEY)["X-RateLimit-Remaining"] for _ in range(2)]
    assert remaining == ["4", "3"]


def test_it_refuses_the_key_for_another_body(roomy: Api, upstream: FakeUpstream) -> None:
    roomy.chat(headers=KEY)
    refused = roomy.chat("something else", headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
def test_it_takes_a_retry_that_accepts_something_else_for_the_same(
    roomy: Api, upstream: FakeUpstream, path: str
) -> None:
    body = {"message": "hi"} if path == "/chat" else {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    accepted = ("application/json", "*/*", "application/json, text/plain;q=0.5", None)
    sent = [{**KEY, **({"Accept": each} if each else {})} for each in accepted]
    answers = [roomy.post(path, body, headers=headers) for headers in sent]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == len(upstream.requests) == 1


def test_it_tells_a_stream_from_a_plain_answer_where_accept_asks_for_it(roomy: Api, upstream: FakeUpstream) -> None:
    assert roomy.chat(headers=KEY).status_code == 200
    refused = roomy.chat(headers={**KEY, "Accept": "text/event-stream"})
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert "another request" in refused.json()["detail"]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    first, again = (
        roomy.post("/v1/chat/completions", body, headers={"Idempotency-Key": "v1", "Accept": accept})
        for accept in ("application/json", "text/event-stream")
    )
    assert again.content == first.content  # there the body alone asks for a stream


def test_it_tries_anew_after_a_failure_of_the_provider(roomy: Api, upstream: FakeUpstream) -> None:
    upstream.fail_next("http_401")
    assert roomy.chat(headers=KEY).status_code == 502
    assert roomy.chat(headers=KEY).status_code == 200


def test_it_tries_anew_after_a_rate_limit(api: Api, upstream: FakeUpstream) -> None:
    for _ in range(5):
        api.chat()
    limited = api.chat(headers=KEY)
    assert limited.status_code == 429


def test_it_keeps_the_callers_apart(api: Api, roomy: Api, upstream: FakeUpstream) -> None:
    api.chat(headers=KEY)
    assert "Idempotency-Replayed" not in roomy.chat(headers=KEY)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/summarize"])
def test_it_works_on_every_endpoint(roomy: Api, upstream: FakeUpstream, path: str) -> None:
    bodies = {
        "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]},
        "/summarize": {"text": PROMPT * 5},
    }
    answers = [roomy.post(path, bodies[path], headers={**KEY, "Cache-Control": "no-store"}) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert answers[1]["Idempotency-Replayed"] == "true"
    assert len(upstream.requests) == 1


def test_it_answers_an_error_of_its_surface_in_its_shape(roomy: Api, upstream: FakeUpstream) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    roomy.post("/v1/chat/completions", body, headers=KEY)
    refused = roomy.post("/v1/chat/completions", {**body, "temperature": 1}, headers=KEY)
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
