"""GET /requests and /requests/{id}: an account's own records of its requests."""

from __future__ import annotations

from typing import Any
from uuid import UUID

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


def listed(issued: IssuedKey, query: str = "") -> Any:
    """List requests."""
    return Client().get(f"/requests{query}", **issued.headers)  # type: ignore[arg-type]


def test_it_lists_the_accounts_own_requests_page_by_page_the_newest_first(cast: Cast) -> None:
    own = [str(UUID(str(recorded(cast.owner).id))) for _ in range(5)]
    theirs = recorded(cast.stranger).id
    seen, query = [], "?limit=2"
    while query:
        page = listed(cast.owner, query).json()
        seen += page["requests"]
        query = page["next"] and f"?limit=2&before={page['next']}"
    assert [each["id"] for each in seen] == own[::-1]
    assert seen[0] == get(cast.owner, own[-1]).json()
    assert listed(make_key(account=cast.owner.key.account, name="another")).json() == {"requests": seen, "next": None}
    assert listed(cast.owner, f"?before={theirs}").status_code == 404


@pytest.mark.parametrize("query", ["?limit=0", "?limit=101", "?limit=x", "?before=x", "?before=", "?page=2"])
def test_it_refuses_a_list_that_it_does_not_know(cast: Cast, query: str) -> None:
    assert (listed(cast.owner, query).status_code, listed(cast.revoked).status_code) == (400, 401)
    narrow = make_key(account=cast.owner.key.account, name="narrow", scopes=["chat"])
    assert listed(narrow).json()["code"] == "scope_denied"
