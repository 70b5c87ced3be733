"""A key that makes keys through /keys gets no more by it: what they use counts against its limits and budgets too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import redis

from tests.running import Answer, Platform, Served, chat, completion, running_platform, scripted_provider, wait_until
from tests.stores import Redis

MODEL, OTHER = "m", "other"
CHAT = "/v1/chat/completions"
SCOPES = ["chat", "usage", "keys:manage"]
QUESTION = "x" * 60
#: What a call uses: as many tokens of the question as it has letters. Its bound is a little more, for the overhead.
USAGE = {"prompt_tokens": 60, "completion_tokens": 20, "total_tokens": 80}
#: Room for two calls, whose cost is 0.00032 dollars each, and not for the bound of a third.
TOKENS, DOLLARS = 300, "0.0009"

_numbers = count(1)


@dataclass(frozen=True)
class Made:
    """A key, its id and its name."""

    key: str
    id: int
    name: str


@pytest.fixture(scope="module", params=["sqlite", "two workers"])
def platform(
    request: pytest.FixtureRequest, prepared: Callable[[], dict[str, str]], own_redis: Redis
) -> Iterator[Platform]:
    """Run the platform on SQLite, and on PostgreSQL with two workers."""
    is_small = request.param == "sqlite"
    env = {} if is_small else {**prepared(), "REDIS_URL": own_redis.url}
    env["REDIS_TIMEOUT"] = "2"  # a store that a busy machine makes slow is not away: rates would go on by process
    with scripted_provider() as provider:
        served = [Served(name, [provider.base_url]) for name in (MODEL, OTHER)]
        for model in served:
            provider.script(model.name, completion("Hello", usage=USAGE))
        with running_platform(env, served, workers=1 if is_small else 2, scopes=SCOPES) as running:
            yield running


def maker(platform: Platform, **limits: Any) -> tuple[str, str]:
    """Make an account and a key of it, as an operator does, that may make keys; return the account and the key."""
    account = f"team-{next(_numbers)}"
    return account, platform.add([], account=account, scopes=SCOPES, **limits)


def make(platform: Platform, key: str, **fields: Any) -> Made:
    answer = platform.ask("/keys", {"name": f"made{next(_numbers)}", **fields}, key=key)
    assert answer.status == 201, answer.body
    return Made(answer.json()["key"], answer.json()["id"], answer.json()["name"])


def ask(platform: Platform, key: str, model: str = MODEL) -> Answer:
    """Ask a question that nobody asked before."""
    return platform.ask(CHAT, chat(model, QUESTION, max_tokens=20, user=str(next(_numbers))), key=key)


def statuses(platform: Platform, keys: Sequence[str]) -> list[int]:
    """Ask with one key after the other."""
    return [ask(platform, key).status for key in keys]


def limit_of(answer: Answer) -> dict[str, Any]:
    """Return the limit that a refusal names."""
    assert answer.status == 429, answer.body
    limit: dict[str, Any] = answer.error["limit"]
    return limit


def test_it_admits_no_more_with_the_keys_that_a_key_made(platform: Platform) -> None:
    _, key = maker(platform, requests_per_minute=5)
    made = [make(platform, key) for _ in range(4)]
    answered = statuses(platform, [*(each.key for each in made), key] * 2)
    assert answered == [200] * 5 + [429] * 5
    refused = ask(platform, made[0].key)
    assert limit_of(refused).items() >= {"owner": "maker", "maker": "e2e", "used": 5, "limit": 5}.items()
    assert "This is a limit of the key e2e that made this one." in refused.error["message"]
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert '"maker";r=0' in refused.headers["ratelimit"]
    assert '"key";r=3' in refused.headers["ratelimit"] or '"key";r=4' in refused.headers["ratelimit"]
    assert limit_of(ask(platform, key))["owner"] == "key"


def test_it_shows_the_limits_of_the_maker(platform: Platform) -> None:
    _, key = maker(platform, requests_per_minute=5, monthly_token_budget=10_000)
    made = make(platform, key, requests_per_minute=2)
    assert ask(platform, key).status == ask(platform, made.key).status == 200
    states = platform.ask("/usage", key=made.key).json()["limits"]
    used = {state["name"]: state["used"] for state in states if state["owner"] == "maker"}
    assert used == {"requests_per_minute": 2, "monthly_tokens": 160}
    assert {state.get("maker") for state in states} == {"e2e", None}
    assert {state["used"] for state in states if state["owner"] == "key" and state["name"] == "monthly_tokens"} == {80}


@pytest.mark.parametrize("budget", [{"monthly_token_budget": TOKENS}, {"monthly_cost_budget": DOLLARS}])
def test_it_holds_a_budget_over_all_keys_that_a_key_made(platform: Platform, budget: dict[str, Any]) -> None:
    _, key = maker(platform, **budget)
    first, second = make(platform, key, scopes=SCOPES), make(platform, key)
    third = make(platform, first.key)
    assert statuses(platform, [second.key, third.key]) == [200, 200]
    for refused in (ask(platform, made.key) for made in (first, second, third)):
        assert refused.error["code"] == "insufficient_quota"
        assert limit_of(refused)["maker"] == "e2e"
    assert limit_of(ask(platform, key))["owner"] == "key"


def test_it_holds_a_budget_for_one_model_that_the_maker_gets_later(platform: Platform) -> None:
    account, key = maker(platform)
    made = make(platform, key)
    assert ask(platform, made.key).status == 200
    amount = ["--model", MODEL, "--tokens", str(TOKENS)]
    platform.manage("key", "budget", "--account", account, "--name", "e2e", *amount)
    answered: list[Answer] = []  # each worker knows the budget within a second, not all at the same time

    def is_refused() -> bool:
        answered.append(ask(platform, made.key))
        return answered[-1].status != 200

    wait_until(is_refused, "the budget of the maker", 5)
    limit = limit_of(answered[-1])
    assert (limit["owner"], limit["maker"], limit["model"]) == ("maker model", "e2e", MODEL)
    assert ask(platform, made.key, OTHER).status == 200


def test_it_lets_a_key_make_keys_over_three_generations(platform: Platform) -> None:
    _, key = maker(platform, requests_per_minute=4)
    generations = [key]
    for _ in range(3):
        generations.append(make(platform, generations[-1], scopes=SCOPES).key)
    refused = platform.ask("/keys", {"name": "too-deep"}, key=generations[-1])
    assert refused.status == 403
    assert "3 generations below a key that an operator made" in refused.json()["detail"]
    assert statuses(platform, [*generations, *generations]) == [200] * 4 + [429] * 4
    last = ask(platform, generations[-1])
    names = [policy.split(";")[0] for policy in last.headers["ratelimit-policy"].split(", ")]
    assert names == ['"key"', '"maker"', '"maker-2"', '"maker-3"']


def test_it_goes_on_holding_the_limits_of_a_revoked_maker(platform: Platform) -> None:
    account, key = maker(platform, requests_per_minute=2)
    first, second = make(platform, key), make(platform, key)
    told = platform.manage("key", "revoke", "--account", account, "--name", "e2e")
    assert all(name in told for name in (first.name, second.name))
    wait_until(lambda: platform.ask("/usage", key=key).status == 401, "the revocation", 5)
    assert statuses(platform, [first.key, second.key]) == [200, 200]
    assert [limit_of(ask(platform, made.key))["maker"] for made in (first, second)] == ["e2e", "e2e"]


def test_it_counts_on_through_rotations(platform: Platform) -> None:
    _, key = maker(platform, requests_per_minute=5)
    made = make(platform, key)
    own = platform.ask("/keys", key=key).json()
    ids = {each["name"]: each["id"] for each in own}
    successor = platform.ask(f"/keys/{ids['e2e']}/rotate", {"grace_seconds": 3600}, key=key).json()["key"]
    replaced = platform.ask(f"/keys/{made.id}/rotate", {"grace_seconds": 3600}, key=successor).json()
    assert replaced["maker"] == ids["e2e"]
    later = make(platform, successor)
    keys = [key, made.key, successor, replaced["key"], later.key]
    assert statuses(platform, keys) == [200] * 5
    assert statuses(platform, keys) == [429] * 5
    assert limit_of(ask(platform, replaced["key"]))["maker"] == "e2e-2"


def test_it_lets_a_made_key_take_over_no_key_above_or_beside_it(platform: Platform) -> None:
    platform.manage("key", "create", "--account", "e2e", "--tier", "e2e", "--name", "beside")
    made = make(platform, platform.key, scopes=SCOPES)
    ids = {each["name"]: each["id"] for each in platform.ask("/keys", key=made.key).json()}
    for name in ("e2e", "beside"):
        for what, body in (("rotate", {"grace_seconds": 0}), ("revoke", {})):
            refused = platform.ask(f"/keys/{ids[name]}/{what}", body, key=made.key)
            assert refused.status == 403, (name, what)
            assert "maker" in refused.json()["detail"]
    below = make(platform, made.key)
    assert platform.ask(f"/keys/{below.id}/revoke", {}, key=made.key).status == 200


def test_it_shows_an_operator_who_made_a_key_and_what_goes_on_working(platform: Platform) -> None:
    made = make(platform, platform.key, scopes=SCOPES, name="made-for-the-admin")
    make(platform, made.key, name="made-by-the-made")
    ids = {each["name"]: each["id"] for each in platform.ask("/keys").json()}
    page = platform.admin.page(f"/admin/accounts/apikey/{made.id}/change/").words
    assert "Created by e2e (" in page
    assert "made-by-the-made" in page
    page = platform.admin.page(f"/admin/accounts/apikey/{ids['e2e']}/change/").words
    assert "made-for-the-admin" in page
    question = platform.admin.page(f"/admin/accounts/apikey/{ids['e2e']}/revoke/").words
    assert "made-for-the-admin" in question
    assert "made-by-the-made" in question
    assert "keep working" in question


def test_it_begins_again_where_the_records_are_when_the_store_is_emptied(platform: Platform) -> None:
    platform.manage("worker", "--once", "ingest")
    _, key = maker(platform, monthly_token_budget=TOKENS)
    ids = {each["name"]: each["id"] for each in platform.ask("/keys", key=key).json()}
    made = make(platform, key)
    platform.ask(f"/keys/{ids['e2e']}/rotate", {"grace_seconds": 3600}, key=key)
    answered = [ask(platform, each) for each in (made.key, key)]
    assert [answer.status for answer in answered] == [200, 200]
    check = ("check_rollups", "--days", "1")  # first with the records on their way, then with them in the database
    assert "The ledgers agree with the records." in platform.manage(*check)
    platform.record(answered[-1])
    assert "The ledgers agree with the records." in platform.manage(*check)
    redis.Redis.from_url(platform.service.env["REDIS_URL"]).flushall()
    assert [limit_of(ask(platform, each))["used"] for each in (made.key, key)] == [160, 160]
    assert "The ledgers agree with the records." in platform.manage(*check)
