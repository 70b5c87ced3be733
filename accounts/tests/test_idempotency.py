"""Idempotency-Key: what becomes of claims."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.conf import LazySettings
from django.db import OperationalError
from django.http import HttpResponse
from rest_framework.request import Request

from accounts.audit import audited_delete
from accounts.idempotency import LARGEST_ANSWER, Claim, Replayed
from accounts.limits import reset_limits
from accounts.models import AuditEntry, IdempotentAnswer
from accounts.tests.factories import ACTOR, make_key
from core.errors import Conflict, DependencyUnavailable, IdempotencyKeyReused, InvalidRequest
from core.redis.leases import leases

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def owner() -> int:
    """Return a key's id."""
    return make_key().key.pk


def make_claim(
    owner: int, key: str | None = "k", *, body: Any = None, path: str = "/chat", form: str = ""
) -> Claim | None:
    """Make the claim of a request."""
    meta = {} if key is None else {"HTTP_IDEMPOTENCY_KEY": key}
    request = SimpleNamespace(META=meta, method="POST", path_info=path, data=body or {"message": "hi"})
    return Claim.of(cast("Request", request), cast("Any", SimpleNamespace(key_id=owner)), form=form)


def take(owner: int, key: str = "k", **options: Any) -> Claim:
    """Claim a key as a model call does."""
    claim = make_claim(owner, key, **options)
    assert claim is not None
    claim.take()
    return claim


def insert(owner: int, key: str = "k", **options: Any) -> Claim:
    """Claim a key as a POST does that only writes."""
    claim = make_claim(owner, key, **options)
    assert claim is not None
    claim.insert()
    return claim


def retried(owner: int, **options: Any) -> bytes | None:
    """Return the kept answer that a retry gets; None if it runs anew, which is then given up."""
    try:
        take(owner, **options).release()
    except Replayed as replayed:
        return bytes(replayed.answer.body)
    return None


def answer(status: int = 200) -> HttpResponse:
    return HttpResponse(b"said", status=status, headers={"X-Cache": "MISS", "X-Cost-USD": "0.1"})


def age(by: timedelta = DAY) -> None:
    """Let all rows be so much older."""
    for row in IdempotentAnswer.objects.all():
        IdempotentAnswer.objects.filter(pk=row.pk).update(expires_at=row.expires_at - by)


def test_it_claims_nothing_without_the_header(owner: int) -> None:
    assert make_claim(owner, None) is None


@pytest.mark.parametrize("key", ["", " ", "ä", "x" * 256, "two words"])
def test_it_refuses_a_malformed_key(owner: int, key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        make_claim(owner, key)


def test_it_replays_a_final_answer_without_its_cost(owner: int) -> None:
    claim = take(owner)
    claim.cost = 17
    claim.finish(answer(), b"said")
    for again in (take, insert):
        with pytest.raises(Replayed) as replayed:
            again(owner)
        response = replayed.value.response()
        assert (response.status_code, response.content, response["X-Cache"]) == (200, b"said", "MISS")
        assert (response["Idempotency-Replayed"], response["X-Cost-USD"]) == ("true", "0.000000000")
        assert replayed.value.answer.cost == 17


def test_it_answers_a_conflict_while_the_first_runs(owner: int) -> None:
    take(owner)
    for again in (take, insert):
        with pytest.raises(Conflict) as conflict:
            again(owner)
        assert conflict.value.headers == {"Retry-After": "1"}


def test_it_refuses_another_body_or_path_under_the_same_key(owner: int) -> None:
    first = take(owner)
    for _ in ("while it runs", "afterwards"):
        for again in (take, insert):
            with pytest.raises(IdempotencyKeyReused):
                again(owner, body={"message": "something else"})
            with pytest.raises(IdempotencyKeyReused):
                again(owner, path="/summarize")
        first.finish(answer(), b"said")


def test_it_refuses_another_form_of_answer_under_the_same_key(owner: int) -> None:
    take(owner)
    with pytest.raises(IdempotencyKeyReused, match="another request"):
        take(owner, form="a stream")


def test_it_takes_a_trailing_slash_for_the_same_path(owner: int) -> None:
    take(owner)
    with pytest.raises(Conflict):
        take(owner, path="/chat/")


def test_it_keeps_the_keys_of_callers_apart(owner: int) -> None:
    other = make_key().key.pk
    mine, theirs = take(owner), take(other)
    mine.finish(answer(), b"mine")
    theirs.finish(answer(), b"theirs")
    assert (retried(owner), retried(other)) == (b"mine", b"theirs")


@pytest.mark.parametrize("status", [200, 201, 400, 404, 429, 500, 502, 503, 504])
def test_it_keeps_what_is_final_and_not_what_may_pass(owner: int, status: int) -> None:
    take(owner).finish(answer(status), b"said")
    assert retried(owner) == (b"said" if status < 429 else None)


def test_it_does_not_keep_an_answer_over_the_size_or_one_that_broke_off(owner: int) -> None:
    take(owner).finish(answer(), b"x" * (LARGEST_ANSWER + 1))
    assert retried(owner) is None
    take(owner).finish(answer(), None)
    assert retried(owner) is None
    take(owner).finish(answer(), b"x" * LARGEST_ANSWER)
    assert retried(owner) == b"x" * LARGEST_ANSWER


def test_it_ends_a_claim_once(owner: int) -> None:
    first = take(owner)
    first.release()
    second = take(owner)
    first.finish(answer(), b"too late")
    second.finish(answer(), b"said")
    assert retried(owner) == b"said"


def test_it_gives_the_claim_of_a_process_that_died_to_the_next_request(owner: int) -> None:
    dead = take(owner)
    leases.release(dead._lease, dead._token)  # as when it expires
    with pytest.raises(Conflict):
        insert(owner)  # which asks for no lease, so that it can't know
    heir = take(owner, body={"message": "something else"})
    dead.finish(answer(), b"not dead after all")
    dead.release()
    heir.finish(answer(), b"said")
    assert retried(owner, body={"message": "something else"}) == b"said"


def test_it_keeps_answers_for_a_day(owner: int) -> None:
    take(owner).finish(answer(), b"said")
    age(DAY - timedelta(minutes=1))
    assert retried(owner) == b"said"
    age(timedelta(minutes=1))
    take(owner, body={"message": "something else"}).finish(answer(), b"said anew")
    age()
    insert(owner).keep(200, {}, b"said once more")
    assert retried(owner) == b"said once more"


def test_it_deletes_answers_with_their_key_and_tells_the_audit_log_nothing_of_them(owner: int) -> None:
    key = make_key().key
    for each in (owner, key.pk):
        take(each).finish(answer(), b"said")
    audited_delete(key, actor=ACTOR)
    assert IdempotentAnswer.objects.get().key_id == owner
    assert not AuditEntry.objects.filter(target_type=IdempotentAnswer._meta.verbose_name).exists()


def test_it_says_when_nobody_can_tell(owner: int, settings: LazySettings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    reset_limits()
    with pytest.raises(DependencyUnavailable):
        take(owner)
    reset_limits()


def test_it_releases_the_lease_where_the_database_fails(owner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*parts: Any, **options: Any) -> None:
        raise OperationalError

    with monkeypatch.context() as broken:
        broken.setattr("django.db.models.query.QuerySet.get_or_create", fail)
        with pytest.raises(DependencyUnavailable):
            take(owner)
    claim = take(owner)
    with monkeypatch.context() as broken:
        broken.setattr("django.db.models.query.QuerySet.update", fail)
        claim.finish(answer(), b"lost")
    assert retried(owner) is None, "the first answer could not be kept"


def test_it_stores_neither_the_callers_key_nor_what_he_asked(owner: int) -> None:
    take(owner, key="order-of-mr-smith", body={"message": "hush"})
    (row,) = IdempotentAnswer.objects.values()
    assert "smith" not in str(row)
    assert "hush" not in str(row)
