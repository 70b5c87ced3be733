"""A body that is compressed is refused as what it is, wherever bodies are taken, and before anything is asked."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.running import (
    Platform,
    ScriptedProvider,
    Served,
    chat,
    completion,
    running_platform,
    scripted_provider,
)

MODEL = "m"
BODIES: dict[str, dict[str, Any]] = {
    "/chat": {"message": "hello there", "model": MODEL},
    "/summarize": {"text": "hello there, all of you", "model": MODEL},
    "/v1/chat/completions": chat(MODEL),
    "/v1/completions": {"model": MODEL, "prompt": "hello there"},
    "/v1/responses": {"model": MODEL, "input": "hello there"},
    "/v1/embeddings": {"model": MODEL, "input": "hello there"},
}
STREAMED = ("/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses")


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider that answers."""
    with scripted_provider() as scripted:
        scripted.script(MODEL, completion("Hello"))
        yield scripted


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run the platform."""
    with running_platform(prepared(), [Served(MODEL, [provider.base_url])]) as running:
        yield running


def told(path: str, answer: Any) -> tuple[str, str]:
    """Return an error's code and message in either shape."""
    error = answer.json()
    return (error["error"]["code"], error["error"]["message"]) if "error" in error else (error["code"], error["detail"])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("streams", [False, True])
def test_it_refuses_a_compressed_body(platform: Platform, provider: ScriptedProvider, path: str, streams: bool) -> None:
    body = {**BODIES[path], **({"stream": True} if streams and path in STREAMED else {})}
    provider.calls.clear()
    packed = gzip.compress(json.dumps(body).encode())
    answer = platform.ask(path, packed, headers={"Content-Encoding": "gzip"})
    assert answer.status == 415
    code, message = told(path, answer)
    assert code == "unsupported_media_type"
    assert "Content-Encoding" in message
    assert answer.headers["accept-encoding"] == "identity"
    record = platform.record(answer)
    assert (record.status, record.error_code, record.cost) == (415, "unsupported_media_type", 0)
    assert provider.calls == []


@pytest.mark.parametrize("encoding", ["GZIP", "deflate", "br", "zstd", "x-gzip", "gzip, gzip", "identity, gzip"])
def test_it_refuses_whatever_the_encoding_is_called(platform: Platform, encoding: str) -> None:
    answer = platform.ask("/chat", zlib.compress(b"{}"), headers={"Content-Encoding": encoding})
    assert (answer.status, answer.json()["code"]) == (415, "unsupported_media_type")


def test_it_refuses_a_compressed_body_in_chunks(platform: Platform) -> None:
    packed = gzip.compress(json.dumps(BODIES["/chat"]).encode())
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
    answer = platform.ask("/chat", chunks, headers={"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
    assert answer.status == 415


def test_it_refuses_a_compressed_body_where_keys_are_made(platform: Platform) -> None:
    arguments = ("--account", "e2e", "--tier", "e2e", "--name", "keeper", "--scope", "keys:manage", "--json")
    key = json.loads(platform.manage("key", "create", *arguments).strip().splitlines()[-1])["key"]
    packed = gzip.compress(json.dumps({"name": "another"}).encode())
    answer = platform.ask("/keys", packed, key=key, headers={"Content-Encoding": "gzip"})
    assert (answer.status, answer.json()["code"]) == (415, "unsupported_media_type")


def test_it_takes_no_idempotency_key_for_one(platform: Platform) -> None:
    headers = {"Idempotency-Key": "packed-once"}
    packed = gzip.compress(json.dumps(BODIES["/chat"]).encode())
    assert platform.ask("/chat", packed, headers={**headers, "Content-Encoding": "gzip"}).status == 415
    plain = platform.ask("/chat", BODIES["/chat"], headers=headers)
    assert (plain.status, plain.json()["response"]) == (200, "Hello")


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", " "])
def test_it_takes_a_body_that_says_that_it_is_not_compressed(platform: Platform, encoding: str) -> None:
    for path in ("/chat", "/v1/chat/completions"):
        assert platform.ask(path, BODIES[path], headers={"Content-Encoding": encoding}).status == 200
