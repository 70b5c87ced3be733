"""GET /stats: what was asked of the model endpoints, of one's own account only; of all for the admin's staff."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from accounts.models import ApiKey
from accounts.services import api_key_revoke, api_key_rotate
from accounts.tests.factories import ACTOR, Cast, IssuedKey, logged_in, make_admin, make_staff
from monitoring import selectors
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db


def get(issued: IssuedKey, path: str = "/stats", **asked: str) -> Any:
    """Ask with a key."""
    return Client().get(path, asked, **issued.headers)  # type: ignore[arg-type]


def stats_of(issued: IssuedKey) -> Any:
    """Return the answer to a key; it must be a 200."""
    answer = get(issued)
    assert answer.status_code == 200, answer.content
    return answer.json()


def stats_for(user: User) -> Any:
    """Ask with the admin's session of a user."""
    return logged_in(user).get("/stats")


def test_it_counts_by_outcome_and_key_of_the_own_account_and_shows_no_secret(cast: Cast) -> None:
    for outcome in ("miss", "hit", "hit", "coalesced", "bypass"):
        recorded(cast.owner, cache=outcome)
    recorded(cast.owner, cache="", status=429, error_code="rate_limited")
    recorded(cast.colleague, cache="miss")
    assert stats_of(cast.owner) == {
        "total_requests": 7,
        "cache_hits": 3,  # the coalesced one among them: it cost no upstream call
        "cache_misses": 2,
        "cache_hit_rate": 0.6,
        "total_api_keys": 2,  # owner and colleague: the others are revoked or expired
        "requests_by_key": {"owner": 6, "colleague": 1},
    }
    assert stats_of(cast.stranger) == {
        "total_requests": 0,
        "cache_hits": 0,
        "cache_misses": 0,
        "cache_hit_rate": 0.0,
        "total_api_keys": 1,
        "requests_by_key": {},
    }
    body, key = get(cast.owner).content.decode(), cast.owner.key
    assert not any(part in body for part in (cast.owner.plain, key.prefix, key.last_four, key.digest))
    recorded(cast.owner, cache="miss")
    assert stats_of(cast.owner)["cache_hit_rate"] == 0.5
    recorded(cast.owner, cache="miss")
    assert stats_of(cast.owner)["cache_hit_rate"] == 0.429


def test_it_counts_the_keys_that_work_now_and_keeps_the_requests_of_others(cast: Cast) -> None:
    recorded(cast.colleague)
    successor, _ = api_key_rotate(key=cast.colleague.key, grace=timedelta(hours=1), actor=ACTOR)
    assert stats_of(cast.owner)["total_api_keys"] == 3  # owner, and both of colleague's for an hour
    ApiKey.objects.filter(pk=cast.colleague.key.pk).update(revoked_at=timezone.now())
    ApiKey.objects.filter(pk=successor.pk).update(expires_at=timezone.now() + timedelta(hours=1))
    assert stats_of(cast.owner)["total_api_keys"] == 2
    api_key_revoke(key=successor, actor=ACTOR)
    assert (stats_of(cast.owner)["total_api_keys"], stats_of(cast.owner)["requests_by_key"]) == (1, {"colleague": 1})


def test_it_names_keys_as_they_are_called_now_and_adds_up_those_that_share_a_name(cast: Cast) -> None:
    recorded(cast.colleague)
    cast.colleague.key.name = "renamed"
    cast.colleague.key.save()
    assert stats_of(cast.owner)["requests_by_key"] == {"renamed": 1}
    cast.colleague.key.delete()
    assert stats_of(cast.owner)["requests_by_key"] == {"colleague": 1}, "as it was recorded"
    cast.owner.key.name = "colleague"
    cast.owner.key.save()
    recorded(cast.owner)
    assert stats_of(cast.owner)["requests_by_key"] == {"colleague": 2}


def test_it_shows_staff_everything_by_account_and_name(cast: Cast) -> None:
    recorded(cast.owner)
    recorded(cast.stranger, cache="hit")
    assert stats_for(make_staff("accounts.view_apikey", name="other")).status_code == 403
    answer = stats_for(make_staff("monitoring.view_requestrecord"))
    assert answer.status_code == 200
    assert answer.json()["requests_by_key"] == {"acme/owner": 1, "globex/stranger": 1}
    assert answer.json()["total_requests"] == 2
    assert answer.json()["total_api_keys"] == 3  # owner, colleague, stranger; not that of `closed`, which is disabled
    with_key = logged_in(make_admin()).get("/stats", **cast.colleague.headers)  # type: ignore[arg-type]
    assert with_key.json()["requests_by_key"] == {"owner": 1}, "of the key's account"


def test_it_refuses_other_sessions_and_keys_that_are_not_usable(cast: Cast) -> None:
    answer = stats_for(User.objects.create_user("visitor", password="correct horse battery staple"))
    assert (answer.status_code, answer.json()["detail"]) == (401, "API key required. Include X-API-Key header.")
    client, user = Client(), make_staff("accounts.view_apikey")
    client.force_login(user)
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert client.get("/stats").status_code == 401
    for issued in (cast.revoked, cast.expired, cast.disabled):
        answer = get(issued)
        assert (answer.status_code, answer.json()["detail"]) == (401, "Invalid API key")
        assert "WWW-Authenticate" in answer.headers


def test_it_does_not_count_itself_and_takes_no_parameters(cast: Cast) -> None:
    for _ in range(3):
        assert stats_of(cast.owner)["total_requests"] == 0
    answer = get(cast.owner, "/stats/")
    assert answer["X-RateLimit-Remaining"] == answer["X-RateLimit-Limit"] == "5"
    assert answer["Cache-Control"] == "private, no-store"
    answer = get(cast.owner, **{"from": "2026-01-01"})
    assert (answer.status_code, answer.json()["errors"]) == (400, {"from": ["Unknown parameter: it takes none."]})


def test_it_may_be_a_second_old_for_staff_who_see_many_keys(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "MANY_KEYS", 2)
    recorded(cast.owner)
    admin = make_admin()
    assert stats_for(admin).json()["total_requests"] == 1
    recorded(cast.owner)
    assert [stats_for(admin).json()["total_requests"], stats_of(cast.owner)["total_requests"]] == [1, 2]
    selectors.recent_stats.clear()
    assert stats_for(admin).json()["total_requests"] == 2
