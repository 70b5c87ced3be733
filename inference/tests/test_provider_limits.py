"""Limits of calls to providers: the next provider is asked, and callers are told when to come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.conf import LazySettings
from django.core.exceptions import ValidationError

from accounts.key_cache import build_authenticated_key
from accounts.limits import get_limits
from accounts.limits.backend import LimitBackend
from accounts.limits.scripts import prefix_of
from accounts.limits.types import Amount, Bound, InFlight, Limits, LimitSet, Refusal, Reserved
from accounts.tests.factories import ACTOR
from accounts.tests.limits_fixtures import DRAFT, an_operation
from core.errors import UpstreamBusy
from core.redis.leases import renewer
from core.redis.wire import DirectWire, Script
from inference.catalog import Route, catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Provider
from inference.services import catalog_save
from inference.tests.fixtures import MODEL, Api, Records
from inference.upstream.breaker import breakers
from inference.upstream.provider_limits import Capacity, capacity, take_slot
from tests.processes import wait_until


@pytest.fixture
def provider(upstream: FakeUpstream) -> Provider:
    """Return the provider of the model."""
    return Deployment.objects.select_related("provider").get(model__public_name=MODEL).provider


def limit(provider: Provider, **limits: int | None) -> LimitSet | None:
    """Change the limits of a provider; return what they are kept under."""
    return limited_route(provider, **limits).provider_limits


def limited_route(provider: Provider, **limits: int | None) -> Route:
    """Change the limits of a provider; return the route to it."""
    for name, value in limits.items():
        setattr(provider, name, value)
    catalog_save(row=provider, actor=ACTOR)
    catalog.forget()
    model = catalog.find(MODEL)
    assert model is not None
    return next(route for route in model.routes if route.provider == provider.name)


def a_spare(provider: Provider, order: int = 1) -> Provider:
    """Make a second provider of the model, at the same address, to be asked after the first."""
    first = Deployment.objects.get(provider=provider)
    spare = Provider.objects.create(
        name="spare", base_url=provider.base_url, api_key_variable=provider.api_key_variable, from_environment=True
    )
    Deployment.objects.create(model=first.model, provider=spare, upstream_name="spare-model", order=order)
    catalog.forget()
    return spare


def ask(api: Api, number: int) -> Any:
    """Ask something that was not asked before."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 20}
    return api.post("/v1/chat/completions", body)


def reserve(scope: LimitSet | None, tokens: int, operation: str = "") -> Reserved | Refusal | InFlight:
    """Reserve at a provider, as an attempt does."""
    assert scope is not None
    bound = Bound(Amount(tokens))
    return get_limits().reserve(scope, operation or an_operation(), admitted_at=0, bound=bound, draft=DRAFT)


def in_use(scope: LimitSet | None, most: int = 1000) -> int:
    """Tell how many tokens of the minute are in use at a provider: by what is the most that still fits."""
    assert scope is not None
    operation, probe = an_operation(), LimitSet.of_provider(scope.subjects[0].owner_id, Limits(tokens_per_minute=most))
    answer = reserve(probe, most, operation)
    if isinstance(answer, Refusal):
        return answer.used
    get_limits().settle(probe, operation, admitted_at=0, used=Amount(), record=None)
    return 0


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that takes the prefix of each script that is run on Redis, each a round trip."""
    prefixes: list[str] = []
    call = DirectWire.call

    def listen(self: DirectWire, script: Script, prefix: str, arguments: Any) -> Any:
        prefixes.append(prefix)
        return call(self, script, prefix, arguments)

    monkeypatch.setattr(DirectWire, "call", listen)
    return prefixes


def test_it_asks_the_next_provider_and_then_says_when_to_come_back(
    roomy: Api, provider: Provider, records: Records
) -> None:
    limit(provider, requests_per_minute=2)
    limit(a_spare(provider), requests_per_minute=1)
    answers = [ask(roomy, number) for number in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 503]
    assert answers[3].json()["error"]["code"] == "upstream_busy"
    assert 55 <= int(answers[3]["Retry-After"]) <= 60
    served = [(record.deployment.partition("/")[0], record.status, record.attempts) for record in records()]
    assert served == [(provider.name, 200, 1), (provider.name, 200, 1), ("spare", 200, 1), ("", 503, 0)]


def test_it_holds_the_bound_and_counts_what_was_used(roomy: Api, provider: Provider, records: Records) -> None:
    scope = limit(provider, tokens_per_minute=1000, concurrent_requests=1)
    for number in range(3):
        assert ask(roomy, number).status_code == 200
    used = sum(record.input_tokens + record.output_tokens for record in records())
    assert in_use(scope) == used > 0


def test_it_counts_no_tokens_of_what_the_provider_refused(
    roomy: Api, provider: Provider, upstream: FakeUpstream
) -> None:
    scope = limit(provider, tokens_per_minute=1000, concurrent_requests=1)
    upstream.set(faults={"http_400": 1.0})
    assert ask(roomy, 1).status_code == 400
    assert in_use(scope) == 0
    upstream.set(faults={"broken_json": 1.0})
    assert ask(roomy, 2).status_code == 502
    assert in_use(scope) > 20, "it may have worked on that one"
    upstream.set(faults={})
    assert ask(roomy, 3).status_code == 200


def test_it_tells_a_call_that_no_provider_would_ever_take(roomy: Api, provider: Provider) -> None:
    limit(provider, tokens_per_minute=30)
    answer = ask(roomy, 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bound_exceeds_limit")


def test_it_waits_for_the_first_of_several_that_has_room(roomy: Api, provider: Provider) -> None:
    limit(provider, requests_per_minute=1)
    slots = limit(a_spare(provider), concurrent_requests=1)
    assert ask(roomy, 1).status_code == 200
    reserve(slots, 1)
    answer = ask(roomy, 2)
    assert (answer.status_code, answer["Retry-After"]) == (503, "1")


def test_it_leaves_the_callers_own_accounting_alone(roomy: Api, provider: Provider, records: Records) -> None:
    limit(provider, requests_per_minute=1)
    for number in range(3):
        ask(roomy, number)
    limits, key = get_limits(), roomy.key.key
    usage = limits.usage(build_authenticated_key(key, key.created_at).limits)[0]
    answered = [record for record in records() if record.status == 200]
    assert usage.settled.tokens == sum(record.input_tokens + record.output_tokens for record in answered)
    assert (usage.reserved.tokens, usage.slots) == (0, 0)
    assert [record.cost for record in records() if record.status == 503] == [0, 0]


def test_it_does_not_count_against_the_breaker(roomy: Api, provider: Provider) -> None:
    limit(provider, requests_per_minute=1)
    for number in range(9):
        ask(roomy, number)
    assert breakers.snapshot() == {}


@pytest.mark.parametrize(
    ("limits", "round_trips"), [({}, 0), ({"requests_per_minute": 9, "concurrent_requests": 1}, 2)]
)
def test_it_asks_redis_once_before_and_once_after_and_never_where_a_provider_has_no_limits(
    roomy: Api, provider: Provider, scripts: list[str], limits: dict[str, int], round_trips: int
) -> None:
    limit(provider, **limits)
    assert ask(roomy, 1).status_code == 200
    assert scripts.count(prefix_of(LimitSet.of_provider(provider.pk, Limits()).shard)) == round_trips


def test_it_renews_the_lease_of_a_slot_until_it_is_settled(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[Any] = []

    def renew(self: LimitBackend, shard: int, operations: Iterable[str]) -> frozenset[str]:
        renewed.append((shard, operations))
        return frozenset(operations)

    monkeypatch.setattr(LimitBackend, "renew", renew)
    route, operation = limited_route(provider, concurrent_requests=1), an_operation()
    assert route.provider_limits is not None
    lease = (route.provider_limits.shard, {operation})
    slot = take_slot(cast("Any", SimpleNamespace(attempt_id=operation, attempt_tokens=1)), route)
    monkeypatch.setattr(renewer, "_clock", lambda: time.monotonic() + 3600)
    renewer.renew_due()
    assert lease in [(shard, set(operations)) for shard, operations in renewed]
    slot.settle()
    renewed.clear()
    renewer.renew_due()
    assert lease not in renewed


@pytest.mark.parametrize("field", ["requests_per_minute", "tokens_per_minute", "concurrent_requests"])
def test_it_refuses_limits_that_make_no_sense(provider: Provider, field: str) -> None:
    setattr(provider, field, 0)
    with pytest.raises(ValidationError) as refused:
        catalog_save(row=provider, actor=ACTOR)
    assert list(refused.value.message_dict) == [field]


def test_it_shares_the_limits_of_all_its_models_and_no_others(provider: Provider) -> None:
    scope = limit(provider, requests_per_minute=3, tokens_per_minute=4, concurrent_requests=5)
    assert scope == LimitSet.of_provider(provider.pk, Limits(3, 4, 5))
    assert isinstance(reserve(scope, 5), Refusal)


# The calls that a process makes at once: never exceeded, fair to those who wait


def test_it_gives_slots_until_all_are_taken() -> None:
    slots = Capacity(2)
    with slots.slot(0), slots.slot(0):
        assert slots.taken == 2
        with pytest.raises(UpstreamBusy) as refused, slots.slot(0):
            pass
    assert refused.value.headers["Retry-After"] == "1"
    assert (slots.taken, slots.queued) == (0, 0)


def test_it_gives_a_slot_back_when_its_call_fails() -> None:
    slots = Capacity(1)
    with pytest.raises(ZeroDivisionError), slots.slot(0):
        raise ZeroDivisionError
    with slots.slot(0):
        assert slots.taken == 1


def test_it_loses_no_slot_to_a_call_that_is_broken_off_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(event: threading.Event, seconds: float) -> bool:
        raise KeyboardInterrupt

    slots = Capacity(1)
    with slots.slot(0):
        monkeypatch.setattr(threading.Event, "wait", break_off)
        with pytest.raises(KeyboardInterrupt), slots.slot(1):
            pass
    assert (slots.taken, slots.queued) == (0, 0)


def test_it_says_no_within_the_time_that_it_was_given() -> None:
    slots = Capacity(1)
    with slots.slot(0):
        began = time.monotonic()
        with pytest.raises(UpstreamBusy), slots.slot(0.05):
            pass
        assert 0.04 < time.monotonic() - began < 1
    assert slots.queued == 0


def test_it_gives_free_slots_in_the_order_in_which_they_were_asked_for() -> None:
    slots = Capacity(1)
    served: list[int] = []

    def work(number: int) -> None:
        with slots.slot(10):
            served.append(number)

    with slots.slot(0):
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=work, args=[number]))
            threads[-1].start()
            wait_until(lambda queued=number + 1: slots.queued == queued, "a call to wait")  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, 3, 4]
    assert (slots.taken, slots.queued) == (0, 0)


def test_it_never_has_more_open_than_slots() -> None:
    slots, lock = Capacity(3), threading.Lock()
    state = {"open": 0, "most": 0, "served": 0, "refused": 0}

    def work(number: int) -> None:
        try:
            with slots.slot(0.02 if number % 3 else 0):
                with lock:
                    state["open"] += 1
                    state["most"] = max(state["most"], state["open"])
                time.sleep(0.001)
                with lock:
                    state["open"] -= 1
                    state["served"] += 1
        except UpstreamBusy:
            with lock:
                state["refused"] += 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(300)))
    assert state["most"] == 3
    assert state["served"] + state["refused"] == 300
    assert (slots.taken, slots.queued) == (0, 0)


def test_it_is_as_large_as_the_setting_says(settings: LazySettings) -> None:
    settings.UPSTREAM_CONCURRENCY = 7
    assert capacity().slots == 7
    assert capacity() is capacity()
