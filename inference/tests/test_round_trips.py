"""What a request asks of others: scripts of the state store, commands of the cache, connections, database queries.

These figures have no noise: one more is a change of the request's cost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

import accounts.limits
from accounts.key_cache import key_cache
from accounts.limits.scripts import load
from accounts.tests.factories import make_key, make_tier
from core.redis.wire import DirectWire
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import Api
from inference.upstream import transport

#: The scripts of the limits by digest.
SCRIPTS = {
    load(file.stem).sha: file.stem
    for file in Path(accounts.limits.__file__).parent.glob("lua/*.lua")
    if file.stem != "prelude"
}


@pytest.fixture
def trips(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that takes each round trip to the state store and the cache, and each connection to a provider."""
    trips: list[str] = []
    command, connect = DirectWire.command, transport._connect

    def counted(self: DirectWire, *parts: Any) -> Any:
        if parts[0] != b"EVAL":  # the source of a script, which the store is sent once
            trips.append(SCRIPTS[parts[1]] if parts[0] == b"EVALSHA" else str(parts[0]))
        return command(self, *parts)

    def connected(*where: Any) -> Any:
        trips.append("connect")
        return connect(*where)

    monkeypatch.setattr(DirectWire, "command", counted)
    monkeypatch.setattr(transport, "_connect", connected)
    for snapshots in (key_cache._identities, catalog._catalog):
        monkeypatch.setattr(snapshots, "_max_age", 600)
    return trips


def stream(caller: Api) -> Any:
    """Ask for a stream, and read it to its end."""
    answer = caller.chat("Tell me more.", stream=True)
    assert b"event: done" in b"".join(answer.streaming_content)  # type: ignore[attr-defined]
    return answer


@pytest.mark.parametrize(
    ("ask", "status", "expected"),
    [
        (lambda caller: caller.chat("Something new?"), 200, ["admit", "GET", "reserve", "SET", "settle"]),
        (lambda caller: caller.chat("Hello?"), 200, ["admit", "GET", "settle"]),
        (stream, 200, ["admit", "GET", "reserve", "SET", "settle"]),
        (lambda caller: caller.chat(""), 400, ["admit", "refuse"]),
        (lambda caller: caller.get("/v1/models"), 200, ["admit"]),
    ],
    ids=["miss", "hit", "stream", "malformed", "models"],
)
def test_it_makes_so_many_round_trips_and_no_query(
    api: Api,
    trips: list[str],
    django_assert_num_queries: DjangoAssertNumQueries,
    ask: Callable[[Api], Any],
    status: int,
    expected: list[str],
) -> None:
    caller = api.of(make_key(tier=make_tier("measured", requests_per_minute=100, tokens_per_minute=10**6)))
    assert caller.chat("Hello?").status_code == 200, "what is looked up once is known"
    trips.clear()
    with django_assert_num_queries(0):
        assert ask(caller).status_code == status
    assert trips == expected


def test_it_refuses_above_the_rate_in_two_round_trips(
    api: Api, trips: list[str], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    caller = api.of(make_key(tier=make_tier("once", requests_per_minute=1)))
    assert caller.chat().status_code == 200
    trips.clear()
    with django_assert_num_queries(0):
        assert caller.chat().status_code == 429
    assert trips == ["admit", "refuse"]


def test_it_refuses_a_key_that_it_knows_to_be_bad_without_a_query(
    api: Api, trips: list[str], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    unknown = make_key().plain
    api.chat()
    assert api.send("GET", "/usage", key=unknown[:-1]).status_code == 401
    trips.clear()
    with django_assert_num_queries(0):
        assert api.send("POST", "/chat", {"message": "Hello?"}, key=unknown[:-1]).status_code == 401
    assert set(trips) <= {"SET", "INCRBY", "EVAL", "GET"}, "only the attempt is counted"
    assert len(trips) <= 2
