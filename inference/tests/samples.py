"""What tests of inference share: models, odd providers, and a check of payloads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from core.errors import InvalidRequest
from inference.catalog import catalog
from inference.models import Deployment, Model, Price, Provider
from inference.protocols.base import Payload, WireProtocol


def serve(
    public_name: str,
    *,
    upstream_name: str = "",
    input: int = 0,  # noqa: A002  # as the price's own name begins
    cached_input: int = 0,
    output: int = 0,
    **fields: Any,
) -> Deployment:
    """Let the provider of the environment serve another model, at prices in dollars per million tokens."""
    model = Model.objects.create(public_name=public_name, **fields)
    provider = Provider.objects.get(from_environment=True)
    deployment = Deployment.objects.create(model=model, provider=provider, upstream_name=upstream_name or public_name)
    Price.objects.create(
        deployment=deployment,
        input_per_million=Decimal(input),
        cached_input_per_million=Decimal(cached_input),
        output_per_million=Decimal(output),
    )
    catalog.forget()
    return deployment


@contextmanager
def unanswered(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Hold a port whose queue of connections is full, so that another one gets no answer at all."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield port


@contextmanager
def odd_provider(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a provider that answers every call with just these bytes, and yield its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name in the base class)
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def is_taken_as_it_is(protocol: WireProtocol, payload: Payload) -> bool:
    """Say whether a protocol that lets a payload pass leaves it as it was; raises its error otherwise."""
    before = deepcopy(payload)
    protocol.check({"model": "m", **payload})
    return payload == before


def refusal(protocol: WireProtocol, payload: Payload) -> tuple[str | None, str]:
    """Return `param` and `code` of the error that a payload meets."""
    with pytest.raises(InvalidRequest) as refused:
        protocol.check({"model": "m", **payload})
    return refused.value.param, refused.value.error_code
