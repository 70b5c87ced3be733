"""Connecting to a provider: within one timeout, to the first of its name's addresses that lets us, by TLS."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
import trustme

from core.network import addresses_of
from inference.catalog import Route
from inference.fake_provider import FakeUpstream
from inference.prices import Rates
from inference.tests.samples import unanswered
from inference.tests.wire import HELLO
from inference.upstream import transport
from inference.upstream.client import Upstream
from inference.upstream.errors import UNCONNECTED, UNREACHED, AttemptFailed
from inference.upstream.transport import PooledTransport, lookups
from tests.processes import wait_until

NAME = "several.example"


def at(base_url: str) -> Route:
    """Make a deployment at an address."""
    return Route(1, "p/m", "p", base_url, "", (), "m", "max_tokens", 0, 1, Rates())


def failed_call(base_url: str, seconds: float = 5) -> AttemptFailed:
    """Make a call that fails within so many seconds."""
    with pytest.raises(AttemptFailed) as failed:
        Upstream().call(at(base_url), "/chat/completions", {"messages": HELLO}, seconds=seconds)
    return failed.value


@contextmanager
def without_tls(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Accept connections, do with each what `answer` does, and yield an https: URL for that."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), connection:
                    answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the addresses that names have, beside those that the system knows."""
    known: dict[str, list[str]] = {}
    resolve = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> list[Any]:
        return [found for address in known.get(host, [host]) for found in resolve(address, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def test_it_looks_a_name_up_once(monkeypatch: pytest.MonkeyPatch, fake: FakeUpstream) -> None:
    resolve, asked = socket.getaddrinfo, []

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        asked.append(host)
        return list(resolve("127.0.0.1" if host == NAME else host, *args, **options))

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    fake.listen()
    assert PooledTransport().reaches(f"http://{NAME}:{fake.port}/v1", 0.6)
    assert asked.count(NAME) == 1


def test_it_keeps_the_network_of_a_neighbour_s_address() -> None:
    number = socket.if_nametoindex("lo")
    assert addresses_of("fe80::1%lo") == [f"fe80::1%{number}"]
    assert addresses_of("::1") == ["::1"]


def test_it_says_of_a_name_without_addresses_that_it_is_not_reached() -> None:
    assert not PooledTransport().reaches("http://nowhere.invalid:1/v1", 0.6)


def test_it_gives_all_addresses_of_a_name_one_timeout_together(names: dict[str, list[str]]) -> None:
    names[NAME] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    with unanswered("0.0.0.0") as port:  # noqa: S104  (all addresses of this machine, and nobody can talk to it)
        began = time.monotonic()
        assert not PooledTransport().reaches(f"http://{NAME}:{port}/v1", 0.6)
        assert 0.5 < time.monotonic() - began < 3 * 0.6


def test_it_tells_a_name_whose_addresses_are_all_silent_for_one_that_timed_out(names: dict[str, list[str]]) -> None:
    names[NAME] = ["127.0.0.1", "127.0.0.2"]
    with unanswered("0.0.0.0") as port:  # noqa: S104
        failure = failed_call(f"http://{NAME}:{port}/v1", 0.4)
    assert (failure.verdict, failure.cause) == (UNCONNECTED, "connect timeout")


@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
def test_it_goes_on_to_the_next_address(names: dict[str, list[str]], fake: FakeUpstream, is_silent: bool) -> None:
    names[NAME] = ["127.0.0.2", "127.0.0.1"]
    fake.listen()
    with unanswered("127.0.0.2", fake.port) if is_silent else nullcontext():
        assert PooledTransport().reaches(f"http://{NAME}:{fake.port}/v1", 0.6)


@pytest.mark.parametrize(
    ("answer", "seconds", "cause"),
    [
        (lambda connection: connection.recv(65536) and connection.recv(1), 0.4, "connect timeout"),
        (lambda connection: None, 5, "connection: "),
        (lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), 5, "connection: SSLError"),
    ],
    ids=["silent", "closed", "not TLS"],
)
def test_it_has_reached_nobody_without_tls(
    answer: Callable[[socket.socket], object], seconds: float, cause: str
) -> None:
    """Nothing was sent: no provider bills it, and another one may answer."""
    with without_tls(answer) as url:
        failure = failed_call(url, seconds)
        assert failure.verdict in (UNREACHED, UNCONNECTED)
        assert failure.cause.startswith(cause)
        assert not PooledTransport().reaches(url, 0.4), "a probe must not take it back"


@pytest.fixture
def secure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[int, list[int]]]:
    """Run a provider with a certificate for localhost that is trusted here; yield its port and what it counted.

    It counts the requests of each connection.
    """
    authority, counted = trustme.CA(), []
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    transport._tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    whole = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()

    class Provider(StreamRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(10)
            with suppress(OSError), context.wrap_socket(self.request, server_side=True) as connection:
                counted.append(0)
                requests = connection.makefile("rb")
                while requests.readline():
                    headers = dict(line.lower().split(b": ", 1) for line in iter(requests.readline, b"\r\n"))
                    requests.read(int(headers[b"content-length"]))
                    counted[-1] += 1
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(whole), whole))

    with ThreadingTCPServer(("127.0.0.1", 0), Provider) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server.server_address[1], counted
        server.shutdown()
    transport._tls.cache_clear()


def test_it_keeps_a_connection_to_a_provider_whose_certificate_is_trusted(secure: tuple[int, list[int]]) -> None:
    port, counted = secure
    client = Upstream()
    for _ in range(2):
        assert client.call(at(f"https://localhost:{port}/v1"), "/chat/completions", {"messages": HELLO}, seconds=5)
    assert counted == [2]
    client._transport.close()


@pytest.mark.parametrize("is_trusted", [True, False], ids=["another name", "untrusted"])
def test_it_sends_nothing_where_a_certificate_is_wrong(
    secure: tuple[int, list[int]], monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    port, counted = secure
    if not is_trusted:
        monkeypatch.delenv("SSL_CERT_FILE")
        transport._tls.cache_clear()
    failure = failed_call(f"https://{'127.0.0.1' if is_trusted else 'localhost'}:{port}/v1")
    assert (failure.verdict, failure.cause) == (UNREACHED, "connection: SSLCertVerificationError")
    assert sum(counted) == 0


@pytest.mark.parametrize(
    ("name", "cause"),
    [("two..dots", "UnicodeError"), (f"{'long' * 16}.example", "UnicodeError"), ("nowhere.invalid", "gaierror")],
)
def test_it_has_reached_nobody_by_what_is_no_name(name: str, cause: str) -> None:
    failure = failed_call(f"http://{name}:1/v1")
    assert failure.verdict == UNREACHED
    assert failure.cause.replace("UnicodeEncodeError", "UnicodeError") == f"connection: {cause}"  # since Python 3.13


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let no name server say anything of NAME until the test is over; return what was asked."""
    asked: list[str] = []
    resolve, is_over = socket.getaddrinfo, threading.Event()

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        if host != NAME:
            return list(resolve(host, *args, **options))
        asked.append(host)
        is_over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield asked
    is_over.set()
    wait_until(lambda: NAME not in lookups._open, "the look-up to end")


def test_it_looks_a_name_up_within_the_timeout(silence: list[str]) -> None:
    failure = failed_call(f"http://{NAME}:1/v1", 0.4)
    assert (failure.verdict, failure.cause) == (UNCONNECTED, "connect timeout")


def test_it_looks_a_name_up_for_all_who_wait_at_once(silence: list[str]) -> None:
    for _ in range(3):
        failed_call(f"http://{NAME}:1/v1", 0.1)
    assert silence == [NAME]
