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


def test_it_shows_what_became_of_a_request_and_none_of_the_platforms_own_names(cast: Cast) -> None:
    recorded(cast.owner, label="mine")
    record = recorded(cast.owner, label="mine", input_tokens=7, output_tokens=5).id
    answer = get(cast.owner, record)
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["label"], shown["key"], shown["status"]) == ("mine", cast.owner.key.name, 200)
    assert (shown["input_tokens"], shown["output_tokens"], shown["count"]) == (7, 5, 1)
    assert get(cast.owner, "mine").json() == shown, "the newest by its label"
    assert get(cast.owner, recorded(cast.owner, status=429, count=7).id).json()["count"] == 7
    own = {"revision", "account_id", "account_name", "key_id", "key_name", "deployment", "stages", "failures"}
    assert {field.name for field in RequestRecord._meta.get_fields()} - set(shown) == own


def test_it_shows_the_requests_of_all_keys_of_the_account_and_of_no_other(cast: Cast) -> None:
    account, record = cast.owner.key.account, recorded(cast.owner).id
    assert get(make_key(account=account, name="another"), record).status_code == 200
    narrow = make_key(account=account, name="narrow", scopes=["chat"])
    assert get(narrow, record).json()["code"] == "scope_denied"
    theirs = recorded(cast.stranger, label="theirs").id
    assert get(cast.owner, theirs).status_code == get(cast.owner, "theirs").status_code == 404
    assert get(cast.owner, "unknown").json()["code"] == "not_found"
