"""A provider that can't be reached costs a caller one connect timeout, once, and is used again when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from inference.fake_provider import FakeUpstream
from inference.tests.samples import unanswered
from tests.answers import said
from tests.catalogue import Served, record_of, records, set_up
from tests.processes import wait_until
from tests.servers import Service, aiapi_server
from tests.streams import Stream, asked

CONNECT_TIMEOUT = 1.5


@dataclass
class Platform:
    """A platform whose models have two deployments at a provider that is down, and a spare that is not."""

    service: Service
    away: FakeUpstream
    spare: FakeUpstream
    key: str

    def ask(self, model: str, *, stream: bool = False) -> tuple[Stream, int, str]:
        """Ask, and wait for the whole answer."""
        asking = Stream(self.service, {**asked(model), "stream": stream}, key=self.key)
        status = asking.answer().status
        return asking, status, asking.text()


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run the platform: a black hole for each kind of call, and a provider that refuses."""
    env = {**prepared(), "UPSTREAM_CONNECT_TIMEOUT": str(CONNECT_TIMEOUT)}
    with ExitStack() as stack:
        away, spare = (stack.enter_context(FakeUpstream()) for _ in range(2))
        holes = [f"http://127.0.0.1:{stack.enter_context(unanswered())}/v1" for _ in range(3)]
        service = stack.enter_context(aiapi_server(env, prepare=False))
        served = [
            Served("plain", [holes[0], holes[0], spare.base_url]),
            Served("stream", [holes[1], holes[1], spare.base_url]),
            Served("alone", [holes[2]]),
            Served("returning", [away.base_url, spare.base_url]),
        ]
        yield Platform(service, away, spare, set_up(service, served))


@pytest.mark.parametrize("kind", ["plain", "stream"])
def test_it_lets_a_caller_wait_for_one_connection_once(platform: Platform, kind: str) -> None:
    """No call waits for the probes either, of which two run during these seconds."""
    spent, labels = [], []
    began = time.monotonic()
    while time.monotonic() - began < CONNECT_TIMEOUT + 4:
        asking, status, text = platform.ask(kind, stream=kind == "stream")
        spent.append(time.monotonic() - asking.asked_at)
        labels.append(asking.label)
        assert status == 200
        assert "You said" in (said(text) if kind == "stream" else text)
        time.sleep(0.2)
    assert CONNECT_TIMEOUT < spent[0] < 1.5 * CONNECT_TIMEOUT
    assert max(spent[1:]) < CONNECT_TIMEOUT / 2
    record_of(platform.service, labels[-1])
    attempts = {record.label: record.attempts for record in records(platform.service)}
    assert [attempts[label] for label in labels[:3]] == [2, 1, 1]


def test_it_refuses_at_once_what_no_other_deployment_can_answer(platform: Platform) -> None:
    first, *others = [platform.ask("alone") for _ in range(3)]
    assert first[1] == 504
    for asking, status, text in others:
        assert (status, asking.headed_at - asking.asked_at < CONNECT_TIMEOUT / 2) == (503, True)
        assert '"code":"upstream_busy"' in text


def test_it_uses_a_provider_again_when_it_is_back(platform: Platform) -> None:
    platform.away.refuse()
    for _ in range(3):
        assert platform.ask("returning")[1] == 200
    assert platform.away.billed == []
    platform.away.listen()

    def is_used() -> bool:
        assert platform.ask("returning")[1] == 200
        return bool(platform.away.billed)

    wait_until(is_used, "the first deployment to be used again", 10)
