"""One call to one deployment, through the `openai` SDK over a connection pool that the process shares.

The SDK is asked for its raw response: its typed objects would be built and thrown away for every call. It retries
nothing by itself (`max_retries=0`), because a retry here has to fit the caller's deadline and reservation.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from django.conf import settings

from accounts.exceptions import ApiError, ContentFiltered, UpstreamFailed
from inference.catalog import Route
from inference.upstream.errors import may_be_billed, translate

#: Connections of a process to its providers; more calls than that wait for a free one.
MAX_CONNECTIONS = 1000
KEEPALIVE_CONNECTIONS = 200
#: How a call can fail: the SDK's errors, the connection's, an answer that is no JSON.
FAILURES = (openai.OpenAIError, httpx2.HTTPError, ValueError, OSError)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as a provider counts them; `cached_tokens` are part of the input."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A provider's successful answer: its body as it came, and its usage (None where it sent none)."""

    body: dict[str, Any]
    usage: Usage | None
    route: Route


class AttemptFailed(Exception):
    """One call failed: what that means to the caller, and whether the provider may bill it all the same."""

    def __init__(self, error: ApiError, *, may_be_billed: bool) -> None:
        super().__init__(error.detail)
        self.error = error
        self.may_be_billed = may_be_billed


class Client:
    """Keeps the SDK's clients, one an address and secret, all over one connection pool."""

    def __init__(self) -> None:
        self._http: httpx2.Client | None = None
        self._clients: dict[tuple[str, str], openai.OpenAI] = {}
        self._lock = threading.Lock()

    def complete_chat(self, route: Route, payload: Mapping[str, Any], *, seconds: float) -> Reply:
        """Ask for a chat completion and wait for all of it, `seconds` at most.

        `payload` is the body without `model`. Raises AttemptFailed with the ApiError that the failure means.
        """
        body = {**payload, "model": route.upstream_name}
        try:
            with _deadline(seconds):
                answer = self._post(route, "/chat/completions", body, seconds)
        except FAILURES as error:
            raise AttemptFailed(translate(error, route=route.name), may_be_billed=may_be_billed(error)) from error
        return _read_completion(answer, route)

    def is_reachable(self, route: Route, *, seconds: float) -> bool:
        """Ask for the provider's list of models, and say whether it came. Failures are logged like any call's."""
        try:
            with _deadline(seconds):
                options: Any = {"timeout": self._timeout(seconds), "headers": _headers(route)}
                self._client(route).get("/models", cast_to=httpx2.Response, options=options)
        except FAILURES as error:
            translate(error, route=route.name)
            return False
        return True

    def _post(self, route: Route, path: str, body: dict[str, Any], seconds: float) -> Any:
        response = self._client(route).post(
            path,
            cast_to=httpx2.Response,
            body=body,
            options={"timeout": self._timeout(seconds), "headers": _headers(route)},
        )
        return json.loads(response.content)

    def _client(self, route: Route) -> openai.OpenAI:
        secret = os.environ.get(route.api_key_variable, "") if route.api_key_variable else ""
        client = self._clients.get((route.base_url, secret))
        if client is None:
            with self._lock:
                client = self._clients.setdefault((route.base_url, secret), self._connect(route.base_url, secret))
        return client

    def _connect(self, base_url: str, secret: str) -> openai.OpenAI:
        if self._http is None:
            limits = httpx2.Limits(
                max_connections=MAX_CONNECTIONS, max_keepalive_connections=KEEPALIVE_CONNECTIONS, keepalive_expiry=30
            )
            self._http = httpx2.Client(limits=limits, follow_redirects=False, trust_env=False)
        # The SDK insists on a secret; a provider without one ignores the header.
        return openai.OpenAI(base_url=base_url, api_key=secret or "none", http_client=self._http, max_retries=0)

    def _timeout(self, seconds: float) -> httpx2.Timeout:
        connect = min(seconds, settings.UPSTREAM_CONNECT_TIMEOUT)
        return httpx2.Timeout(seconds, connect=connect)


client = Client()


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Bound a whole call, however its bytes trickle in; needs gevent (other servers have the socket's timeouts)."""
    from gevent import Timeout, monkey

    if not monkey.is_module_patched("socket"):
        yield
        return
    with Timeout(seconds, TimeoutError("deadline")):
        yield


def _headers(route: Route) -> dict[str, str]:
    """Read the extra headers of a provider; a value `$NAME_API_KEY` comes from the environment, or is left out."""
    resolved = {
        name: os.environ.get(text[1:], "") if text.startswith("$") else text for name, text in route.extra_headers
    }
    return {name: text for name, text in resolved.items() if text}


def _read_completion(body: Any, route: Route) -> Reply:
    """Check that an answer is a completion: one with choices, none of them stopped by a content filter."""
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise AttemptFailed(translate(ValueError("no choices"), route=route.name), may_be_billed=True)
    return Reply(body=body, usage=read_usage(body.get("usage")), route=route)


def read_usage(usage: Any) -> Usage | None:
    """Read the usage of a completion; None unless it holds both counts."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt < 0 or completion < 0:
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(prompt, min(cached, prompt) if isinstance(cached, int) else 0, completion)


def answer_text(body: dict[str, Any]) -> str:
    """Return the text of the first choice. Raises ContentFiltered or UpstreamFailed where there is none to show."""
    choice = body["choices"][0]
    if choice.get("finish_reason") == "content_filter":
        raise ContentFiltered
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not content.strip():
        raise UpstreamFailed
    return content
