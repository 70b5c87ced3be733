"""Hundreds of clients at once, each on a connection of its own: what the proofs of the limits are made with."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Seconds after which a client gives up: longer than any answer takes here.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A question on a port of 127.0.0.1, after whose seconds the client leaves. The label goes as X-Request-ID."""

    port: int
    key: str
    body: Mapping[str, Any]
    path: str = "/chat"
    label: str = ""
    patience: float = PATIENCE


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; status 0 where the server died, or was not there, or the client left."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Return the code of an error; empty for any other answer."""
        return "" if self.status in (0, 200) else str(self.json()["code"])


async def ask(question: Ask) -> Reply:
    """Ask once, at once."""
    (task,) = await volley([question])
    return await task


async def volley(questions: Iterable[Ask]) -> Sequence[asyncio.Task[Reply]]:
    """Connect all clients first, then let all ask in the same moment; return their tasks, which run on."""
    asked = list(questions)
    connections = await asyncio.gather(*(_connect(each.port) for each in asked))
    return [
        asyncio.create_task(_converse(each, connection)) for each, connection in zip(asked, connections, strict=True)
    ]


async def finished(tasks: Sequence[asyncio.Task[Reply]], number: int) -> None:
    """Wait until so many of the tasks are done."""
    for following in itertools.islice(asyncio.as_completed(tasks), number):
        await following


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connect(port: int) -> Connection | None:
    try:
        return await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None


async def _converse(question: Ask, connection: Connection | None) -> Reply:
    if connection is None:
        return Reply(0)
    reader, writer = connection
    try:
        writer.write(_request(question))
        return _parsed(await asyncio.wait_for(reader.read(-1), question.patience))
    except OSError:
        return Reply(0)
    finally:
        writer.close()


def _request(question: Ask) -> bytes:
    body = json.dumps(question.body).encode()
    lines = [
        f"POST {question.path} HTTP/1.0",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-API-Key: {question.key}",
        *([f"X-Request-ID: {question.label}"] if question.label else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _parsed(answer: bytes) -> Reply:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return Reply(0)
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if len(body) != int(headers.get("content-length", len(body))):
        return Reply(0)
    return Reply(int(status.split()[1]), headers, body)
