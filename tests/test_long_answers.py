"""Answers without measure: they cost time by their length, not its square, leave the worker to others, and end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.running import Platform, Reply, ScriptedProvider, Served, chat, event, running_platform, scripted_provider

MODEL = "talker"
CHAT = "/v1/chat/completions"
MIB = 1024 * 1024
#: Pieces of a stream that tells no usage. When joining them took time by the square, these took 99 seconds.
PIECES, LETTERS = 8_000, 5_000


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run the platform, one worker, with room for the longest sound answer here."""
    env = {**prepared(), "MAX_ANSWER_BYTES": str(48 * MIB)}
    with running_platform(env, [Served(MODEL, [provider.base_url])]) as running:
        yield running


def piece(letters: int) -> bytes:
    """Make a chunk with so many letters."""
    return event({"choices": [{"index": 0, "delta": {"content": "word " * (letters // 5)}, "finish_reason": None}]})


def test_it_counts_a_long_stream_without_usage_while_it_serves_others(
    platform: Platform, provider: ScriptedProvider
) -> None:
    provider.script(MODEL, Reply(body=[piece(LETTERS)] * PIECES + [event("[DONE]")]))
    waits: list[float] = []
    is_over = threading.Event()

    def ask_others() -> None:
        while not is_over.is_set():
            began = time.monotonic()
            assert platform.ask("/health/live").status == 200
            waits.append(time.monotonic() - began)

    others = threading.Thread(target=ask_others)
    others.start()
    answer = platform.ask(CHAT, chat(MODEL, stream=True))
    record = platform.record(answer)
    is_over.set()
    others.join()
    assert (answer.status, record.status, record.usage_source) == (200, 200, "estimated")
    assert record.output_tokens >= PIECES * LETTERS // 5
    assert max(waits) < 10  # a worker that stands still for a minute is replaced


def test_it_ends_a_stream_that_is_longer_than_any_answer_may_be(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, Reply(body=[piece(50_000)] * 1_200 + [event("[DONE]")]))
    answer = platform.ask(CHAT, chat(MODEL, "on and on", stream=True))
    record = platform.record(answer)
    assert answer.events()[-1]["error"]["type"] == "server_error"
    assert (record.status, record.usage_source, record.is_partial) == (502, "estimated", True)
    assert len(answer.body) < 49 * MIB
