"""Models that tests of inference call, and a place where nobody answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import Any

from inference.catalog import catalog
from inference.models import Deployment, Model, Price, Provider


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
