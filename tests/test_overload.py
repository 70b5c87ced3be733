"""An overloaded worker refuses model calls at once, and answers all else. Waiting for providers is no overload.

Most tests have a worker that takes itself to be overloaded always.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace

import openai
import pytest

from tests.load import Ask, Reply, volley
from tests.manager import TESTED_AS_OVERLOADED
from tests.running import (
    CHAT,
    ENDPOINTS,
    MESSAGES,
    Platform,
    ScriptedProvider,
    Served,
    asking,
    completion,
    running_platform,
    scripted_provider,
)

pytestmark = pytest.mark.timeout(300)  # servers start and load, and the machine may be busy

MODEL = "asked"
PAGE = "https://page.example.com"
BODY = json.dumps({"model": MODEL, "message": "hello there"}).encode()
LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def overloaded(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run a platform whose worker takes itself to be overloaded."""
    provider.script(MODEL, completion("Hello"))
    env = {**prepared(), TESTED_AS_OVERLOADED: "1", "CORS_ALLOWED_ORIGINS": PAGE}
    with running_platform(env, [Served(MODEL, [provider.base_url])]) as platform:
        yield platform


@pytest.mark.parametrize("path", ENDPOINTS)
def test_it_refuses_model_calls_in_the_usual_shape(overloaded: Platform, path: str) -> None:
    answer = overloaded.ask(path, asking(path, MODEL), key="ak_nonsense")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == answer.label
    assert answer.headers["cache-control"] == "no-store"
    if path.startswith("/v1"):
        assert set(answer.error) == {"message", "type", "param", "code"}
        kind = "overloaded_error" if path == MESSAGES else "server_error"
        assert (answer.error["type"], answer.error["code"]) == (kind, "service_busy")
        assert answer.headers.get("request-id") == (answer.label if path == MESSAGES else None)
    else:
        assert set(answer.json()) == {"detail", "code", "request_id"}
        assert (answer.json()["code"], answer.json()["request_id"]) == ("service_busy", answer.label)


def test_it_reaches_clients_of_openai_as_their_error(overloaded: Platform) -> None:
    client = openai.OpenAI(base_url=f"{overloaded.service.base_url}/v1", api_key=overloaded.key, max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello there"}])
    assert (caught.value.status_code, caught.value.code) == (503, "service_busy")


def test_it_answers_all_else(overloaded: Platform) -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/v1/models", "/usage", "/docs", "/admin/login/"):
        assert overloaded.ask(path).status == 200, path


def test_it_counts_what_it_refuses_and_records_nothing(overloaded: Platform, provider: ScriptedProvider) -> None:
    def counted() -> float:
        return shed(overloaded)

    before, asked, records = counted(), len(provider.calls), number_of_records(overloaded)
    for _ in range(3):
        assert overloaded.ask(CHAT, asking(CHAT, MODEL), headers={"Idempotency-Key": "once"}).status == 503
    assert counted() == before + 3
    assert (len(provider.calls), number_of_records(overloaded)) == (asked, records)


def test_it_lets_allowed_pages_read_the_refusal(overloaded: Platform) -> None:
    refused = overloaded.ask("/chat", asking("/chat", MODEL), headers={"Origin": PAGE})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (503, PAGE)
    assert "Retry-After" in refused.headers["access-control-expose-headers"]
    other = overloaded.ask("/chat", asking("/chat", MODEL), headers={"Origin": "https://other.example.com"})
    assert other.status == 503
    assert "access-control-allow-origin" not in other.headers
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert overloaded.ask("/chat", method="OPTIONS", headers=asks).status == 200


def call(*lines: str, body: bytes = BODY, length: bool = True) -> bytes:
    """Write a call of /chat with further header lines."""
    head = ["POST /chat HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *lines]
    head += [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


CHUNKS = b"%x\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(BODY), BODY)
CHUNKED = call("Transfer-Encoding: chunked", body=CHUNKS, length=False)
LARGE = b" " * 60_000


@pytest.mark.parametrize(
    ("segments", "statuses"),
    [
        ([call(), LIVE], [503, 200]),
        ([call(), call(), LIVE], [503, 503, 200]),
        ([call().replace(b"/chat", b"/%63hat"), LIVE], [503, 200]),
        ([call()[: -len(BODY)], BODY, LIVE], [503, 200]),
        ([call()[:30], call()[30:], LIVE], [503, 200]),
        ([call() + call() + LIVE], [503, 503, 200]),
        ([call() + LIVE[:20], LIVE[20:]], [503, 200]),
        ([CHUNKED, LIVE], [503, 200]),
        ([CHUNKED[:-40], CHUNKED[-40:] + call(), LIVE], [503, 503, 200]),
        ([call(body=LARGE), LIVE], [503, 200]),
        ([call(body=LARGE)[:20_000], call(body=LARGE)[20_000:] + LIVE], [503, 200]),
        # a body that is itself a call, behind a header that came with the request before
        ([LIVE + call(body=call())[: -len(call())], call(), LIVE], [200, 503, 200]),
        ([call(body=call()), LIVE], [503, 200]),
        # too long and too short for the stated length
        ([call() + b"\r\n", LIVE], [503, 200]),
        ([call(body=BODY + b" ")[:-1], b" " + LIVE], [503, 200]),
        # where a request ends is in doubt, so the connection does
        ([call("Content-Length: 5") + LIVE], [400]),
        ([call("Transfer-Encoding: chunked") + LIVE], [400]),
        ([call("Connection: close") + LIVE], [503]),
        ([call("Connection: keep-alive"), LIVE], [503, 200]),
        ([call().replace(b"HTTP/1.1", b"HTTP/1.0") + LIVE], [503]),
    ],
)  # fmt: skip
def test_it_keeps_requests_apart(overloaded: Platform, segments: list[bytes], statuses: list[int]) -> None:
    assert conversation(overloaded, segments) == statuses


def test_it_does_not_shed_what_expects_to_be_asked_for_its_body(overloaded: Platform) -> None:
    lines = ("Expect: 100-continue", f"X-API-Key: {overloaded.key}")
    assert conversation(overloaded, [call(*lines)[: -len(BODY)], BODY, LIVE]) == [200, 200]


def conversation(platform: Platform, segments: list[bytes]) -> list[int]:
    """Send segments over one connection, each a while after the one before; return the statuses of all answers."""
    with closing(socket.create_connection(("127.0.0.1", platform.service.port), timeout=20)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            connection.sendall(segment)
            time.sleep(0.1)  # so that the worker receives it alone; if not, the answers must be the same
        with suppress(OSError):  # it has closed the connection
            connection.shutdown(socket.SHUT_WR)
        received, statuses = b"".join(iter(lambda: connection.recv(65536), b"")), []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: ([0-9]+)", head)
        received = received[int(length[1]) if length else 0 :]
        statuses.append(int(head.split()[1]))
    return [status for status in statuses if status != 100]


def shed(platform: Platform) -> float:
    """Return how many calls the platform has shed."""
    counted = re.search(r"(?m)^aiapi_requests_shed_total (\S+)$", platform.ask("/metrics").body.decode())
    return float(counted[1]) if counted else 0.0


def number_of_records(platform: Platform) -> int:
    """Return how many requests are recorded."""
    platform.service.await_records()
    ((number,),) = (row.values() for row in platform.rows("SELECT count(*) AS number FROM monitoring_requestrecord"))
    return int(number)


def test_it_answers_what_it_admits_in_a_flood(prepared: Callable[[], dict[str, str]]) -> None:
    with scripted_provider() as provider:
        provider.script(MODEL, completion("Hello"))
        env = {**prepared(), "SHED_DELAY": "0.01"}
        with running_platform(env, [Served(MODEL, [provider.base_url])]) as platform:
            replies = asyncio.run(flood(platform, waves=10, size=60))
            assert {reply.status for reply in replies} == {200, 503}
            assert {reply.code for reply in replies} == {"", "service_busy"}
            refused = sum(reply.status == 503 for reply in replies)
            assert shed(platform) == refused
            assert number_of_records(platform) == len(replies) - refused
            answer = platform.ask("/chat", asking("/chat", MODEL))
            assert answer.status == 200, "the flood is over"


async def flood(platform: Platform, *, waves: int, size: int, pause: float = 0.1) -> list[Reply]:
    """Let waves of calls arrive, whether or not the earlier ones are answered; return the replies."""
    tasks: list[asyncio.Task[Reply]] = []
    for wave in range(waves):
        bodies = [{"model": MODEL, "message": f"hello there {wave} {number}"} for number in range(size)]
        tasks += await volley(Ask(platform.service.port, platform.key, body) for body in bodies)
        await asyncio.sleep(pause)
    return list(await asyncio.gather(*tasks))


def test_it_waits_for_a_slow_provider_with_all_calls_at_once(prepared: Callable[[], dict[str, str]]) -> None:
    with scripted_provider() as provider:
        provider.script(MODEL, replace(completion("Hello"), delay=3.0))
        env = {**prepared(), "SHED_DELAY": "10"}  # a busy machine is no overload
        with running_platform(env, [Served(MODEL, [provider.base_url])]) as platform:
            replies = asyncio.run(flood(platform, waves=20, size=15))
            assert {(reply.status, reply.code) for reply in replies} == {(200, "")}
            assert len(replies) == 300
            assert shed(platform) == 0
