"""A relay and nothing else: gevent hands on, byte for byte, what a provider sends (`relay.py PORT TO_PORT`).

The measure of what a streamed chunk costs: no HTTP is read or written, nothing is checked, counted or kept.
"""

from __future__ import annotations

import gevent.monkey

gevent.monkey.patch_all()

import socket  # noqa: E402
import sys  # noqa: E402

from gevent.server import StreamServer  # noqa: E402

SIZE = 64 * 1024


def relay(client: socket.socket, _: object) -> None:
    """Hand a request over, and its answer back as it comes."""
    with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as provider:
        provider.sendall(client.recv(SIZE))
        while data := provider.recv(SIZE):
            client.sendall(data)


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), relay, backlog=2000).serve_forever()
