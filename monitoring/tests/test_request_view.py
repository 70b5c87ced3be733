"""GET /requests/{id}: an account's own record of a request."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from accounts.tests.factories import Cast, IssuedKey, make_key
from monitoring.models import RequestRecord
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db


def get(issued: IssuedKey, name: Any) -> Any:
    """Ask for a request."""
    return Client().get(f"/requests/{name}", **issued.headers)  # type: ignore[arg-type]


def test_it_shows_what_became_of_a_request(cast: Cast) -> None:
    record = recorded(cast.owner, label="mine", input_tokens=7, output_tokens=5).id
    answer = get(cast.owner, record)
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["label"], shown["key"], shown["status"]) == ("mine", cast.owner.key.name, 200)
    assert (shown["input_tokens"], shown["output_tokens"]) == (7, 5)


def test_it_shows_how_many_refusals_a_record_stands_for(cast: Cast) -> None:
    assert get(cast.owner, recorded(cast.owner).id).json()["count"] == 1
    assert get(cast.owner, recorded(cast.owner, status=429, count=7).id).json()["count"] == 7


def test_it_finds_the_newest_by_label(cast: Cast) -> None:
    recorded(cast.owner, label="mine")
    newest = recorded(cast.owner, label="mine").id
    assert get(cast.owner, "mine").json()["id"].replace("-", "") == newest


def test_it_shows_an_account_the_requests_of_all_its_keys(cast: Cast) -> None:
    colleague = make_key(account=cast.owner.key.account, name="another")
    assert get(colleague, recorded(cast.owner).id).status_code == 200


def test_it_hides_the_requests_of_others(cast: Cast) -> None:
    record = recorded(cast.stranger, label="theirs").id
    assert get(cast.owner, record).status_code == get(cast.owner, "theirs").status_code == 404
    assert get(cast.owner, "unknown").json()["code"] == "not_found"


def test_it_needs_the_scope(cast: Cast) -> None:
    key = make_key(account=cast.owner.key.account, name="narrow", scopes=["chat"])
    assert get(key, recorded(cast.owner).id).json()["code"] == "scope_denied"


def test_it_tells_nobody_about_the_platforms_own_names(cast: Cast) -> None:
    shown = get(cast.owner, recorded(cast.owner).id).json()
    names = {field.name for field in RequestRecord._meta.get_fields()}
    own = {"revision", "account_id", "account_name", "key_id", "key_name", "deployment", "stages", "failures"}
    assert names - set(shown) == own
