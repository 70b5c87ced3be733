"""Headers of an answer agree with each other, tell nothing empty, and say how long the answer holds.

RateLimit and RateLimit-Policy are those of draft-ietf-httpapi-ratelimit-headers-10: `t`, the seconds until the limit is
whole again, lies within its window `w`, and is Retry-After where that limit has refused the request.
"""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.running import (
    Answered,
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    chat,
    completion,
    event,
    running_platform,
    scripted_provider,
)

MODEL, SLOW, STREAMED = "quick", "slow", "streamed"
CHAT = "/v1/chat/completions"
#: What one answer uses: twice that is more than the limit of tokens.
USAGE = {"prompt_tokens": 300, "completion_tokens": 300, "total_tokens": 600}
TOKENS_PER_MINUTE = 1_000
#: A provider's whole answer, which comes after this many seconds.
LATE = 2.5
HEALTH = ("/health", "/health/live", "/health/ready")
PAGES = ("/docs", "/redoc", "/openapi.json", "/playground/", "/account/", "/")
ITEM = re.compile(r'"(?P<name>[a-z-]+)"(?P<parameters>(;\w+=("[a-z]+"|\d+))+)')


@dataclass(frozen=True)
class Limit:
    """One limit as the two headers tell it."""

    quota: int
    window: int
    left: int
    reset: int


@dataclass
class Cast:
    """The platform, its provider, and keys without a limit and with one of each kind."""

    platform: Platform
    provider: ScriptedProvider
    keys: dict[str, str]


@pytest.fixture(scope="module")
def cast(prepared: Callable[[], dict[str, str]]) -> Iterator[Cast]:
    """Run the platform and make the keys."""
    with scripted_provider() as provider:
        whole = completion("Hello", usage=USAGE)
        assert isinstance(whole.body, bytes)
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        ends = {**chunk, "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}], "usage": USAGE}
        provider.script(MODEL, whole)
        provider.script(SLOW, Reply(body=[LATE, whole.body], headers={"Content-Type": "application/json"}))
        provider.script(STREAMED, Reply(body=[event(ends), event("[DONE]")]))
        served = [Served(name, [provider.base_url]) for name in (MODEL, SLOW, STREAMED)]
        with running_platform(prepared(), served, requests_per_minute=1000, tokens_per_minute=10**7) as platform:
            keys = {
                "roomy": platform.key,
                "requests": platform.add([], account="requests", requests_per_minute=1),
                "tokens": platform.add(
                    [], account="tokens", tokens_per_minute=TOKENS_PER_MINUTE, max_output_tokens=600
                ),
            }
            yield Cast(platform, provider, keys)


def limits_of(answer: Answered) -> dict[str, Limit]:
    """Parse both headers, and hold them to what is true of any answer."""
    policies, states = (items(answer.headers[name]) for name in ("ratelimit-policy", "ratelimit"))
    assert list(policies) == list(states)
    told = {
        name: Limit(int(policy["q"]), int(policy["w"]), int(states[name]["r"]), int(states[name]["t"]))
        for name, policy in policies.items()
    }
    for name, limit in told.items():
        assert 0 <= limit.left <= limit.quota, name
        assert 0 <= limit.reset <= limit.window, (name, answer.headers["ratelimit"])
    return told


def items(header: str) -> dict[str, dict[str, str]]:
    """Parse a list of names with parameters (RFC 8941)."""
    parsed = {}
    for part in header.split(", "):
        item = ITEM.fullmatch(part)
        assert item, part
        parsed[item["name"]] = dict(pair.split("=") for pair in item["parameters"][1:].split(";"))
    return parsed


def asked_in(cast: Cast, kind: str) -> Answered:
    """Ask in one of many ways."""
    ask = cast.platform.ask
    ways: dict[str, Callable[[], Answered]] = {
        "answered": lambda: ask(CHAT, chat(MODEL)),
        "cached": lambda: ask(CHAT, chat(MODEL, temperature=0)),
        "streamed": lambda: ask(CHAT, chat(STREAMED, stream=True)),
        "own": lambda: ask("/chat", {"message": "Hello", "model": MODEL}),
        "slow": lambda: ask(CHAT, chat(SLOW)),
        "invalid": lambda: ask(CHAT, {}),
        "malformed": lambda: ask(CHAT, b"{"),
        "unknown": lambda: ask(CHAT, chat("none")),
        "read": lambda: ask("/v1/models"),
        "refused method": lambda: ask(CHAT, method="DELETE"),
        "usage": lambda: ask("/usage"),
    }
    return ways[kind]()


KINDS = (
    "answered", "cached", "cached", "streamed", "own", "slow", "invalid", "malformed", "unknown", "read",
    "refused method", "usage",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_tells_times_within_the_window_and_the_same_in_every_header(cast: Cast, kind: str) -> None:
    answer = asked_in(cast, kind)
    now = time.time()
    told = limits_of(answer)
    assert set(told) == {"key", "key-tokens"}
    assert told["key"].window == 60
    reset = int(answer.headers["x-ratelimit-reset"])
    assert told["key"].reset == pytest.approx(reset - now, abs=1.5)
    assert (told["key"].quota, told["key"].left) == (1000, int(answer.headers["x-ratelimit-remaining"]))
    for unit, name in (("requests", "key"), ("tokens", "key-tokens")):
        if f"x-ratelimit-reset-{unit}" in answer.headers:
            assert answer.headers[f"x-ratelimit-reset-{unit}"] == f"{told[name].reset}s"


@pytest.mark.parametrize("path", [CHAT, "/chat"])
def test_it_tells_of_a_refused_request_when_to_try_again_once(cast: Cast, path: str) -> None:
    body: Any = chat(MODEL) if path == CHAT else {"message": "Hello", "model": MODEL}
    refused = [cast.platform.ask(path, body, key=cast.keys["requests"]) for _ in range(2)][-1]
    now = time.time()
    wait = int(refused.headers["retry-after"])
    assert refused.status == 429
    assert limits_of(refused)["key"] == Limit(1, 60, 0, wait)
    assert int(refused.headers["x-ratelimit-reset"]) == pytest.approx(now + wait, abs=1.5)
    assert limits_of(cast.platform.ask("/v1/models", key=cast.keys["requests"]))["key"].reset <= wait


@pytest.mark.parametrize("streams", [False, True])
def test_it_tells_of_refused_tokens_when_to_try_again_once(cast: Cast, streams: bool) -> None:
    ask, key = cast.platform.ask, cast.keys["tokens"]
    ask(CHAT, chat(MODEL, max_tokens=600), key=key)  # uses 600 tokens, or is refused because they are used
    body = {**chat(STREAMED if streams else MODEL, max_tokens=600), "stream": streams}
    refused = ask(CHAT, body, key=key)
    assert refused.status == 429
    told, wait = limits_of(refused)["key-tokens"], int(refused.headers["retry-after"])
    assert (told.quota, told.reset) == (TOKENS_PER_MINUTE, wait)
    assert refused.headers["x-ratelimit-reset-tokens"] == f"{wait}s"
    own = ask("/chat", {"message": "Hello " * 80, "model": MODEL}, key=key)
    assert own.status == 429
    assert limits_of(own)["key-tokens"].reset == int(own.headers["retry-after"])


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        *[("POST", path, key) for path in (CHAT, "/v1/responses", "/chat", "/summarize") for key in ("", "wrong")],
        ("GET", CHAT, None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/files", None),
        ("OPTIONS", "/chat", ""),
        *[("GET", path, "") for path in (*HEALTH, *PAGES, "/nowhere", "/metrics")],
    ],
)
def test_it_sends_no_empty_header(cast: Cast, method: str, path: str, key: str | None) -> None:
    answer = cast.platform.ask(path, {} if method == "POST" else None, method=method, key=key)
    assert [name for name, value in answer.headers.items() if not value.strip()] == []


def test_it_tells_what_the_platform_itself_took(cast: Cast) -> None:
    for kind in ("answered", "streamed", "own", "unknown"):
        assert re.fullmatch(r"\w+;dur=\d+\.\d\d(, \w+;dur=\d+\.\d\d)*", asked_in(cast, kind).headers["server-timing"])


@pytest.mark.parametrize("path", [*HEALTH, "/metrics"])
def test_it_lets_nobody_store_what_changes(cast: Cast, path: str) -> None:
    assert "no-store" in cast.platform.ask(path, key="").headers["cache-control"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/files", 404),
        ("GET", "/chat", 401),
        ("POST", "/chat", 401),
        ("POST", CHAT, 401),
        ("POST", "/health", 405),
        ("POST", "/", 405),
        ("GET", "/account", 301),
        ("GET", "/admin/", 302),
    ],
)
def test_it_lets_nobody_store_errors_and_redirects(cast: Cast, method: str, path: str, status: int) -> None:
    answer = cast.platform.ask(path, {} if method == "POST" else None, method=method, key="")
    assert answer.status == status
    assert "no-store" in answer.headers["cache-control"]


def test_it_lets_nobody_store_what_a_host_that_is_not_its_own_gets(cast: Cast) -> None:
    answer = cast.platform.ask("/docs", key="", headers={"Host": "evil.example.com"})
    assert (answer.status, answer.headers["cache-control"]) == (400, "no-store")


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_answers_to_a_key_out_of_every_cache(cast: Cast, kind: str) -> None:
    answer = asked_in(cast, kind)
    assert answer.headers["cache-control"] == "private, no-store"
    assert "etag" not in answer.headers


@pytest.mark.parametrize(("path", "accepted"), [*[(path, "text/html") for path in PAGES], ("/", "application/json")])
def test_it_lets_browsers_ask_whether_a_page_has_changed(cast: Cast, path: str, accepted: str) -> None:
    headers = {"Accept": accepted}
    page = cast.platform.ask(path, key="", headers=headers)
    assert (page.status, page.headers["cache-control"]) == (200, "no-cache")
    tag = page.headers["etag"]
    same = cast.platform.ask(path, key="", headers={**headers, "If-None-Match": tag})
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    assert same.headers["cache-control"] == "no-cache"
    assert same.headers["x-request-id"]
    other = cast.platform.ask(path, key="", headers={**headers, "If-None-Match": '"another"'})
    assert (other.status, other.body) == (200, page.body)


def test_it_tells_the_landing_page_from_the_same_address_as_json(cast: Cast) -> None:
    page, told = (
        cast.platform.ask("/", key="", headers={"Accept": kind}) for kind in ("text/html", "application/json")
    )
    assert page.headers["etag"] != told.headers["etag"]
    assert "Accept" in page.headers["vary"]


def test_it_answers_a_page_without_a_body_to_head(cast: Cast) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", cast.platform.service.port, timeout=10)
    connection.request("HEAD", "/playground/")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Cache-Control"), answer.read()) == (200, "no-cache", b"")
    connection.close()
