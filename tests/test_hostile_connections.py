"""Thousands of connections that ask for nothing stop no worker, and none takes its place for longer than it may.

No key is needed to open a connection. One worker with 2,500 places is besieged by more connections than that, which are
silent, send a byte a second, or don't read, and are opened again when they are closed; callers are answered meanwhile.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest

from tests.running import Platform, Served, chat, completion, running_platform, scripted_provider, wait_until
from tests.siege import Manner, besieged

pytestmark = pytest.mark.timeout(300)  # servers start and load, and the machine may be busy

MODEL = "asked"
#: Places of a worker for connections; one address gets a quarter of them without having sent a header.
PLACES = 2500
#: Seconds in which most callers, and all of them, are answered while the worker is besieged. It also opens, answers and
#: closes a hundred of the other connections a second.
MOSTLY, AT_MOST = 2.0, 15.0
HEADER = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Filler: "
WHOLE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LARGE = b"GET /static/drf_spectacular_sidecar/redoc/bundles/redoc.standalone.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
REFUSED = (
    b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n" + b"{"
)

SILENT, HALF, DRIPPING = Manner(), Manner(HEADER), Manner(HEADER, b"x" * 600)
KEPT, BODY, UNREAD = Manner(WHOLE), Manner(REFUSED, b" " * 600), Manner(LARGE, reads=False)


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    with scripted_provider() as provider:
        provider.script(MODEL, completion("Hello"))
        with running_platform(prepared(), [Served(MODEL, [provider.base_url])]) as running:
            yield running


def assert_it_answers(platform: Platform, number: int = 10) -> None:
    """Ask for the health and for an answer, each on a connection of its own, and see how long they take."""
    times = []
    for _ in range(number):
        for path, body in (("/health/live", None), ("/v1/chat/completions", chat(MODEL))):
            began = time.monotonic()
            assert platform.ask(path, body).status == 200
            times.append(time.monotonic() - began)
    assert max(times) < AT_MOST, times
    assert median(times) < MOSTLY, times


@pytest.mark.parametrize(
    ("manners", "a_second"),
    [([SILENT, HALF, DRIPPING], 1000), ([KEPT], 300), ([BODY], 300), ([UNREAD], 300)],
    ids=["no header", "kept", "a body that nobody reads", "answers that nobody reads"],
)
def test_it_answers_while_more_connections_than_it_has_places_ask_for_nothing(
    platform: Platform, manners: list[Manner], a_second: int, scale: Callable[[int, int], int]
) -> None:
    number = scale(PLACES + 100, 3 * PLACES if SILENT in manners else PLACES + 100)  # others ask: that is work
    with besieged(platform.service.port, manners, connections=number, addresses=200, a_second=a_second) as siege:
        wait_until(lambda: siege.opened >= number, "all connections to be open", 120)
        assert_it_answers(platform, scale(10, 100))


def test_it_leaves_room_for_others_when_one_address_takes_all_it_gets(platform: Platform) -> None:
    with besieged(platform.service.port, [SILENT, HALF], connections=PLACES // 2, addresses=1) as siege:
        wait_until(lambda: siege.opened >= PLACES // 2, "all connections to be tried")
        assert_it_answers(platform)
        wait_until(lambda: siege.open <= PLACES // 4, "the address to have a quarter of the places at most")


def seconds_until_closed(port: int, at_once: bytes, then: bytes = b"") -> tuple[float, bytes]:
    """Send bytes, then others one a second; return when the server closed the connection, and what it said."""
    said, rest = b"", iter(then)
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        began = time.monotonic()
        connection.sendall(at_once)
        while time.monotonic() - began < 60:
            try:
                if not (piece := connection.recv(65_536)):
                    break
                said += piece
            except TimeoutError:
                if (byte := next(rest, None)) is not None:
                    connection.sendall(bytes([byte]))
            except ConnectionResetError:  # it was closed before it took the last byte
                break
        return time.monotonic() - began, said


def test_it_closes_connections_that_do_not_send_a_header_in_time(platform: Platform) -> None:
    manners = {"silent": (b"", b""), "half a header": (HEADER, b""), "a byte a second": (HEADER, b"x" * 60)}
    with ThreadPoolExecutor() as pool:
        closing = {
            name: pool.submit(seconds_until_closed, platform.service.port, *sent) for name, sent in manners.items()
        }
        closed = {name: future.result() for name, future in closing.items()}
    assert all(said == b"" for _, said in closed.values()), closed
    assert all(2 < seconds < 12 for seconds, _ in closed.values()), closed


def post(platform: Platform, length: int) -> bytes:
    """Write the head of a valid key's request with a body of that length."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {platform.key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def test_it_ends_a_body_that_hardly_comes_and_waits_for_one_that_does(platform: Platform) -> None:
    body = json.dumps(chat(MODEL, "hello there " * 25_000)).encode()
    with ThreadPoolExecutor() as pool:
        dripping = pool.submit(seconds_until_closed, platform.service.port, post(platform, 1000) + b"{", b" " * 60)
        slow = pool.submit(send_over, 15.0, platform, body)
        seconds, said = dripping.result()
        assert 5 < seconds < 20
        assert said.startswith(b"HTTP/1.1 408 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        assert slow.result() == 200


def send_over(seconds: float, platform: Platform, body: bytes) -> int:
    """Send a body evenly over so many seconds; return the answer's status."""
    pieces = 30
    size = len(body) // pieces + 1
    connection = http.client.HTTPConnection("127.0.0.1", platform.service.port, timeout=30)
    connection.connect()
    connection.sock.sendall(post(platform, len(body)))
    for place in range(pieces):
        connection.sock.sendall(body[place * size : (place + 1) * size])
        time.sleep(seconds / pieces)
    answer = http.client.HTTPResponse(connection.sock)
    answer.begin()
    answer.read()
    connection.close()
    return answer.status


def test_it_takes_less_of_a_key_whose_tokens_nothing_limits(platform: Platform) -> None:
    body = json.dumps(chat(MODEL, "hello there \n" * 800_000)).encode()
    refused = platform.ask("/v1/chat/completions", body)
    assert (refused.status, refused.error["code"]) == (413, "body_too_large")
    assert "8,388,608 bytes" in refused.error["message"]
