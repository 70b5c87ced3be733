"""Bodies in chunks: taken apart wherever the bytes are cut, and read in the event loop as they are elsewhere."""

from __future__ import annotations

import socket as plain_socket
import ssl
from collections.abc import Callable, Iterator

import gevent
import gevent.socket
import gevent.ssl
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from inference.relay import LONGEST_LINE, ChunkedReading, Chunks, ProtocolError

END = b"0\r\n\r\n"
PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def chunked(*pieces: bytes, end: bytes = END) -> bytes:
    """Write a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


@given(pieces=PIECES, cuts=st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=20), data=st.data())
def test_it_takes_a_body_apart_wherever_it_is_cut(pieces: list[bytes], cuts: list[int], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from([END, b"0;last\r\n\r\n", b"00\r\nExpires: never\r\nX: y\r\n\r\n"]))
    body, chunks, taken = chunked(*pieces, end=end), Chunks(), b""
    at = 0
    while at < len(body):
        assert not chunks.is_over
        size = cuts[at % len(cuts)]
        taken += chunks.feed(body[at : at + size])
        at += size
    assert taken == b"".join(pieces)
    assert chunks.is_over


def test_it_hands_over_what_came_of_a_chunk() -> None:
    chunks = Chunks()
    assert chunks.feed(b"A;name=value\r\n012") == b"012"
    assert chunks.feed(b"345") == b"345"
    assert chunks.feed(b"6789\r\n2\r\nab") == b"6789ab"


@pytest.mark.parametrize(
    "data", [b"x\r\n", b"\r\n", b"-1\r\nab", b"1\r\nabc", b"<html>\r\n", b"1" * (LONGEST_LINE + 1)]
)
def test_it_refuses_what_are_no_chunks(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Chunks().feed(data)


@pytest.mark.parametrize("data", [b"", b"5\r\nab", chunked(b"ab", end=b""), chunked(b"ab", end=b"0")])
def test_it_refuses_a_body_that_breaks_off(data: bytes) -> None:
    chunks = Chunks()
    chunks.feed(data)
    with pytest.raises(ProtocolError):
        chunks.end()


def test_it_bears_an_end_without_the_last_line() -> None:
    chunks = Chunks()
    assert chunks.feed(chunked(b"ab", end=b"0\r\n")) == b"ab"
    chunks.end()
    assert chunks.is_over


Pair = tuple["gevent.socket.socket", "gevent.socket.socket"]


def tls_pair(server: gevent.socket.socket, client: gevent.socket.socket) -> Pair:
    """Put TLS over a connection."""
    authority = trustme.CA()
    servers, clients = (ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    authority.issue_cert("localhost").configure_cert(servers)
    authority.configure_trust(clients)
    serving = gevent.spawn(gevent.ssl.SSLSocket, server, server_side=True, _context=servers)
    wrapped = gevent.ssl.SSLSocket(client, server_hostname="localhost", _context=clients)
    return serving.get(), wrapped


@pytest.fixture(params=["plain", "tls"])
def connected(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Return a provider's socket and that of the one who reads, plain or over TLS."""
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reader = gevent.socket.create_connection(listener.getsockname())
        provider, _ = listener.accept()
    pair = (provider, reader) if request.param == "plain" else tls_pair(provider, reader)
    yield pair
    for each in pair:
        each.close()


class Taker:
    """Takes every piece but those that begin with `x`."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def __call__(self, piece: bytes) -> bool:
        """Take a piece, or not."""
        if piece.startswith(b"x"):
            return False
        self.taken.append(piece)
        return True


@pytest.fixture
def taker() -> Taker:
    """Return one that has taken nothing."""
    return Taker()


def feed(provider: gevent.socket.socket, *sent: bytes) -> None:
    """Send pieces, each some time after the other."""

    def send() -> None:
        for data in sent:
            provider.sendall(data)
            gevent.sleep(0.02)

    gevent.spawn(send)


def begun(pair: Pair, *sent: bytes) -> ChunkedReading:
    """Return the reading of a body whose first chunk, `begin`, was read; the provider sends the rest."""
    provider, reader = pair
    reading = ChunkedReading(reader.makefile("rb"), reader)
    provider.sendall(chunked(b"begin", end=b""))
    assert reading.read(None) == b"begin"
    feed(provider, *sent)
    return reading


def all_of(reading: ChunkedReading, takes: Callable[[bytes], bool]) -> list[bytes]:
    """Read to the end."""
    return list(filter(None, iter(lambda: reading.read(takes), None)))


def test_it_lets_the_loop_take_what_comes_and_returns_the_rest(connected: Pair, taker: Taker) -> None:
    big = b"b" * 100_000
    one_by_one = [chunked(piece, end=b"") for piece in (b"a", b"x1", b"c", big, b"x2")]
    reading = begun(connected, *one_by_one, END)
    assert all_of(reading, taker) == [b"x1", b"x2"]
    assert b"".join(taker.taken) == b"ac" + big
    assert reading.read(taker) is None
    assert connected[1].gettimeout() is None


def test_it_reads_the_first_bytes_itself_for_they_may_have_been_read_with_the_headers(
    connected: Pair, taker: Taker
) -> None:
    provider, reader = connected
    provider.sendall(b"headers\n" + chunked(b"a", end=b""))
    file = reader.makefile("rb")
    assert file.readline() == b"headers\n"
    reading = ChunkedReading(file, reader)
    assert reading.read(taker) == b"a"
    feed(provider, chunked(b"b"))
    assert all_of(reading, taker) == [b"b"], "with the end of the body, it is not the loop's to take"


def test_it_misses_nothing_of_a_tls_record_that_began_with_the_headers(connected: Pair) -> None:
    provider, reader = connected
    provider.sendall(b"headers\n" + chunked(b"a" * 12_000, end=b""))
    file = reader.makefile("rb")
    assert file.readline() == b"headers\n"
    reading, received = ChunkedReading(file, reader), 0
    with gevent.Timeout(5):
        while received < 12_000:
            received += len(reading.read(lambda _: False) or b"")


@pytest.mark.parametrize(
    ("sent", "failure"),
    [
        ([b"1\r\na\r\n", b"!"], ProtocolError),
        ([chunked(b"a", b"!", end=b"")], ZeroDivisionError),
        ([chunked(b"!", end=b"")], ZeroDivisionError),
    ],
)
def test_it_raises_what_the_loop_met(connected: Pair, sent: list[bytes], failure: type[Exception]) -> None:
    def takes(piece: bytes) -> bool:
        return 1 / (b"!" not in piece) > 0

    reading = begun(connected, *sent, b"\r\n")
    with pytest.raises(failure):
        all_of(reading, takes)


def test_it_notices_a_connection_that_ends(connected: Pair, taker: Taker) -> None:
    reading = begun(connected, chunked(b"a", end=b""))
    gevent.spawn_later(0.1, connected[0].shutdown, plain_socket.SHUT_RDWR)
    with pytest.raises((ProtocolError, OSError)):
        all_of(reading, taker)
    assert taker.taken == [b"a"]


def test_it_stops_when_another_closes_the_connection(connected: Pair, taker: Taker) -> None:
    reading = begun(connected, chunked(b"a", end=b""))

    def close() -> None:
        reading.cancel()
        connected[1].close()

    gevent.spawn_later(0.1, close)
    with pytest.raises(ConnectionAbortedError):
        all_of(reading, taker)
    reading.cancel()


def test_it_waits_no_longer_than_its_connection_may(connected: Pair, taker: Taker) -> None:
    reading = begun(connected)
    connected[1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        reading.read(taker)
    assert connected[1].gettimeout() == 0.05


def test_it_reads_other_sockets_without_the_loop(taker: Taker) -> None:
    provider, reader = plain_socket.socketpair()
    with provider, reader:
        provider.sendall(chunked(b"a", end=b""))
        reading = ChunkedReading(reader.makefile("rb"), reader)
        assert reading.read(taker) == b"a"
        provider.sendall(chunked(b"b"))
        assert all_of(reading, taker) == [b"b"]
    assert taker.taken == []
