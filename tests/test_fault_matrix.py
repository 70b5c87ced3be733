"""The table in docs/faults.md, line by line, against the running platform and two fake providers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from inference.fake_provider import FAULTS, LEAK_MARKER, FakeCall, FakeUpstream
from inference.protocols.base import MESSAGE_TOKENS, REPLY_TOKENS, count_tokens
from inference.protocols.chat import chat_protocol
from tests.answers import data_of, said
from tests.catalogue import Record, Served, record_of, set_up
from tests.processes import wait_until
from tests.servers import ROOT, Service, aiapi_server
from tests.streams import Stream, asked

LINE = re.compile(r"\| `(\w+)` \| (plain|stream|patient stream) \| (.+) \| (.+) \| (.+) \| (.+) \|")
OUTPUT = 40
#: Seconds short enough for hundreds of calls; the fake's slow answer fits in. Retries after a pause fit in before the
#: headers of a stream, which go out before its time is up, as they do by default.
SHORT = {
    "UPSTREAM_TIMEOUT": "3",
    "STREAM_FIRST_BYTE_SECONDS": "2",
    "UPSTREAM_IDLE_TIMEOUT": "0.5",
    "UPSTREAM_CREDIT_PAUSE": "1",
}
#: The other way round, for patient streams.
PATIENT = {"UPSTREAM_TIMEOUT": "1", "STREAM_FIRST_BYTE_SECONDS": "10"}
SLOW_MS = 10


@dataclass(frozen=True)
class Line:
    """One cell of the table: what a caller sees, and what is billed."""

    fault: str
    call: str
    has_spare: bool
    answer: str
    billed: str

    def __str__(self) -> str:
        return f"{self.fault}-{self.call}-{'spare' if self.has_spare else 'alone'}"


def read_table() -> list[Line]:
    found = LINE.findall((ROOT / "docs" / "faults.md").read_text())
    alone = [Line(fault, call, False, answer, billed) for fault, call, answer, billed, _, _ in found]
    return alone + [Line(fault, call, True, answer, billed) for fault, call, _, _, answer, billed in found]


TABLE = read_table()


@dataclass
class Platform:
    """The platform, once as it is by default and once patient, with a provider that fails and one that doesn't."""

    service: Service
    patient: Service
    failing: FakeUpstream
    healthy: FakeUpstream
    key: str

    def ask(self, line: Line) -> tuple[int, str, str]:
        """Ask as the line says; return status, body, and the request's label."""
        model = "spared" if line.has_spare else "alone"
        body = {**asked(model, max_tokens=OUTPUT), "stream": line.call != "plain"}
        service = self.patient if line.call == "patient stream" else self.service
        stream = Stream(service, body, key=self.key)
        return stream.answer().status, stream.text(), stream.label


@pytest.fixture(scope="module")
def running(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run the platform twice, on the same database."""
    env = {**prepared(), **SHORT}
    with (
        FakeUpstream() as failing,
        FakeUpstream() as healthy,
        aiapi_server(env, prepare=False) as service,
        aiapi_server({**env, **PATIENT}, prepare=False) as patient,
    ):
        served = [
            Served("alone", [failing.base_url]),
            Served("spared", [failing.base_url, healthy.base_url]),
        ]
        yield Platform(service, patient, failing, healthy, set_up(service, served))


@pytest.fixture
def platform(running: Platform) -> Iterator[Platform]:
    """Return the platform with providers without a past, breakers that are closed, and an address that is back."""
    running.failing.reset()
    running.healthy.reset()
    wait_until(lambda: running.ask(Line("", "plain", False, "", ""))[0] == 200, "the provider to be asked again")
    running.failing.reset()
    with_spare = Line("", "plain", True, "", "")
    wait_until(
        lambda: running.ask(with_spare)[0] == 200 and bool(running.failing.billed), "it to be asked before another"
    )
    running.failing.reset()
    running.healthy.reset()
    running.failing.set(chunk_interval_ms=3, slow_interval_ms=SLOW_MS, retry_after=6)
    yield running
    running.failing.reset()


def test_it_lists_every_fault_for_plain_calls_and_streams() -> None:
    listed = sorted((line.fault, line.call) for line in TABLE if not line.has_spare)
    every = [(fault, call) for fault in FAULTS for call in ("plain", "stream")]
    assert listed == sorted([*every, ("hang", "patient stream")])


@pytest.mark.parametrize("line", TABLE, ids=str)
def test_it_does_what_the_table_says(platform: Platform, line: Line) -> None:
    if line.fault == "refuse":
        platform.failing.refuse()
    else:
        platform.failing.set(faults={line.fault: 1})
    status, body, label = platform.ask(line)
    assert seen(line, status, body) == line.answer
    assert LEAK_MARKER not in body
    record = record_of(platform.service, label)
    assert seen_in_log(line, record) == line.answer
    assert billed(platform, line, record, body) == line.billed
    assert record.is_partial is line.billed.startswith("what came")


def seen(line: Line, status: int, body: str) -> str:
    """Say in the table's words what the caller saw."""
    if status != 200:
        return f"{status} {json.loads(body)['error']['code']}"
    if line.call == "plain":
        return "200"
    last = data_of(body)[-1]
    return "200" if last == "[DONE]" else f"200, then {last['error']['code']}"


def seen_in_log(line: Line, record: Record) -> str:
    """Say what the log holds, in the same words; it has one status, also where the headers had said 200."""
    if record.status == 200:
        return "200"
    was_told_late = line.answer.startswith("200, then")
    return f"200, then {record.error_code}" if was_told_late else f"{record.status} {record.error_code}"


def billed(platform: Platform, line: Line, record: Record, body: str) -> str:
    """Say in the table's words what was billed, once the numbers agree with it to the token."""
    counts = (record.input_tokens, record.output_tokens)
    served = platform.healthy.billed or platform.failing.billed
    answer = tokens_of(served[-1]) if served else (0, 0)
    failed = [tokens_of(call) for call in platform.failing.billed if call.fault == "error_usage"]
    payload = {name: value for name, value in asked("m", max_tokens=OUTPUT).items() if name not in ("model", "stream")}
    bound = chat_protocol.prompt_bound(payload) + OUTPUT
    told = {
        "": ("nothing", (0, 0)),
        "provider": as_told(failed, answer if record.status == 200 or not failed else None),
        "estimated": ("counted", counted(line, body, is_partial=record.is_partial)),
    }
    if record.usage_source in told:
        words, expected = told[record.usage_source]
        assert counts == expected
        assert bool(record.cost) is (words != "nothing")
        return f"what came, {words}" if record.is_partial else words
    assert record.usage_source == "bound"
    assert bound >= sum(tokens_of(platform.failing.billed[-1]))
    assert sum(counts) == bound + (sum(answer) if record.status == 200 else 0)
    return "bound + answer" if record.status == 200 else "bound"


def as_told(failed: list[tuple[int, int]], answer: tuple[int, int] | None) -> tuple[str, tuple[int, int]]:
    """Name what a provider's own figures make together: of calls that failed, and of an answer."""
    named = [("told", each) for each in failed] + ([("answer", answer)] if answer is not None else [])
    return " + ".join(name for name, _ in named), (sum(each[0] for _, each in named), sum(each[1] for _, each in named))


def tokens_of(call: FakeCall) -> tuple[int, int]:
    """Return what the provider bills for a call."""
    return call.prompt_tokens, call.completion_tokens


def counted(line: Line, body: str, *, is_partial: bool) -> tuple[int, int]:
    """Count what the caller sent and saw, as the platform does where nobody tells."""
    prompt = count_tokens(["user", "hello there"], model="m") + MESSAGE_TOKENS + REPLY_TOKENS
    text = "You said: hello there" if line.call == "plain" else said(body)
    return prompt, count_tokens([text], model="m")
