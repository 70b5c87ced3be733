"""A body that is compressed is refused as what it is, wherever bodies are taken, and before anything is asked."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from accounts.validators import SCOPES
from tests.running import CHAT, ENDPOINTS, MODEL, STREAMING, Platform, ScriptedProvider, asking, completion

BODIES = {path: asking(path, MODEL) for path in ENDPOINTS}


@pytest.fixture(scope="module")
def own(platform: Platform, provider: ScriptedProvider) -> Platform:
    """Return the platform with a key of which little else was refused: many refusals have one record together."""
    provider.script(MODEL, completion("Hello"))
    return Platform(platform.service, platform.add([], account="packed", scopes=SCOPES))


def told(path: str, answer: Any) -> tuple[str, str]:
    """Return an error's code and message in either shape."""
    error = answer.json()
    return (error["error"]["code"], error["error"]["message"]) if "error" in error else (error["code"], error["detail"])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("streams", [False, True])
def test_it_refuses_a_compressed_body(own: Platform, provider: ScriptedProvider, path: str, streams: bool) -> None:
    body = {**BODIES[path], **({"stream": True} if streams and path in STREAMING else {})}
    provider.calls.clear()
    packed = gzip.compress(json.dumps(body).encode())
    answer = own.ask(path, packed, headers={"Content-Encoding": "gzip"})
    assert answer.status == 415
    code, message = told(path, answer)
    assert code == "unsupported_media_type"
    assert "Content-Encoding" in message
    assert answer.headers["accept-encoding"] == "identity"
    record = own.record(answer)
    assert (record.status, record.error_code, record.cost) == (415, "unsupported_media_type", 0)
    assert provider.calls == []


@pytest.mark.parametrize("encoding", ["GZIP", "deflate", "br", "zstd", "x-gzip", "gzip, gzip", "identity, gzip"])
def test_it_refuses_whatever_the_encoding_is_called(own: Platform, encoding: str) -> None:
    answer = own.ask("/chat", zlib.compress(b"{}"), headers={"Content-Encoding": encoding})
    assert (answer.status, answer.json()["code"]) == (415, "unsupported_media_type")


def test_it_refuses_a_compressed_body_in_chunks(own: Platform) -> None:
    packed = gzip.compress(json.dumps(BODIES["/chat"]).encode())
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
    answer = own.ask("/chat", chunks, headers={"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
    assert answer.status == 415


def test_it_refuses_a_compressed_body_where_keys_are_made(own: Platform) -> None:
    packed = gzip.compress(json.dumps({"name": "another"}).encode())
    answer = own.ask("/keys", packed, headers={"Content-Encoding": "gzip"})
    assert (answer.status, answer.json()["code"]) == (415, "unsupported_media_type")


def test_it_takes_no_idempotency_key_for_one(own: Platform) -> None:
    headers = {"Idempotency-Key": "packed-once"}
    packed = gzip.compress(json.dumps(BODIES["/chat"]).encode())
    assert own.ask("/chat", packed, headers={**headers, "Content-Encoding": "gzip"}).status == 415
    plain = own.ask("/chat", BODIES["/chat"], headers=headers)
    assert (plain.status, plain.json()["response"]) == (200, "Hello")


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", " "])
def test_it_takes_a_body_that_says_that_it_is_not_compressed(own: Platform, encoding: str) -> None:
    for path in ("/chat", CHAT):
        assert own.ask(path, BODIES[path], headers={"Content-Encoding": encoding}).status == 200
