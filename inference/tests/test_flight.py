"""Single flight: who leads, who waits, what those who wait get, and who takes over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis as redis_client
from django.conf import LazySettings

from core.errors import ApiError, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from core.redis.client import StateStore, state_store
from core.redis.scripts import Script
from core.redis.wire import Argument, Call, Wire
from inference.cache import CachedAnswer
from inference.single_flight import LEASE_MS, LOOK_SECONDS, Flight, Flights, Wait
from inference.upstream.errors import Deadline
from launch.system import free_port
from tests.processes import wait_until
from tests.stores import Redis, redis_cluster

ANSWER = CachedAnswer({"choices": []}, 1, 0, 1, "p/m")
KEY = "key"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Run those who wait."""
    with ThreadPoolExecutor(20) as threads:
        yield threads


@pytest.fixture
def alone(settings: LazySettings) -> Flights:
    """Return the flights of a process with a cache of its own."""
    settings.CACHE_URL = ""
    return Flights()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, CachedAnswer]:
    """Be the cache that all share."""
    stored: dict[str, CachedAnswer] = {}
    monkeypatch.setattr("inference.single_flight.look_up", stored.get)
    return stored


def wait(seconds: float = 10) -> Wait:
    """Be a caller that has so much time."""
    return Wait(Deadline(seconds))


def follow(pool: ThreadPoolExecutor, flights: Flights, flight: Flight, number: int = 1) -> list[Future[Any]]:
    """Let so many others join, and wait until they do."""
    before = flight.followers
    waiting = [pool.submit(flights.join, KEY, wait()) for _ in range(number)]
    wait_until(lambda: flight.followers == before + number, "followers")
    return waiting


def lead(flights: Flights, key: str = KEY) -> Flight:
    """Join as the first."""
    flight = flights.join(key, wait())
    assert isinstance(flight, Flight)
    return flight


def test_it_hands_the_answer_to_all_who_wait(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    waiting = follow(pool, alone, flight, 10)
    alone.leave(KEY, flight, answer=ANSWER)
    assert [each.result(5) for each in waiting] == [ANSWER] * 10
    assert flight.followers == 0


def test_it_hands_the_error_to_all_who_wait(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    waiting = follow(pool, alone, flight, 3)
    alone.leave(KEY, flight, error=UpstreamFailed())
    for each in waiting:
        with pytest.raises(UpstreamFailed):
            each.result(5)


def test_it_lets_one_of_those_who_wait_lead_when_there_is_no_outcome(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    waiting = follow(pool, alone, flight, 5)
    alone.leave(KEY, flight)
    wait_until(lambda: sum(each.done() for each in waiting) == 1, "one to lead")
    (leader,) = [each for each in waiting if each.done()]
    wait_until(lambda: leader.result().followers == 4, "the others to follow")
    alone.leave(KEY, leader.result(), answer=ANSWER)
    assert [each.result(5) for each in waiting if each is not leader] == [ANSWER] * 4


def test_it_keeps_keys_apart(alone: Flights) -> None:
    assert lead(alone, "one") is not lead(alone, "another")


def test_it_begins_anew_after_a_flight(alone: Flights) -> None:
    first = lead(alone)
    alone.leave(KEY, first, answer=ANSWER)
    assert lead(alone) is not first


def test_it_looks_again_for_the_answer_of_a_flight_that_was_just_over(
    alone: Flights, answers: dict[str, CachedAnswer]
) -> None:
    flight = lead(alone)
    answers[KEY] = ANSWER  # for whoever found nothing there before
    alone.leave(KEY, flight, answer=ANSWER)
    assert alone.join(KEY, wait()) == ANSWER


def test_it_waits_no_longer_than_its_own_call_may_take(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    (patient,) = follow(pool, alone, flight)
    with pytest.raises(UpstreamTimeout):
        alone.join(KEY, wait(0.05))
    assert flight.followers == 1
    assert not patient.done()
    alone.leave(KEY, flight, answer=ANSWER)
    assert patient.result(5) == ANSWER


def test_it_does_not_lead_when_the_time_is_up(alone: Flights) -> None:
    with pytest.raises(UpstreamTimeout):
        alone.join(KEY, wait(0))
    lead(alone)


def test_it_waits_no_longer_when_it_is_not_wanted(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight, left = lead(alone), threading.Event()
    waiting = pool.submit(alone.join, KEY, Wait(Deadline(10), left.is_set))
    wait_until(lambda: flight.followers == 1, "a follower")
    left.set()
    assert waiting.result(2) is None
    assert flight.followers == 0


def test_it_knows_who_follows(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight, other = lead(alone), wait()
    assert not alone.is_awaited(KEY, flight)
    waiting = pool.submit(alone.join, KEY, other)
    wait_until(lambda: other.follows, "a follower")
    assert alone.is_awaited(KEY, flight)
    alone.leave(KEY, flight)
    assert isinstance(waiting.result(5), Flight)
    assert (other.follows, other.has_followed) == (False, True)


def test_it_lets_a_leader_store_where_it_has_no_rivals(alone: Flights) -> None:
    assert alone.may_store(lead(alone))


# Between processes: two Flights are two processes


@pytest.fixture
def two(settings: LazySettings, redis: Redis) -> Iterator[tuple[Flights, Flights]]:
    """Return the flights of two processes that share a Redis and a cache."""
    settings.REDIS_URL = redis.url
    with redis_client.Redis.from_url(redis.url) as client:
        client.flushall()
    both = Flights(), Flights()
    yield both
    for flights in both:  # nobody renews what is left of them during other tests
        for key, flight in list(flights._open.items()):
            flights.leave(key, flight)


def test_it_leads_in_one_process_only(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor
) -> None:
    one, other = two
    flight = lead(one)
    assert one.may_store(flight)
    follower = wait()
    waiting = pool.submit(other.join, KEY, follower)
    wait_until(lambda: follower.follows, "the other process")
    time.sleep(3 * LOOK_SECONDS)
    assert not waiting.done()
    answers[KEY] = ANSWER
    assert waiting.result(5) == ANSWER
    one.leave(KEY, flight, answer=ANSWER)


def test_it_takes_the_lead_at_once_when_the_other_leaves_without_an_answer(
    two: tuple[Flights, Flights],
    answers: dict[str, CachedAnswer],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference.single_flight.LEASE_MS", 60_000)  # nobody waits for the end of it
    one, other = two
    flight, follower = lead(one), wait()
    waiting = pool.submit(other.join, KEY, follower)
    wait_until(lambda: follower.follows, "the other process")
    one.leave(KEY, flight)
    assert isinstance(waiting.result(5), Flight)
    assert not follower.follows


def busy_as(code: str) -> UpstreamBusy:
    """Make the error of a provider that is busy and says so by a code of its own."""
    error = UpstreamBusy(retry_after=7)
    error.error_code = code
    return error


@pytest.mark.parametrize(
    "error",
    [
        UpstreamTimeout(),
        UpstreamFailed(),
        UpstreamBusy(retry_after=7),
        busy_as("rate_limit_exceeded"),
        InvalidRequest("The model provider rejected the request.", param="messages", code="context_length_exceeded"),
    ],
    ids=lambda error: error.error_code,
)
def test_it_tells_those_who_wait_elsewhere_how_it_failed(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor, error: ApiError
) -> None:
    one, other = two
    flight = lead(one)
    first = pool.submit(other.join, KEY, wait())
    wait_until(lambda: one.is_awaited(KEY, flight), "the other process")
    behind = follow(pool, other, other._open[KEY], 2)
    one.leave(KEY, flight, error=error)
    for each in (first, *behind):
        with pytest.raises(type(error)) as met:
            each.result(5)
        told = met.value
        assert (told.detail, told.param, told.error_code) == (error.detail, error.param, error.error_code)
        assert told.headers == error.headers
    assert isinstance(other.join(KEY, wait()), Flight), "who comes later asks anew"


def test_it_asks_anew_for_whoever_comes_in_the_millisecond_of_a_failure(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer]
) -> None:
    for _ in range(20):
        for flights in two:
            flight = flights.join(KEY, wait())
            assert isinstance(flight, Flight)
            flights.leave(KEY, flight, error=UpstreamFailed())


def test_it_asks_anew_for_whoever_comes_between_a_failure_elsewhere_and_a_look(
    two: tuple[Flights, Flights],
    answers: dict[str, CachedAnswer],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference.single_flight.LOOK_SECONDS", 1.0)
    one, other = two
    flight, follower = lead(one), wait()
    waiting = pool.submit(other.join, KEY, follower)
    wait_until(lambda: one.is_awaited(KEY, flight), "the other process")
    one.leave(KEY, flight, error=UpstreamFailed())
    time.sleep(0.01)  # the store counts in milliseconds
    (late,) = follow(pool, other, other._open[KEY])
    with pytest.raises(UpstreamFailed):
        waiting.result(5)
    assert isinstance(late.result(5), Flight)


def test_it_looks_again_for_the_answer_of_a_flight_that_was_just_over_elsewhere(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer]
) -> None:
    one, other = two
    flight = lead(one)
    answers[KEY] = ANSWER  # for whoever found nothing there before
    one.leave(KEY, flight, answer=ANSWER)
    assert other.join(KEY, wait()) == ANSWER


def test_it_does_all_that_on_a_cluster(
    settings: LazySettings, answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor
) -> None:
    with redis_cluster() as nodes:
        settings.REDIS_URL = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        one, other = Flights(), Flights()
        flight = lead(one)
        waiting = pool.submit(other.join, KEY, wait())
        wait_until(lambda: one.is_awaited(KEY, flight), "the other process")
        others = {f"number {number}": lead(one, f"number {number}") for number in range(20)}
        time.sleep(2 * LEASE_MS / 1000)
        assert one.may_store(flight)
        assert all(one.may_store(each) for each in others.values())
        for key, each in others.items():
            one.leave(key, each)
        one.leave(KEY, flight, error=UpstreamFailed())
        with pytest.raises(UpstreamFailed):
            waiting.result(5)


def test_it_tells_those_of_it_who_waited_behind_one_that_gave_up(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor
) -> None:
    one, other = two
    flight, hurry = lead(one), wait()
    hurried = pool.submit(other.join, KEY, hurry)
    wait_until(lambda: one.is_awaited(KEY, flight), "the other process")
    behind = follow(pool, other, other._open[KEY], 3)
    hurry.deadline.ends = 0
    with pytest.raises(UpstreamTimeout):
        hurried.result(5)
    one.leave(KEY, flight, error=UpstreamFailed())
    for each in behind:
        with pytest.raises(UpstreamFailed):
            each.result(5)


def test_it_takes_an_answer_that_came_while_it_followed_another_of_its_process(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor
) -> None:
    flights, _ = two
    flight = lead(flights)
    (waiting,) = follow(pool, flights, flight)
    answers[KEY] = ANSWER
    flights.leave(KEY, flight)
    assert waiting.result(5) == ANSWER


def test_it_knows_whether_somebody_waits_elsewhere(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor
) -> None:
    one, other = two
    flight = lead(one)
    assert not one.is_awaited(KEY, flight)
    left = threading.Event()
    waiting = pool.submit(other.join, KEY, Wait(Deadline(10), left.is_set))
    wait_until(lambda: one.is_awaited(KEY, flight), "the other process")
    time.sleep(2 * LEASE_MS / 1000)
    assert one.is_awaited(KEY, flight)
    left.set()
    assert waiting.result(5) is None
    wait_until(lambda: not one.is_awaited(KEY, flight), "the mark to fade", 2 * LEASE_MS / 1000)
    one.leave(KEY, flight)


def test_it_keeps_the_lead_while_it_works(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor
) -> None:
    one, other = two
    flight = lead(one)
    waiting = pool.submit(other.join, KEY, wait())
    time.sleep(2 * LEASE_MS / 1000)
    assert not waiting.done()
    assert one.may_store(flight)
    one.leave(KEY, flight)
    waiting.result(5)


def test_it_takes_over_within_a_second_from_a_leader_that_died(
    two: tuple[Flights, Flights],
    answers: dict[str, CachedAnswer],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = two
    monkeypatch.setattr(one._keeper, "begin", lambda: None)  # a dead process renews nothing
    flight = lead(one)
    successor = pool.submit(other.join, KEY, wait()).result(5)
    assert isinstance(successor, Flight)
    assert LEASE_MS / 1000 + LOOK_SECONDS <= 1, "after the lease it looks once more"
    assert other.may_store(successor)
    monkeypatch.undo()
    one._keeper.begin()  # the dead was only slow
    wait_until(lambda: not one.may_store(flight), "the old leader to learn of it")
    one.leave(KEY, flight, answer=ANSWER)
    assert other.may_store(successor)


class Distant:
    """The way to a Redis that is far away: each round trip takes so many seconds."""

    def __init__(self, wire: Wire, seconds: float) -> None:
        self._wire = wire
        self._seconds = seconds

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script."""
        time.sleep(self._seconds)
        return self._wire.call(script, prefix, arguments)

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times, in one round trip after the first."""
        time.sleep(2 * self._seconds)
        return self._wire.call_each(script, calls)


def test_it_renews_many_leases_before_any_is_over(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    flights, _ = two
    leading = {f"number {number}": lead(flights, f"number {number}") for number in range(100)}
    near = state_store()
    far: Any = Distant(near.wire, LEASE_MS / 1000 / len(leading))
    store = StateStore(far, near.availability)
    monkeypatch.setattr("inference.single_flight.state_store", lambda: store)
    time.sleep(3 * LEASE_MS / 1000)
    lost = [key for key, flight in leading.items() if not flights.may_store(flight)]
    for key, flight in leading.items():
        flights.leave(key, flight)
    assert lost == []


def test_it_goes_on_renewing_leases_after_a_failure(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    flights, _ = two
    failing = lead(flights)
    with monkeypatch.context() as patched:
        patched.setattr(flights._leases, "renew_each", lambda held: 1 / 0)
        wait_until(lambda: not flights.may_store(failing), "the failure")
    kept = lead(flights, "another")
    time.sleep(2 * LEASE_MS / 1000)
    assert flights.may_store(kept)
    for key, flight in ((KEY, failing), ("another", kept)):
        flights.leave(key, flight)


def test_it_gives_a_lease_back_to_a_redis_that_is_full(
    two: tuple[Flights, Flights], answers: dict[str, CachedAnswer], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.single_flight.LEASE_MS", 60_000)
    one, other = two
    flight = lead(one)
    with redis_client.Redis.from_url(redis.url) as client:
        client.config_set("maxmemory", 1)
        try:
            one.leave(KEY, flight, answer=ANSWER)
        finally:
            client.config_set("maxmemory", 0)
    assert other.join(KEY, wait(2)) is not None


def test_it_leaves_each_process_to_itself_while_redis_is_away(
    settings: LazySettings,
) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    processes = Flights(), Flights()
    leading = [lead(flights) for flights in processes]
    for flights, flight in zip(processes, leading, strict=True):
        flights.leave(KEY, flight, answer=ANSWER)
        assert isinstance(flights.join(KEY, wait()), Flight)  # the next asks again: nothing is kept open
