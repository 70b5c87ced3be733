"""In which order deployments are tried: conversations stay, the others share by weight, or by what was seen lately."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inference.call import Call
from inference.catalog import Route, catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Model, Provider
from inference.prices import Rates
from inference.tests.fixtures import Api, Records
from inference.tests.samples import serve
from inference.upstream.breaker import FAILURES_TO_OPEN, breakers
from inference.upstream.client import upstream as client
from inference.upstream.errors import Deadline
from inference.upstream.preference import preferred
from inference.upstream.routing import with_fallback


def route(number: int, *, order: int = 0, weight: int = 1) -> Route:
    """Make a deployment."""
    return Route(number, f"p/{number}", "p", f"http://p{number}/v1", "", (), "m", "max_tokens", order, weight, Rates())


def a_call(*routes: Route, payload: Any = None, session: str = "", account: int = 1, routing: str = "weighted") -> Call:
    """Make what routing takes of a call."""
    call: Any = SimpleNamespace(
        routes=routes,
        payload=payload or {},
        session=session,
        end_attempt=lambda: None,
        identity=SimpleNamespace(account_id=account),
        model=SimpleNamespace(routing=routing),
        is_stream=False,
        note=str,
    )
    return cast("Call", call)


def first(call: Call) -> int:
    """Return the deployment that a call is sent to."""
    return with_fallback(call, lambda to: to.deployment_id, Deadline(1))


HEAVY, LIGHT, THIRD = route(1, weight=3), route(2), route(3)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    yield
    breakers.forget()
    client.running.clear()
    client._seconds.clear()


def chat(*texts: str) -> dict[str, Any]:
    """Return a conversation of a system prompt and turns."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": "Be brief."}, *turns]}


LONG = "x" * 10_000
SAME: dict[str, list[dict[str, Any]]] = {
    "the first messages": [{"payload": chat("a")}, {"payload": chat("a", "b", "c")}],
    "a long beginning": [{"payload": chat(LONG)}, {"payload": chat(LONG, "b", "c")}],
    "a key for the prompt cache": [
        {"payload": {**chat("a"), "prompt_cache_key": "k"}},
        {"payload": {**chat("b"), "prompt_cache_key": "k"}, "session": "other"},
    ],
    "a header": [{"payload": chat("a"), "session": "s"}, {"payload": chat("b"), "session": "s"}],
    "Anthropic's user": [
        {"payload": {"messages": chat("a")["messages"], "metadata": {"user_id": "u"}}},
        {"payload": {"messages": chat("b")["messages"], "metadata": {"user_id": "u"}}},
    ],
    "instructions": [
        {"payload": {"instructions": "i", "input": "a"}},
        {"payload": {"instructions": "i", "input": "a", "temperature": 1}},
    ],
    "a strange header": [{"session": "\0é\ud800" + LONG}, {"session": "\0é\ud800" + LONG, "payload": chat("z")}],
}


@pytest.mark.parametrize("what", SAME)
def test_a_conversation_stays_at_one_deployment(what: str) -> None:
    deployments = [route(number) for number in range(1, 40)]
    orders = [[each.deployment_id for each in preferred(a_call(*deployments, **call))] for call in SAME[what]]
    assert orders[0] == orders[1]


def test_conversations_are_shared_by_weight() -> None:
    chosen = Counter(first(a_call(HEAVY, LIGHT, payload=chat(f"question {number}"))) for number in range(4000))
    assert chosen[1] / 4000 == pytest.approx(0.75, abs=0.03)
    accounts = {first(a_call(HEAVY, LIGHT, payload=chat("same"), account=account)) for account in range(50)}
    assert accounts == {1, 2}


def test_only_the_conversations_of_a_deployment_that_fails_move_and_they_come_back() -> None:
    calls = [a_call(HEAVY, LIGHT, THIRD, payload=chat(f"question {number}")) for number in range(200)]
    before = [first(call) for call in calls]
    for account in range(FAILURES_TO_OPEN):
        breakers.failed(LIGHT, account)
    meanwhile = [first(call) for call in calls]
    assert all(was == now for was, now in zip(before, meanwhile, strict=True) if was != 2)
    assert {now for was, now in zip(before, meanwhile, strict=True) if was == 2} == {1, 3}
    breakers.forget()
    assert [first(call) for call in calls] == before


def test_another_process_finds_the_same_deployment() -> None:
    program = (
        "import django; django.setup()\n"
        "from inference.tests.test_preference import *\n"
        "print([first(a_call(HEAVY, LIGHT, payload=chat(str(number)))) for number in range(50)])"
    )
    here = [first(a_call(HEAVY, LIGHT, payload=chat(str(number)))) for number in range(50)]
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert there.strip().splitlines()[-1] == str(here)


def test_the_least_busy_has_the_fewest_open_calls_for_its_weight() -> None:
    client.running.update({1: 2, 2: 1})
    assert [each.deployment_id for each in preferred(a_call(LIGHT, HEAVY, routing="least_busy"))] == [1, 2]
    client.running.update({1: 2})
    assert first(a_call(HEAVY, LIGHT, routing="least_busy")) == 2
    assert first(a_call(HEAVY, LIGHT, route(4, order=1), routing="least_busy")) == 2


def test_the_fastest_is_preferred_and_the_others_are_measured_too() -> None:
    for _ in range(20):
        client._learn(HEAVY, 0.9, is_stream=False)
        client._learn(LIGHT, 0.1, is_stream=False)
    chosen = Counter(first(a_call(HEAVY, LIGHT, payload=chat(str(n)), routing="fastest")) for n in range(2000))
    assert 0.005 < chosen[1] / 2000 < 0.1
    for _ in range(20):
        client._learn(HEAVY, 0.01, is_stream=False)
    assert Counter(first(a_call(HEAVY, LIGHT, routing="fastest")) for _ in range(100))[1] > 80


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("routing", Model.Routing.values)
def test_it_goes_by_the_models_routing(
    roomy: Api, upstream: FakeUpstream, records: Records, routing: str, stream: bool
) -> None:
    model = serve("shared", upstream_name="one", routing=routing).model
    Deployment.objects.create(model=model, provider=Provider.objects.get(), upstream_name="two")
    catalog.forget()
    for text in ("a", "b", "c", "d"):
        for _ in range(3):
            asked = {"model": "shared", "messages": [{"role": "user", "content": text}], "stream": stream}
            answer = roomy.post("/v1/chat/completions", asked, headers={"X-Session-Id": text})
            b"".join(answer.streaming_content) if stream else answer.content  # type: ignore[attr-defined]
    found = [record.deployment for record in records()]
    assert len(found) == 12
    if routing == "weighted":
        assert all(len(set(found[at : at + 3])) == 1 for at in range(0, 12, 3))
    assert not +client.running
