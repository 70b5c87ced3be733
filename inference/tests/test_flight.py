"""Single flight: who leads, who waits, what those who wait get, and who takes over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from django.conf import LazySettings

from accounts.key_cache import AuthenticatedKey, build_authenticated_key
from accounts.tests.factories import make_key, make_tier
from accounts.tests.limits_fixtures import limits_on
from core.errors import ApiError, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from core.telemetry.trace import begin_trace
from inference.cache import CachedAnswer
from inference.call import Call
from inference.clients import ClientLeft
from inference.fake_provider import FakeUpstream
from inference.pipeline import complete
from inference.protocols.chat import chat_protocol
from inference.single_flight import Flight, Flights, Wait
from inference.upstream.errors import Deadline
from tests.processes import wait_until

ANSWER = CachedAnswer({"choices": []}, 2, "p/m")
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


def wait(seconds: float = 10, key: str = KEY) -> Wait:
    """Be a caller that has so much time."""
    return Wait(key, Deadline(seconds), since=0)


def follow(pool: ThreadPoolExecutor, flights: Flights, flight: Flight, number: int = 1) -> list[Future[Any]]:
    """Let so many others join, and wait until they do."""
    before = flight.followers
    waiting = [pool.submit(flights.join, wait()) for _ in range(number)]
    wait_until(lambda: flight.followers == before + number, "followers")
    return waiting


def lead(flights: Flights, key: str = KEY) -> Flight:
    """Join as the first."""
    flight = flights.join(wait(key=key))
    assert isinstance(flight, Flight)
    return flight


def test_it_hands_the_answer_to_all_who_wait(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    waiting = follow(pool, alone, flight, 10)
    alone.leave(flight, answer=ANSWER)
    assert [each.result(5) for each in waiting] == [ANSWER] * 10
    assert flight.followers == 0


def test_it_hands_the_error_to_all_who_wait(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    waiting = follow(pool, alone, flight, 3)
    alone.leave(flight, error=UpstreamFailed())
    for each in waiting:
        with pytest.raises(UpstreamFailed):
            each.result(5)


def test_it_lets_one_of_those_who_wait_lead_when_there_is_no_outcome(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    waiting = follow(pool, alone, flight, 5)
    alone.leave(flight)
    wait_until(lambda: sum(each.done() for each in waiting) == 1, "one to lead")
    (leader,) = [each for each in waiting if each.done()]
    wait_until(lambda: leader.result().followers == 4, "the others to follow")
    alone.leave(leader.result(), answer=ANSWER)
    assert [each.result(5) for each in waiting if each is not leader] == [ANSWER] * 4


def test_it_keeps_keys_apart(alone: Flights) -> None:
    assert lead(alone, "one") is not lead(alone, "another")


def test_it_begins_anew_after_a_flight(alone: Flights) -> None:
    first = lead(alone)
    alone.leave(first, answer=ANSWER)
    assert lead(alone) is not first


def test_it_looks_again_for_the_answer_of_a_flight_that_was_just_over(
    alone: Flights, answers: dict[str, CachedAnswer]
) -> None:
    flight = lead(alone)
    answers[KEY] = ANSWER  # for whoever found nothing there before
    alone.leave(flight, answer=ANSWER)
    assert alone.join(wait()) == ANSWER


def test_it_waits_no_longer_than_its_own_call_may_take(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight = lead(alone)
    (patient,) = follow(pool, alone, flight)
    with pytest.raises(UpstreamTimeout):
        alone.join(wait(0.05))
    assert flight.followers == 1
    assert not patient.done()
    alone.leave(flight, answer=ANSWER)
    assert patient.result(5) == ANSWER


def test_it_does_not_lead_when_the_time_is_up(alone: Flights) -> None:
    with pytest.raises(UpstreamTimeout):
        alone.join(wait(0))
    lead(alone)


def test_it_waits_no_longer_when_it_is_not_wanted(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight, left = lead(alone), threading.Event()
    waiting = pool.submit(alone.join, Wait(KEY, Deadline(10), 0, left.is_set))
    wait_until(lambda: flight.followers == 1, "a follower")
    left.set()
    assert waiting.result(2) is None
    assert flight.followers == 0


def test_it_knows_who_follows(alone: Flights, pool: ThreadPoolExecutor) -> None:
    flight, other = lead(alone), wait()
    waiting = pool.submit(alone.join, other)
    wait_until(lambda: other.follows, "a follower")
    assert flight.followers == 1
    alone.leave(flight)
    assert isinstance(waiting.result(5), Flight)
    assert not other.follows


def test_it_takes_an_answer_that_came_while_it_followed_another(
    alone: Flights, answers: dict[str, CachedAnswer], pool: ThreadPoolExecutor
) -> None:
    flight = lead(alone)
    (waiting,) = follow(pool, alone, flight)
    answers[KEY] = ANSWER
    alone.leave(flight)
    assert waiting.result(5) == ANSWER


# Between processes: the pipeline, run by two processes on one state store and one cache

BODY = {"choices": [{"message": {"content": "Here."}, "finish_reason": "stop"}], "usage": {"total_tokens": 2}}


class Process:
    """A process with limits and flights of its own. Its callers ask all the same, and the exchange is the test's."""

    def __init__(self, url: str, identity: AuthenticatedKey) -> None:
        self.limits = limits_on(url)
        self.flights = Flights()
        self.identity = identity
        #: The exchanges of calls that lead, to be ended by the test: with a body, or an error.
        self.exchanges: list[Future[Any]] = []

    def call(self, seconds: float = 10) -> Call:
        """Admit a caller that has so much time."""
        trace = begin_trace(None)
        admission = self.limits.admit(self.identity.limits, trace.id.hex)
        call = Call(identity=self.identity, trace=trace, admission=admission, endpoint="chat")
        payload = {"messages": [{"role": "user", "content": "the same"}]}
        call.choose(chat_protocol, None)
        call.ask(payload, read=lambda body: body["choices"][0]["message"]["content"])
        call.deadline = Deadline(seconds)
        return call

    def answer(self, call: Call) -> Any:
        """Take a call through the pipeline."""
        running.process = self
        return complete(call, self._exchange)

    def _exchange(self, call: Call) -> Any:
        ended: Future[Any] = Future()
        self.exchanges.append(ended)
        try:
            call.body = ended.result(10)
        except ApiError as error:
            raise call.provider_failed(error) from error
        return call.read(call.body)


running: Any = threading.local()


class Running:
    """The flights of the process that runs in this thread."""

    def __getattr__(self, name: str) -> Any:
        return getattr(running.process.flights, name)


@pytest.fixture
def two(
    db: None, upstream: FakeUpstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Process]]:
    """Run two processes."""
    for module in ("call", "pipeline"):
        monkeypatch.setattr(f"inference.{module}.get_limits", lambda: running.process.limits)
    monkeypatch.setattr("inference.pipeline.flights", Running())
    key = make_key(tier=make_tier("roomy", requests_per_minute=None)).key
    identity = build_authenticated_key(key, key.created_at)
    processes = [Process(settings.REDIS_URL, identity) for _ in range(2)]
    yield processes
    for process in processes:
        process.limits.end()
        process.limits.store.end()


def ask(
    pool: ThreadPoolExecutor, process: Process, number: int = 1, *, seconds: float = 10
) -> list[tuple[Call, Future[Any]]]:
    """Let so many ask."""
    calls = [process.call(seconds) for _ in range(number)]
    return [(call, pool.submit(process.answer, call)) for call in calls]


def led(pool: ThreadPoolExecutor, process: Process) -> tuple[Future[Any], Future[Any]]:
    """Let one ask who leads; return its exchange and its answer."""
    before = len(process.exchanges)
    ((_, answer),) = ask(pool, process)
    wait_until(lambda: len(process.exchanges) > before, "the leader's exchange")
    return process.exchanges[-1], answer


def followed(pool: ThreadPoolExecutor, process: Process, number: int = 1, *, seconds: float = 10) -> list[Future[Any]]:
    """Let so many ask who follow."""
    asked = ask(pool, process, number, seconds=seconds)
    wait_until(lambda: all(call.wait is not None and call.wait.follows for call, _ in asked), "followers")
    return [answer for _, answer in asked]


def test_it_leads_in_one_process_only(two: list[Process], pool: ThreadPoolExecutor) -> None:
    one, other = two
    exchange, answer = led(pool, one)
    waiting = followed(pool, other, 3)
    exchange.set_result(BODY)
    assert [each.result(5) for each in (answer, *waiting)] == ["Here."] * 4
    assert other.exchanges == []


def test_it_takes_the_lead_at_once_when_the_other_leaves_without_an_answer(
    two: list[Process], pool: ThreadPoolExecutor
) -> None:
    one, other = two
    exchange, answer = led(pool, one)
    waiting = followed(pool, other, 2)
    exchange.set_exception(ClientLeft())
    wait_until(lambda: len(other.exchanges) == 1, "another to lead", 1)
    other.exchanges[0].set_result(BODY)
    assert [each.result(5) for each in waiting] == ["Here."] * 2
    with pytest.raises(ClientLeft):
        answer.result(5)


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
    two: list[Process], pool: ThreadPoolExecutor, error: ApiError
) -> None:
    one, other = two
    exchange, answer = led(pool, one)
    waiting = followed(pool, other, 3)
    exchange.set_exception(error)
    for each in (answer, *waiting):
        with pytest.raises(type(error)) as met:
            each.result(5)
        told = met.value
        assert (told.detail, told.param, told.error_code) == (error.detail, error.param, error.error_code)
        assert told.headers == error.headers
    assert other.exchanges == []
    led(pool, other)[0].set_result(BODY)  # who comes later asks anew


def test_it_asks_anew_for_whoever_comes_in_the_millisecond_of_a_failure(
    two: list[Process], pool: ThreadPoolExecutor
) -> None:
    for process in two * 10:
        exchange, answer = led(pool, process)
        exchange.set_exception(UpstreamFailed())
        with pytest.raises(UpstreamFailed):
            answer.result(5)


def test_it_asks_anew_for_whoever_comes_between_a_failure_elsewhere_and_a_look(
    two: list[Process], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.single_flight.LOOK_SECONDS", 1.0)
    one, other = two
    exchange, answer = led(pool, one)
    (waiting,) = followed(pool, other)
    exchange.set_exception(UpstreamFailed())
    with pytest.raises(UpstreamFailed):
        answer.result(5)
    (late,) = followed(pool, other)
    with pytest.raises(UpstreamFailed):
        waiting.result(5)
    wait_until(lambda: len(other.exchanges) == 1, "the late one to lead")
    other.exchanges[0].set_result(BODY)
    assert late.result(5) == "Here."


def test_it_looks_again_for_the_answer_of_a_flight_that_was_just_over_elsewhere(
    two: list[Process], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    exchange, answer = led(pool, one)
    late = other.call()
    exchange.set_result(BODY)
    answer.result(5)
    monkeypatch.setattr("inference.pipeline.find_cached", lambda call: None)  # it looked before the answer was there
    assert pool.submit(other.answer, late).result(5) == "Here."
    assert other.exchanges == []
    assert late.record.cache == "coalesced"


def test_it_tells_those_of_it_who_waited_behind_one_that_gave_up(two: list[Process], pool: ThreadPoolExecutor) -> None:
    one, other = two
    exchange, _ = led(pool, one)
    (hurried,) = followed(pool, other, seconds=0.5)
    behind = followed(pool, other, 3)
    with pytest.raises(UpstreamTimeout):
        hurried.result(5)
    exchange.set_exception(UpstreamFailed())
    for each in behind:
        with pytest.raises(UpstreamFailed):
            each.result(5)


def test_it_stores_no_answer_after_it_was_taken_over(
    two: list[Process], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    monkeypatch.setattr(one.limits._heart, "begin", lambda: None)  # a process that is frozen shows no sign of life
    exchange, answer = led(pool, one)
    ask(pool, other)
    wait_until(lambda: len(other.exchanges) == 1, "another to take over", 1.3)
    one.limits._beat()  # it was only slow
    exchange.set_result({**BODY, "choices": [{"message": {"content": "Stale."}, "finish_reason": "stop"}]})
    assert answer.result(5) == "Stale."
    (waiting,) = followed(pool, one)
    other.exchanges[0].set_result(BODY)
    assert waiting.result(5) == "Here."


def test_it_leaves_each_process_to_itself_while_redis_is_away(
    two: list[Process], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.cache.look_up", lambda key: None)
    for process in two:
        process.limits.store.is_away = True
        exchange, answer = led(pool, process)
        waiting = followed(pool, process)
        exchange.set_result(BODY)
        assert [each.result(5) for each in (answer, *waiting)] == ["Here."] * 2


def test_it_stores_answers_while_redis_is_away(two: list[Process], pool: ThreadPoolExecutor) -> None:
    one, other = two
    for process in two:
        process.limits.store.is_away = True
    exchange, answer = led(pool, one)
    exchange.set_result(BODY)
    assert answer.result(5) == "Here."
    ((call, again),) = ask(pool, other)
    assert again.result(5) == "Here."
    assert call.record.cache == "hit"


def test_it_takes_no_turns_where_answers_cant_be_shared(
    two: list[Process], pool: ThreadPoolExecutor, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.cache.store", lambda key, answer: None)
    one, other = two
    third = Process(settings.REDIS_URL, one.identity)
    try:
        exchange, answer = led(pool, one)
        waiting = ask(pool, other) + ask(pool, third)
        wait_until(lambda: all(call.wait is not None and call.wait.follows for call, _ in waiting), "followers")
        exchange.set_result(BODY)
        wait_until(lambda: len(other.exchanges) + len(third.exchanges) == 1, "one to lead")
        wait_until(lambda: all(call.wait is not None and call.wait.misses for call, _ in waiting), "a look in vain")
        second, last = (other, third) if other.exchanges else (third, other)
        late = followed(pool, one)
        second.exchanges[0].set_result(BODY)
        wait_until(lambda: len(last.exchanges) == 1 and len(one.exchanges) == 2, "both others at once", 3)
        for process in (last, one):
            process.exchanges[-1].set_result(BODY)
        assert [each.result(8) for each in (answer, *(each for _, each in waiting), *late)] == ["Here."] * 4
    finally:
        third.limits.end()
        third.limits.store.end()


#: The loop is busy until the leader's time to end and the followers' to look around have both come; it then serves them
#: in this order, before it wakes anybody.
ENDING = """
from gevent import monkey; monkey.patch_all()
import django; django.setup()
import time, gevent
from inference import single_flight as flight
from inference.upstream.errors import Deadline

def busy():
    gevent.sleep(0.05)
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        pass

flight.WANTED_SECONDS = 0.2
shared = flight.Flight("key")
followers = [gevent.spawn(shared.outcome, flight.Wait("key", Deadline(30), 0)) for _ in range(5)]
gevent.spawn(busy)
gevent.sleep(0.1)
shared.end("the answer", None)
gevent.joinall(followers, timeout=5)
print([each.value for each in followers].count("the answer"))
"""


def test_it_wakes_all_who_look_around_while_it_ends(settings: LazySettings) -> None:
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "aiapi.settings"}
    done = subprocess.run(
        [sys.executable, "-c", ENDING], env=env, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False
    )
    assert done.stdout == "5\n", done.stderr
