"""Headers of an answer agree with each other, tell nothing empty, and say how long the answer holds.

RateLimit and RateLimit-Policy are those of draft-ietf-httpapi-ratelimit-headers-10: `t`, the seconds until the limit is
whole again, lies within its window `w`, and is Retry-After where that limit has refused the request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.running import CHAT, MESSAGES, Answer, Platform, Reply, ScriptedProvider, Served, chat, completion, event

MODEL, SLOW, STREAMED = "quick", "slow", "streamed"
#: What one answer uses: twice that is more than the limit of tokens.
USAGE = {"prompt_tokens": 300, "completion_tokens": 300, "total_tokens": 600}
TOKENS_PER_MINUTE = 1_000
#: A provider's whole answer, which comes after this many seconds.
LATE = 2.5
HEALTH = ("/health", "/health/live", "/health/ready")
PAGES = ("/docs", "/redoc", "/openapi.json", "/playground/", "/account/", "/models/", "/docs/limits/", "/")
ITEM = re.compile(r'"(?P<name>[a-z-]+)"(?P<parameters>(;\w+=("[a-z]+"|\d+))+)')


@dataclass(frozen=True)
class Limit:
    """One limit as the two headers tell it."""

    quota: int
    window: int
    left: int
    reset: int


@pytest.fixture(scope="module")
def roomy(platform: Platform, provider: ScriptedProvider) -> Platform:
    """Return the platform with a key whose limits are large, and models that answer."""
    whole = completion("Hello", usage=USAGE)
    ends = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}], "usage": USAGE}
    provider.script(MODEL, whole)
    provider.script(SLOW, Reply(delay=LATE, body=whole.body))
    provider.script(STREAMED, Reply(body=[event(ends), event("[DONE]")]))
    served = [Served(name, [provider.base_url]) for name in (MODEL, SLOW, STREAMED)]
    limits = {"requests_per_minute": 1000, "tokens_per_minute": 10**7}
    return Platform(platform.service, platform.add(served, account="roomy", **limits))


def limits_of(answer: Answer) -> dict[str, Limit]:
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


def asked_in(roomy: Platform, kind: str) -> Answer:
    ask = roomy.ask
    ways: dict[str, Callable[[], Answer]] = {
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
def test_it_tells_times_within_the_window_and_the_same_in_every_header(roomy: Platform, kind: str) -> None:
    answer = asked_in(roomy, kind)
    now = time.time()
    assert (answer.headers["cache-control"], "etag" in answer.headers) == ("private, no-store", False)
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
def test_it_tells_of_a_refused_request_when_to_try_again_once(roomy: Platform, path: str) -> None:
    body: Any = chat(MODEL) if path == CHAT else {"message": "Hello", "model": MODEL}
    key = roomy.add([], account=f"once-{path.count('/')}", requests_per_minute=1)
    refused = [roomy.ask(path, body, key=key) for _ in range(2)][-1]
    now = time.time()
    wait = int(refused.headers["retry-after"])
    assert refused.status == 429
    assert limits_of(refused)["key"] == Limit(1, 60, 0, wait)
    assert int(refused.headers["x-ratelimit-reset"]) == pytest.approx(now + wait, abs=1.5)
    assert limits_of(roomy.ask("/v1/models", key=key))["key"].reset <= wait


@pytest.mark.parametrize("streams", [False, True])
def test_it_tells_of_refused_tokens_when_to_try_again_once(roomy: Platform, streams: bool) -> None:
    more = {"tokens_per_minute": TOKENS_PER_MINUTE, "max_output_tokens": 600}
    ask, key = roomy.ask, roomy.add([], account=f"tokens-{streams}", **more)
    assert ask(CHAT, chat(MODEL, max_tokens=600), key=key).status == 200
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
        *[("POST", path, key) for path in (CHAT, MESSAGES, "/chat", "/summarize") for key in ("", "wrong")],
        ("GET", CHAT, None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/files", None),
        ("OPTIONS", "/chat", ""),
        *[("GET", path, "") for path in (*HEALTH, *PAGES, "/nowhere", "/metrics")],
    ],
)
def test_it_sends_no_empty_header(roomy: Platform, method: str, path: str, key: str | None) -> None:
    answer = roomy.ask(path, {} if method == "POST" else None, method=method, key=key)
    assert [name for name, value in answer.headers.items() if not value.strip()] == []


def test_it_tells_what_the_platform_itself_took(roomy: Platform) -> None:
    for kind in ("answered", "streamed", "own", "unknown"):
        assert re.fullmatch(r"\w+;dur=\d+\.\d\d(, \w+;dur=\d+\.\d\d)*", asked_in(roomy, kind).headers["server-timing"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *[("GET", path, 200) for path in (*HEALTH, "/metrics")],
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
def test_it_lets_nobody_store_what_changes_errors_and_redirects(
    roomy: Platform, method: str, path: str, status: int
) -> None:
    answer = roomy.ask(path, {} if method == "POST" else None, method=method, key="")
    assert answer.status == status
    assert "no-store" in answer.headers["cache-control"]
    foreign = roomy.ask("/docs", key="", headers={"Host": "evil.example.com"})
    assert (foreign.status, foreign.headers["cache-control"]) == (400, "no-store")


@pytest.mark.parametrize(("path", "accepted"), [*[(path, "text/html") for path in PAGES], ("/", "application/json")])
def test_it_lets_browsers_ask_whether_a_page_has_changed(roomy: Platform, path: str, accepted: str) -> None:
    headers = {"Accept": accepted}
    page = roomy.ask(path, key="", headers=headers)
    assert (page.status, page.headers["cache-control"]) == (200, "no-cache")
    tag = page.headers["etag"]
    same = roomy.ask(path, key="", headers={**headers, "If-None-Match": tag})
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    assert same.headers["cache-control"] == "no-cache"
    assert same.headers["x-request-id"]
    other = roomy.ask(path, key="", headers={**headers, "If-None-Match": '"another"'})
    assert (other.status, other.body) == (200, page.body)
    head = roomy.ask(path, method="HEAD", key="", headers=headers)
    assert (head.status, head.headers["cache-control"], head.body) == (200, "no-cache", b"")


def test_it_tells_the_landing_page_from_the_same_address_as_json(roomy: Platform) -> None:
    page, told = (roomy.ask("/", key="", headers={"Accept": kind}) for kind in ("text/html", "application/json"))
    assert page.headers["etag"] != told.headers["etag"]
    assert "Accept" in page.headers["vary"]
