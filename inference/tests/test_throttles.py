"""The request rate at the API: what counts, what the headers tell, and that Retry-After is true."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.conf import LazySettings

from accounts.limits.types import REFUSALS_A_MINUTE, SECOND
from accounts.tests.factories import Cast, make_account, make_key, make_tier
from accounts.tests.limits_fixtures import Clock
from inference.fake_provider import FakeUpstream
from inference.protocols.chat import chat_protocol
from inference.tests.fixtures import MODEL, Api, Records

RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


def rates(answer: Any) -> tuple[int, int, int]:
    """Return limit, remaining and reset of an answer's headers."""
    limit, remaining, reset = (int(answer[name]) for name in RATE_HEADERS)
    return limit, remaining, reset


def test_it_admits_as_many_as_the_tier_says(api: Api, upstream: FakeUpstream, clock: Clock) -> None:
    answers = [api.chat() for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert [rates(answer)[:2] for answer in answers] == [(5, 4), (5, 3), (5, 2), (5, 1), (5, 0), (5, 0)]


def test_it_tells_when_the_window_is_empty_and_when_a_slot_is_free(
    api: Api, upstream: FakeUpstream, clock: Clock
) -> None:
    begin = clock.now
    resets = []
    for _ in range(5):
        resets.append(rates(api.chat())[2])
        clock.step(10)
    # On an admitted request: all slots free again 60 seconds later, rounded up.
    assert resets == [-(-(begin + (60 + 10 * number) * SECOND) // SECOND) for number in range(5)]
    refused = api.chat()
    assert refused.status_code == 429
    assert rates(refused)[2] == -(-(begin + 60 * SECOND) // SECOND)
    assert refused["Retry-After"] == "10"


def test_it_tells_the_refused_what_and_when(api: Api, upstream: FakeUpstream, clock: Clock) -> None:
    for _ in range(5):
        api.chat()
    refused = api.chat()
    assert refused.json() == {
        "detail": "Rate limit exceeded. Try again in 60 seconds.",
        "code": "rate_limited",
        "request_id": refused["X-Request-ID"],
        "limit": {
            "name": "requests_per_minute",
            "owner": "key",
            "used": 5,
            "limit": 5,
            "reset": rates(refused)[2],
        },
    }
    assert refused["Retry-After"] == "60"


def test_it_admits_one_sent_at_the_announced_second_and_not_before(
    api: Api, upstream: FakeUpstream, clock: Clock
) -> None:
    for _ in range(5):
        api.chat()
        clock.step(0.3)
    refused = api.chat()
    wait = int(refused["Retry-After"])
    clock.step(wait - 1.5)
    assert api.chat().status_code == 429
    clock.step(1.5)
    assert api.chat().status_code == 200


def test_it_is_true_by_the_real_clock(api: Api, upstream: FakeUpstream) -> None:
    for _ in range(5):
        api.chat()
    refused = api.chat()
    now = time.time()
    limit, remaining, reset = rates(refused)
    assert (refused.status_code, limit, remaining) == (429, 5, 0)
    assert 55 <= int(refused["Retry-After"]) <= 60
    assert abs(reset - now - int(refused["Retry-After"])) <= 2


def test_it_writes_the_drafts_headers_too(api: Api, upstream: FakeUpstream, clock: Clock) -> None:
    answer = api.chat()
    assert answer["RateLimit-Policy"] == '"key";q=5;w=60'
    assert answer["RateLimit"] == '"key";r=4;t=60'


def test_it_counts_malformed_requests_once(api: Api, upstream: FakeUpstream, records: Records) -> None:
    sent = [
        api.post("/chat", b"{"),
        api.post("/chat", {"message": ""}),
        api.post("/chat", {"message": "a"}, content_type="text/plain"),
        api.post("/chat", b" " * 70_000),
        api.chat(model="unknown"),
    ]
    assert [answer.status_code for answer in sent] == [400, 400, 415, 413, 404]
    assert [rates(answer)[1] for answer in sent] == [4, 3, 2, 1, 0]
    assert api.chat().status_code == 429
    assert [record.status for record in records()] == [400, 400, 415, 413, 404, 429]


def test_it_counts_upstream_failures_and_hits_once(api: Api, upstream: FakeUpstream) -> None:
    api.chat()
    assert rates(api.chat())[1] == 3
    upstream.set(faults={"http_401": 1})
    failed = api.chat("another")
    assert (failed.status_code, rates(failed)[1]) == (502, 2)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/stats"), ("GET", "/chat"), ("PUT", "/chat"), ("HEAD", "/stats")]
)
def test_it_reports_and_does_not_count_other_methods(
    api: Api, upstream: FakeUpstream, clock: Clock, method: str, path: str
) -> None:
    before = api.send(method, path)
    assert rates(before) == (5, 5, -(-clock.now // SECOND))
    api.chat()
    assert [rates(api.send(method, path))[1] for _ in range(3)] == [4, 4, 4]


def test_it_counts_nothing_before_authentication(api: Api, cast: Cast, upstream: FakeUpstream) -> None:
    for key in (None, "nonsense", cast.revoked.plain, api.key.plain + "x"):
        answer = api.post("/chat", {"message": "a"}, key=key)
        assert answer.status_code == 401
        assert not [name for name in answer.headers if "ratelimit" in name.lower()]
    assert rates(api.chat())[1] == 4


def test_it_counts_what_is_refused_for_its_accept_header(api: Api, records: Records) -> None:
    answer = api.post("/chat", {"message": "a"}, headers={"Accept": "text/xml"})
    assert answer.status_code == 406
    assert rates(answer)[1] == 4
    assert [record.status for record in records()] == [406]


def test_it_counts_keys_apart_and_accounts_together(api: Api, upstream: FakeUpstream, clock: Clock) -> None:
    account = make_account(requests_per_minute=7)
    first, second = (api.of(make_key(account=account)) for _ in range(2))
    assert [first.chat().status_code for _ in range(5)] == [200] * 5
    assert rates(second.chat()) == (7, 1, rates(second.chat())[2])
    refused = second.chat()
    assert (refused.status_code, refused.json()["limit"]["owner"]) == (429, "account")
    assert api.chat().status_code == 200


def test_it_tells_the_tokens_that_a_call_leaves_to_others(api: Api, upstream: FakeUpstream) -> None:
    """While it runs, that is: as much as it could use at most is held then. Of streams see tests/test_streams."""
    metered = api.of(make_key(tier=make_tier("metered", tokens_per_minute=3000, requests_per_minute=None)))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, "temperature": 0}
    bound = chat_protocol.prompt_bound({name: value for name, value in body.items() if name != "model"}) + 100

    def left(**headers: str) -> int:
        """Return what the headers of one more answer say."""
        answer = metered.post("/v1/chat/completions", body, headers=headers)
        told = int(answer["x-ratelimit-remaining-tokens"])
        assert f'"key-tokens";r={told};t=' in answer["RateLimit"]
        assert answer["x-ratelimit-limit-tokens"] == "3000"
        return told

    assert left() == 3000 - bound
    used = 3000 - int(metered.get("/v1/models")["RateLimit"].partition('"key-tokens";r=')[2].partition(";")[0])
    assert 0 < used < bound
    assert left() == 3000 - used  # from the cache: it holds nothing
    assert left(**{"Cache-Control": "no-cache"}) == 3000 - used - bound


def test_it_tells_the_tokens_as_they_are_to_a_call_that_got_none(api: Api, upstream: FakeUpstream) -> None:
    tier = make_tier("metered", tokens_per_minute=3000, requests_per_minute=None, max_output_tokens=5000)
    metered = api.of(make_key(tier=tier))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5000}
    for wrong in ({}, body):
        answer = metered.post("/v1/chat/completions", wrong)
        assert (answer.status_code, answer["x-ratelimit-remaining-tokens"]) == (400, "3000")


def test_it_limits_no_key_without_a_limit(api: Api, upstream: FakeUpstream) -> None:
    free = api.of(make_key(tier=make_tier("free-for-all", requests_per_minute=None)))
    answers = [free.chat() for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200}
    assert not [name for name in answers[0].headers if "ratelimit" in name.lower()]


def test_it_follows_a_changed_tier_within_a_second(api: Api, upstream: FakeUpstream) -> None:
    assert rates(api.chat())[0] == 5
    make_tier("free", requests_per_minute=9)
    deadline = time.monotonic() + 1.5
    while rates(api.get("/stats"))[0] != 9:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_limits_slots_and_gives_them_back(api: Api, upstream: FakeUpstream) -> None:
    one = api.of(make_key(tier=make_tier("one", concurrent_requests=1, requests_per_minute=None)))
    assert [one.chat(f"number {number}").status_code for number in range(3)] == [200, 200, 200]
    upstream.set(faults={"http_500": 1})
    assert one.chat("failing").status_code == 502
    upstream.set(faults={})
    assert one.chat("again").status_code == 200


def test_it_answers_503_while_limits_cant_be_held(
    api: Api, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, settings: LazySettings
) -> None:
    from accounts.limits import get_limits
    from accounts.limits.types import LimitsUnavailable

    def fail(*args: Any, **options: Any) -> None:
        raise LimitsUnavailable(retry_after=5)

    monkeypatch.setattr(type(get_limits()), "reserve", fail)
    answer = api.chat()
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
    assert answer["Retry-After"] == "5"


def test_it_records_refusals_beyond_a_rate_as_a_number_and_counts_each(
    api: Api, upstream: FakeUpstream, records: Records, clock: Clock
) -> None:
    for _ in range(5):
        assert api.chat().status_code == 200
    for _ in range(REFUSALS_A_MINUTE + 7):
        assert api.chat().status_code == 429
    clock.step(2)
    rows = records()
    assert len(rows) == 5 + REFUSALS_A_MINUTE + 1
    assert (rows[-1].status, rows[-1].error_code, rows[-1].count) == (429, "rate_limited", 7)
    assert api.get("/stats").json()["total_requests"] == 5 + REFUSALS_A_MINUTE + 7
