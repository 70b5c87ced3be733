"""Idempotency-Key: the stores by one contract, and what becomes of claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis as redis_client
from django.conf import LazySettings
from django.http import HttpResponse
from django.utils import timezone
from rest_framework.request import Request

from accounts.exceptions import Conflict, DependencyUnavailable, IdempotencyKeyReused, InvalidRequest
from accounts.idempotency import store as stores
from accounts.idempotency.claims import LARGEST_ANSWER, Claim, Claims, Replayed
from accounts.idempotency.store import DatabaseStore, Held, KeptAnswer, Lease, RedisStore, Store
from accounts.models import IdempotentAnswer

pytestmark = pytest.mark.django_db

LEASE = Lease("name", "asked", "mine", 7)
ANSWER = KeptAnswer(200, {"Content-Type": "application/json"}, b'{"a": "\xc3\xa4"}', 17)


@pytest.fixture(params=["database", "redis"])
def store(request: pytest.FixtureRequest, settings: LazySettings) -> Iterator[Store]:
    """Make either store, empty."""
    if request.param == "database":
        yield DatabaseStore()
        return
    settings.REDIS_URL = request.getfixturevalue("redis_url")
    client = redis_client.Redis.from_url(settings.REDIS_URL)
    yield RedisStore()
    for key in client.scan_iter("aiapi:idempotency:*"):
        client.delete(key)


def test_it_gives_a_lease_to_the_first_only(store: Store) -> None:
    assert store.take(LEASE) is None
    assert store.take(Lease("name", "asked", "another's", 7)) == Held("asked", None)
    assert store.take(Lease("another", "asked", "mine", 7)) is None


def test_it_keeps_the_answer_with_what_was_asked(store: Store) -> None:
    store.take(LEASE)
    store.finish(LEASE, ANSWER)
    assert store.take(Lease("name", "other", "another's", 7)) == Held("asked", ANSWER)


def keep(store: Store, name: str, *, account: int = 7, size: int = 3000) -> None:
    """Keep an answer of about so many bytes."""
    lease = Lease(name, "asked", "mine", account)
    store.take(lease)
    store.finish(lease, KeptAnswer(200, {}, b"x" * (size * 3 // 4)))


def kept(store: Store, *names: str, account: int = 7) -> list[str]:
    """List which of the names have an answer; those that have none get none by it."""
    found = []
    for name in names:
        lease = Lease(name, "asked", "another's", account)
        held = store.take(lease)
        if held is None:
            store.release(lease)
        elif held.answer is not None:
            found.append(name)
    return found


def test_it_drops_an_account_s_oldest_answers_for_room(store: Store, settings: LazySettings) -> None:
    settings.IDEMPOTENCY_BYTES = 12_000  # room for three
    keep(store, "other", account=8)
    for name in "abcd":
        keep(store, name)
    assert kept(store, *"abcd") == ["b", "c", "d"]
    keep(store, "large", size=8_000)
    assert kept(store, *"abcd", "large") == ["d", "large"]
    assert kept(store, "other", account=8) == ["other"]


def test_it_keeps_an_answer_once_however_often_it_is_made(store: Store, settings: LazySettings) -> None:
    settings.IDEMPOTENCY_BYTES = 12_000
    for _ in range(5):
        keep(store, "a")
    for name in "bc":
        keep(store, name)
    assert kept(store, *"abc") == ["a", "b", "c"]


def test_it_keeps_none_that_has_no_room_at_all(store: Store, settings: LazySettings) -> None:
    settings.IDEMPOTENCY_BYTES = 12_000
    keep(store, "a")
    keep(store, "b", size=13_000)
    assert kept(store, "a", "b") == ["a"]
    settings.IDEMPOTENCY_BYTES = 0
    keep(store, "c")
    assert kept(store, "c") == []


def test_it_reckons_no_more_with_answers_over_their_time(settings: LazySettings, redis_url: str) -> None:
    settings.REDIS_URL, settings.IDEMPOTENCY_BYTES = redis_url, 12_000
    store = RedisStore()
    client = redis_client.Redis.from_url(redis_url)
    for name in "abc":
        keep(store, name, account=9)
    client.zadd("aiapi:idempotency:{9}:order", {"a": 1, "b": 1})
    client.delete("aiapi:idempotency:{9}:a", "aiapi:idempotency:{9}:b")  # as if they had expired
    for name in "de":
        keep(store, name, account=9)
    assert kept(store, *"abcde", account=9) == ["c", "d", "e"]
    assert all(client.ttl(key) > 0 for key in client.scan_iter("aiapi:idempotency:{9}:*"))
    client.delete(*client.scan_iter("aiapi:idempotency:{9}:*"))


def test_it_forgets_many_over_their_time_in_steps(settings: LazySettings, redis_url: str) -> None:
    """All at once would keep everybody else waiting; and a place that fell free may be a running request's by now."""
    settings.REDIS_URL, settings.IDEMPOTENCY_BYTES = redis_url, 12_000
    client = redis_client.Redis.from_url(redis_url)
    folder, names = "aiapi:idempotency:{9}:", [f"old{number:04}" for number in range(3000)]
    client.zadd(f"{folder}order", dict.fromkeys(names, 1))
    client.hset(f"{folder}sizes", mapping={**dict.fromkeys(names, 5), "total": 15_000})
    client.set(f"{folder}{names[600]}", "a lease")
    keep(RedisStore(), "a", account=9)
    assert 1000 < client.zcard(f"{folder}order") < 2501
    assert client.get(f"{folder}{names[600]}") == b"a lease"
    client.delete(*client.scan_iter(f"{folder}*"))


def test_it_gives_a_released_lease_to_the_next(store: Store) -> None:
    store.take(LEASE)
    store.release(LEASE)
    assert store.take(Lease("name", "asked", "another's", 7)) is None


def test_it_does_not_release_what_somebody_else_holds_now(store: Store) -> None:
    store.take(LEASE)
    store.release(Lease("name", "asked", "another's", 7))
    assert store.take(LEASE) == Held("asked", None)


def test_it_does_not_release_an_answer(store: Store) -> None:
    store.take(LEASE)
    store.finish(LEASE, ANSWER)
    store.release(LEASE)
    assert store.take(LEASE) == Held("asked", ANSWER)


def test_it_gives_a_lease_that_ran_out_to_the_next() -> None:
    store = DatabaseStore()
    store.take(LEASE)
    IdempotentAnswer.objects.update(until=timezone.now() - timedelta(seconds=1))
    assert store.take(Lease("name", "asked", "another's", 7)) is None


def test_it_prolongs_a_lease(store: Store, settings: LazySettings) -> None:
    store.take(LEASE)
    if isinstance(store, DatabaseStore):
        IdempotentAnswer.objects.update(until=timezone.now() + timedelta(seconds=1))
        store.renew(LEASE)
        assert IdempotentAnswer.objects.get().until > timezone.now() + timedelta(seconds=stores.LEASE_SECONDS - 2)
        return
    client = redis_client.Redis.from_url(settings.REDIS_URL)
    client.expire("aiapi:idempotency:{7}:name", 1)
    store.renew(LEASE)
    assert client.ttl("aiapi:idempotency:{7}:name") > 1


def test_it_clears_rows_over_their_time() -> None:
    store = DatabaseStore()
    for number in range(5):
        store.take(Lease(f"old {number}", "asked", "mine", 7))
    IdempotentAnswer.objects.update(until=timezone.now() - timedelta(seconds=1))
    store.take(LEASE)
    assert list(IdempotentAnswer.objects.values_list("name", flat=True)) == ["name"]


def make_claims() -> Claims:
    """Make the claims of a process whose leases nobody renews meanwhile."""
    return Claims(start=lambda _: None)


def make_request(key: str | None, body: Any = None, path: str = "/chat") -> Request:
    meta = {} if key is None else {"HTTP_IDEMPOTENCY_KEY": key}
    return cast("Request", SimpleNamespace(META=meta, method="POST", path_info=path, data=body or {"message": "hi"}))


def claim(claims: Claims, key: str = "k", **options: Any) -> Claim:
    """Claim a key that is free."""
    claimed = claims.claim(make_request(key, **options), owner=1, account=7)
    assert claimed is not None
    return claimed


def answer(status: int = 200) -> HttpResponse:
    return HttpResponse(b"said", status=status, headers={"X-Cache": "MISS", "X-Cost-USD": "0.1"})


def test_it_claims_nothing_without_the_header() -> None:
    assert make_claims().claim(make_request(None), owner=1, account=7) is None


@pytest.mark.parametrize("key", ["", " ", "ä", "x" * 256, "two words"])
def test_it_refuses_a_malformed_key(key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        make_claims().claim(make_request(key), owner=1, account=7)


def test_it_replays_a_final_answer_without_its_cost() -> None:
    claims = make_claims()
    claim(claims).finish(answer(), b"said")
    with pytest.raises(Replayed) as replayed:
        claim(claims)
    response = replayed.value.response()
    assert (response.status_code, response.content, response["X-Cache"]) == (200, b"said", "MISS")
    assert (response["Idempotency-Replayed"], response["X-Cost-USD"]) == ("true", "0.000000000")


def test_it_answers_a_conflict_while_the_first_runs() -> None:
    claims = make_claims()
    claim(claims)
    with pytest.raises(Conflict) as conflict:
        claim(claims)
    assert conflict.value.headers == {"Retry-After": "1"}


def test_it_refuses_another_body_or_path_under_the_same_key() -> None:
    claims = make_claims()
    claim(claims)
    with pytest.raises(IdempotencyKeyReused):
        claim(claims, body={"message": "something else"})
    with pytest.raises(IdempotencyKeyReused):
        claim(claims, path="/summarize")


def test_it_refuses_another_form_of_answer_under_the_same_key() -> None:
    claims = make_claims()
    claim(claims)
    with pytest.raises(IdempotencyKeyReused, match="another request"):
        claims.claim(make_request("k"), owner=1, account=7, form="a stream")


def test_it_takes_a_trailing_slash_for_the_same_path() -> None:
    claims = make_claims()
    claim(claims)
    with pytest.raises(Conflict):
        claim(claims, path="/chat/")


def test_it_keeps_the_keys_of_callers_apart() -> None:
    claims = make_claims()
    claim(claims)
    assert claims.claim(make_request("k"), owner=2, account=7) is not None


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_it_does_not_keep_what_may_pass(status: int) -> None:
    claims = make_claims()
    claim(claims).finish(answer(status), b"said")
    claim(claims)  # raises if an answer was kept
    assert len(claims._open) == 1


@pytest.mark.parametrize("status", [200, 201, 400, 404])
def test_it_keeps_what_is_final(status: int) -> None:
    claims = make_claims()
    claim(claims).finish(answer(status), b"said")
    with pytest.raises(Replayed):
        claim(claims)


def test_it_does_not_keep_an_answer_over_the_size_or_one_that_broke_off() -> None:
    claims = make_claims()
    claim(claims).finish(answer(), b"x" * (LARGEST_ANSWER + 1))
    claim(claims).finish_stream({"Content-Type": "text/event-stream"}, None)
    claim(claims)  # raises if an answer was kept
    assert len(claims._open) == 1


def test_it_ends_a_claim_once() -> None:
    claims = make_claims()
    first = claim(claims)
    first.release()
    second = claim(claims)
    first.finish(answer(), b"too late")
    second.finish(answer(), b"said")
    with pytest.raises(Replayed) as replayed:
        claim(claims)
    assert replayed.value.answer.body == b"said"


def test_it_says_when_nobody_can_tell(settings: LazySettings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    with pytest.raises(DependencyUnavailable):
        make_claims().claim(make_request("k"), owner=1, account=7)


def test_it_stores_neither_the_callers_key_nor_what_he_asked(settings: LazySettings) -> None:
    claim(make_claims(), key="order-of-mr-smith", body={"message": "hush"})
    (row,) = IdempotentAnswer.objects.values() if not settings.REDIS_URL else [{}]
    assert "smith" not in str(row)
    assert "hush" not in str(row)


def test_it_reads_an_answer_that_was_kept_without_its_cost() -> None:
    kept = {name: value for name, value in ANSWER.as_json().items() if name != "cost"}
    assert KeptAnswer.from_json(kept) == replace(ANSWER, cost=0)
    assert KeptAnswer.from_json(ANSWER.as_json()) == ANSWER
