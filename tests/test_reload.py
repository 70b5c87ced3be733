"""Who connects while a server stops is answered or refused, and a stream that is open goes on to its end, billed once.

That no request fails at fifty a second, whether a server is reloaded or replaced, is in test_chaos.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.answers import data_of
from tests.running import Reply, Served, chat, event, running_platform, scripted_provider, wait_until
from tests.servers import Service
from tests.stores import Redis
from tests.streams import Stream
from tests.traffic import ask_live

pytestmark = pytest.mark.timeout(300)  # servers start and load, and the machine may be busy

WORKERS = 2
#: Connections that are opened at once while a server stops.
BURST = 100
WORD = event({"id": "c", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})


def streamed(words: int, pause: float) -> Reply:
    """Make a stream of so many words with pauses between them."""
    pieces: list[bytes | float] = [piece for _ in range(words) for piece in (WORD, pause)]
    return Reply(body=[*pieces, event("[DONE]")])


def is_rid_of(service: Service, workers: set[int]) -> bool:
    """Look whether none of these workers is left."""
    return not workers & set(service.worker_pids())


def ask_once(port: int) -> str:
    """Ask on a new connection; return `answered`, `refused`, or what else happened."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            answer = ask_live(connection)
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return repr(error)
    return "answered" if b"200 OK" in answer and answer.endswith(b"}") else repr(answer)


def test_it_answers_or_refuses_whoever_connects_while_it_stops(
    prepared: Callable[[], dict[str, str]], own_redis: Redis
) -> None:
    env, stop, heard = {**prepared(), "REDIS_URL": own_redis.url}, threading.Event(), Counter[str]()
    with scripted_provider() as provider:
        provider.script("long", streamed(60, 0.1))
        with running_platform(env, [Served("long", [provider.base_url])], workers=WORKERS) as platform:
            port = platform.service.port
            stream = Stream(platform.service, {**chat("long"), "stream": True}, key=platform.key)
            assert stream.answer().status == 200

            def knock() -> None:
                while not stop.is_set():
                    heard.update([ask_once(port)])

            with ThreadPoolExecutor(BURST) as pool:
                for _ in range(8):
                    pool.submit(knock)
                wait_until(lambda: heard["answered"] > 20, "the first answers")
                platform.service.process.send_signal(signal.SIGTERM)
                for _ in range(3):
                    heard.update(pool.map(ask_once, [port] * (BURST - 8)))
                wait_until(lambda: heard["refused"] > 20, "the first to be refused")
                stop.set()
            assert set(heard) == {"answered", "refused"}
            assert data_of(stream.text())[-1] == "[DONE]"
            platform.service.process.wait(30)


def test_it_bills_a_stream_once_that_is_open_while_the_only_worker_is_replaced(
    prepared: Callable[[], dict[str, str]],
) -> None:
    with scripted_provider() as provider:
        provider.script("long", streamed(60, 0.1))
        with running_platform(prepared(), [Served("long", [provider.base_url])]) as platform:
            stream = Stream(platform.service, {**chat("long"), "stream": True}, key=platform.key)
            assert stream.answer().status == 200
            old = set(platform.service.worker_pids())
            platform.service.process.send_signal(signal.SIGHUP)
            assert data_of(stream.text())[-1] == "[DONE]"
            wait_until(partial(is_rid_of, platform.service, old), "the old worker to end", 120)
            rows = platform.rows("SELECT label, status, error_code FROM monitoring_requestrecord")
            assert rows == [{"label": stream.label, "status": 200, "error_code": ""}]
