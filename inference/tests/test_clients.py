"""What goes to the client of a stream: in order, with signs of life, and nothing to one who has gone."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import gevent.socket
import pytest
from django.conf import LazySettings
from django.test import RequestFactory

from inference import clients as outlet_module
from inference.clients import Watch
from inference.relay import KEEP_ALIVE, LONGEST_QUEUE, ClientSocket, Outlet, Transcript
from tests.processes import wait_until


class Client(ClientSocket):
    """A client without a socket, which stays or has gone."""

    def __init__(self, *, has_gone: bool = False) -> None:
        super().__init__(RequestFactory().post("/chat"))
        self._has_gone = has_gone

    def is_gone(self) -> bool:
        """Say which."""
        return self._has_gone


def never() -> bool:
    """Give nobody up."""
    return False


def filled(*pieces: bytes, client: ClientSocket | None = None) -> Outlet:
    """Return an outlet in which pieces wait."""
    outlet = Outlet(client or Client())
    for piece in pieces:
        outlet.put(piece, gives_up=never)
    outlet.started.set()
    return outlet


def test_it_yields_the_pieces_in_order_until_the_end() -> None:
    outlet = filled(b"a", b"b")
    outlet.end()
    assert list(outlet) == [b"a", b"b"]


def test_it_begins_with_a_sign_of_life_when_the_headers_have_to_go_out() -> None:
    outlet = Outlet(Client())
    outlet.end()
    outlet.started.clear()
    assert list(outlet) == [KEEP_ALIVE]


def test_it_keeps_a_silent_connection_alive(settings: LazySettings) -> None:
    settings.STREAM_KEEP_ALIVE_SECONDS = 15
    outlet = filled(b"a")
    assert not outlet.has_lost_its_reader(time.monotonic() + 99), "nothing before somebody reads"
    reading = iter(outlet)
    assert next(reading) == b"a"
    now = time.monotonic()
    for seconds in (1, 14, 15.1, 20, 30, 30.2):
        outlet.has_lost_its_reader(now + seconds)
    outlet.end()
    assert list(reading) == [KEEP_ALIVE, KEEP_ALIVE]


def test_it_takes_nothing_for_one_who_has_gone() -> None:
    outlet = filled(b"a", client=Client(has_gone=True))
    assert outlet.has_lost_its_reader(time.monotonic())
    outlet.leave()
    outlet.put(b"b", gives_up=never)
    assert list(outlet) == [b"a"]
    assert not outlet.has_lost_its_reader(time.monotonic()), "that is known"


def test_it_holds_the_producer_up_while_the_client_is_slow() -> None:
    outlet = filled(*[b"x"] * LONGEST_QUEUE)
    producer = threading.Thread(target=outlet.put, args=[b"last"], kwargs={"gives_up": never})
    producer.start()
    reading = iter(outlet)
    producer.join(0.2)
    assert producer.is_alive()
    assert next(reading) == b"x"
    producer.join(5)
    outlet.end()
    assert list(reading)[-1] == b"last"


def test_it_gives_a_client_up_that_reads_nothing() -> None:
    outlet = filled(*[b"x"] * LONGEST_QUEUE)
    outlet.put(b"last", gives_up=lambda: True)
    assert not outlet.has_reader
    assert b"last" not in list(outlet)


@pytest.mark.parametrize("what", ["start", "leave"])
def test_it_waits_for_the_first_piece_or_until_nobody_wants_it(what: str) -> None:
    outlet = Outlet(Client())
    began = time.monotonic()
    threading.Timer(0.1, outlet.started.set if what == "start" else outlet.leave).start()
    outlet.wait(10)
    assert 0.05 < time.monotonic() - began < 2


def test_it_waits_no_longer_than_it_may() -> None:
    began = time.monotonic()
    Outlet(Client()).wait(0.05)
    assert time.monotonic() - began < 1


class Direct(ClientSocket):
    """A client whose socket takes so many bytes at once, or none; what it was sent in between is noted."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__(RequestFactory().post("/chat"))
        self.can_send = True
        self.room = room
        self.seen: list[bytes] = []

    def send_chunk(self, piece: bytes) -> bytes:
        """Take what there is room for."""
        if not self.room:
            raise BlockingIOError
        self.seen.append(piece[: self.room])
        return piece[self.room :]

    def send_rest(self, rest: bytes) -> None:
        """Take all of it."""
        self.seen.append(rest)


def reading(client: Direct) -> tuple[Outlet, list[bytes], threading.Thread]:
    """Return an outlet whose reader waits, after a first piece; what that yields is noted with what was sent."""
    outlet = Outlet(client)
    outlet.put(b"first", gives_up=never)
    outlet.started.set()
    assert client.seen == [], "the headers go out with the first piece"
    reader = threading.Thread(target=lambda: client.seen.extend(outlet))
    reader.start()
    wait_until(lambda: outlet.is_idle, "the reader")
    assert client.seen == [b"first"]
    return outlet, client.seen, reader


def test_it_writes_to_a_client_that_waits_for_more() -> None:
    outlet, seen, reader = reading(Direct())
    outlet.put(b"a", gives_up=never)
    outlet.put(b"b", gives_up=never)
    assert seen == [b"first", b"a", b"b"]
    outlet.end()
    reader.join(5)
    assert seen == [b"first", b"a", b"b"]
    assert not outlet.is_idle, "the connection is another request's now"


@pytest.mark.parametrize(("room", "seen"), [(2, [b"first", b"ab", b"cd", b"e"]), (0, [b"first", b"abcd", b"e"])])
def test_it_leaves_to_the_reader_what_the_socket_does_not_take(room: int, seen: list[bytes]) -> None:
    client = Direct(room)
    outlet, written, reader = reading(client)
    outlet.put(b"abcd", gives_up=never)
    client.room = 1000
    outlet.put(b"e", gives_up=never)
    outlet.end()
    reader.join(5)
    assert written == seen


def test_it_writes_nothing_past_what_waits() -> None:
    client = Direct()
    outlet = filled(b"a", b"b", client=client)
    reading = iter(outlet)
    assert next(reading) == b"a"
    outlet.put(b"c", gives_up=never)
    outlet.end()
    assert list(reading) == [b"b", b"c"]
    assert client.seen == []


class Stream:
    """Counts how often it was looked after, and fails at the first time if it is to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.looks = 0
        self._fails = fails

    def look(self, now: float) -> None:
        """Count, or fail."""
        self.looks += 1
        if self._fails:
            raise ZeroDivisionError


def test_it_looks_after_all_streams_whatever_one_of_them_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet_module, "CLIENT_POLL_SECONDS", 0.01)
    watch, bad, good = Watch(), Stream(fails=True), Stream()
    watch.add(bad)
    watch.add(good)
    wait_until(lambda: good.looks > 2 and bad.looks > 2, "the watch")
    watch.discard(good)
    watch.discard(bad)
    time.sleep(0.03)
    looks = good.looks
    time.sleep(0.05)
    assert good.looks == looks


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a server's socket and its client's."""
    server, client = socket.socketpair()
    yield server, client
    server.close()
    client.close()


def client_of(server: socket.socket, protocol: str = "HTTP/1.1") -> ClientSocket:
    """Return the client at the other end of a socket, which gunicorn would hand over."""
    environ: dict[str, Any] = {"gunicorn.socket": server, "SERVER_PROTOCOL": protocol}
    return ClientSocket(RequestFactory().post("/chat", **environ))


def watching(server: socket.socket) -> bool:
    """Say whether the client of a socket has gone."""
    return client_of(server).is_gone()


def test_it_sees_that_a_client_has_gone(connected: tuple[socket.socket, socket.socket]) -> None:
    server, client = connected
    assert not watching(server)
    client.sendall(b"another request")
    assert not watching(server)
    client.close()
    assert watching(server)


def test_it_sees_that_its_own_end_is_closed(connected: tuple[socket.socket, socket.socket]) -> None:
    server, _ = connected
    client = client_of(server)
    server.close()
    assert client.is_gone()


def test_it_sees_it_of_files_above_1023(connected: tuple[socket.socket, socket.socket]) -> None:
    server, client = connected
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 4096), limits[1]))
    high = socket.socket(fileno=os.dup2(server.fileno(), 2000))
    server.close()
    try:
        assert not watching(high)
        client.close()
        assert watching(high)
    finally:
        high.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_it_knows_of_nobody_without_a_socket() -> None:
    assert not ClientSocket(RequestFactory().post("/chat")).is_gone()


@pytest.fixture
def accepted() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a server's socket and its client's, as gunicorn's gevent worker has them."""
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = gevent.socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    yield server, client
    server.close()
    client.close()


def test_it_writes_chunks_as_long_as_the_client_takes_them(accepted: tuple[socket.socket, socket.socket]) -> None:
    server, client = accepted
    sender = client_of(server)
    assert sender.can_send
    assert sender.send_chunk(b"0123456789") == b""
    assert client.recv(100) == b"a\r\n0123456789\r\n"
    piece, rest = b"x" * 50_000, b""
    expected = 0
    while not rest:
        rest = sender.send_chunk(piece)
        expected += len(b"c350\r\n") + len(piece) + 2
    with pytest.raises(BlockingIOError):
        sender.send_chunk(b"more")
    gevent.spawn(sender.send_rest, rest)
    received = b""
    while len(received) < expected:
        received += client.recv(65536)
    assert received == (b"c350\r\n" + piece + b"\r\n") * (expected // (len(piece) + 8))


def test_it_says_that_a_client_has_gone_to_whom_it_writes(accepted: tuple[socket.socket, socket.socket]) -> None:
    sender = client_of(accepted[0])
    accepted[0].close()
    with pytest.raises(OSError, match=r"closed|Bad file"):
        sender.send_chunk(b"a")


def test_it_writes_itself_only_in_chunks_and_without_threads(
    accepted: tuple[socket.socket, socket.socket], connected: tuple[socket.socket, socket.socket]
) -> None:
    assert not client_of(connected[0]).can_send
    assert not client_of(accepted[0], protocol="HTTP/1.0").can_send
    assert not ClientSocket(RequestFactory().post("/chat")).can_send


def test_it_remembers_what_was_sent_until_that_is_too_much() -> None:
    transcript = Transcript(5)
    transcript.add(b"abc")
    transcript.add(b"de")
    assert transcript.content == b"abcde"
    transcript.add(b"f")
    transcript.add(b"g")
    assert not transcript.content
    assert len(transcript._pieces) == 0, "it holds no memory for what nobody gets"
