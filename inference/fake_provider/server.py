"""The fake provider: its endpoints, faults and ledger, controlled by methods or over HTTP."""

import asyncio
import json
import random
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from itertools import accumulate, count
from typing import Any
from urllib.parse import parse_qs, unquote

from inference.fake_provider.answers import Answer, Json, compose
from inference.fake_provider.formats import (
    ChatFormat,
    CompletionFormat,
    EmbeddingFormat,
    FakeProtocol,
    Frame,
    MessageFormat,
    ResponseFormat,
    TokenCountFormat,
    sse,
)
from inference.fake_provider.http import FakeCall, HttpServer, Reply, Request
from inference.fake_provider.settings import (
    BROKEN_JSON,
    DEFAULT_MODELS,
    ERROR_FAULTS,
    ERROR_IN_200,
    HTML_PAGE,
    HTTP_FAULTS,
    OWNER,
    FakeSettings,
    HttpError,
    check_fault,
)

CONTROL = "/_fake/"
ENDPOINTS: dict[str, FakeProtocol] = {
    "chat/completions": ChatFormat(),
    "completions": CompletionFormat(),
    "embeddings": EmbeddingFormat(),
    "responses": ResponseFormat(),
    "messages": MessageFormat(),
    "messages/count_tokens": TokenCountFormat(),
}
OPENAI = re.compile(r"/(?:openai/)?v1/(.+?)/?")
#: Azure's paths under a deployment, and those of the whole resource.
AZURE = re.compile(r"/openai/deployments/([^/]+)/(chat/completions|completions|embeddings)")
AZURE_PLAIN = re.compile(r"/openai/(responses|models)")
CREATED = 1_700_000_000
EVENT_STREAM = "text/event-stream; charset=utf-8"
#: Most requests kept, so that a long benchmark does not fill the memory; all calls are kept.
KEPT_REQUESTS = 10_000


class FakeUpstream(HttpServer):
    """An OpenAI-compatible provider on a real socket, whose answers and failures are set by FakeSettings.

    Other processes control it over HTTP: GET /_fake/ledger (`?calls=0` for the totals alone), GET /_fake/requests,
    POST /_fake/settings (any settings, `fail_next` as `{"kind": ..., "times": 1}`, and `refuse_ms`), POST /_fake/reset.
    These need no key: never expose the port.

    `requests` has the latest 10,000 requests, `billed` every call to a model with the tokens billed for it, including
    running and refused ones, both in order of arrival. A seed determines the sequence of faults.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0, **settings: Any) -> None:
        super().__init__(host, port)
        self.settings = self._first_settings = FakeSettings().changed(settings)
        self._seed = seed
        self._numbers = count(1)
        self._forget()

    @property
    def base_url(self) -> str:
        """Return the URL for an OpenAI client, ending in /v1."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def requests(self) -> list[Request]:
        """Return the latest 10,000 requests in order."""
        return list(self._requests)

    @property
    def billed(self) -> list[FakeCall]:
        """Return every call to a model with the tokens billed for it, in order, including running calls."""
        return list(self._calls)

    def set(self, **changes: Any) -> None:
        """Change settings from the next call on; raises ValueError for an unknown or invalid setting."""
        self.settings = self.settings.changed(changes)

    def fail_next(self, kind: str, times: int = 1) -> None:
        """Make the next `times` calls to a model fail; `refuse` closes the socket until `listen` or `reset`."""
        if check_fault(kind) == "refuse":
            self.refuse()
        else:
            self._next_faults.extend([kind] * times)

    def reset(self) -> None:
        """Forget calls, requests and faults, and restore the initial settings."""
        self._forget()
        self.listen()

    def totals(self) -> dict[str, int]:
        """Return the number of calls, of running ones, and the sums of prompt, cached and completion tokens."""
        calls = self.billed
        return {
            "calls": len(calls),
            "running": sum(call.ended_at is None for call in calls),
            "prompt_tokens": sum(call.prompt_tokens for call in calls),
            "cached_tokens": sum(call.cached_tokens for call in calls),
            "completion_tokens": sum(call.completion_tokens for call in calls),
        }

    def wait_idle(self, timeout: float = 5.0) -> None:
        """Wait until no call runs; raises TimeoutError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.totals()["running"]:
            if time.monotonic() > end:
                raise TimeoutError(f"the fake provider still runs {self.totals()['running']} calls")
            time.sleep(0.005)

    def answer(self, request: Request) -> Reply:
        """Answer a request like an OpenAI-compatible provider, or obey one to control it."""
        if request.path.startswith(CONTROL):
            return self._control(request)
        self._requests.append(request)
        wanted = self.settings.api_key
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = request.headers.get("api-key") or request.headers.get("x-api-key") or given
        try:
            if wanted is not None and given != wanted:
                raise HttpError(401, "Incorrect API key provided.", code="invalid_api_key")
            return self._route(request)
        except HttpError as refusal:
            return self._refused(refusal)

    def _forget(self) -> None:
        self._calls: list[FakeCall] = []
        self._requests: deque[Request] = deque(maxlen=KEPT_REQUESTS)
        self._next_faults: deque[str] = deque()
        self._random = random.Random(self._seed)
        self.settings = self._first_settings

    def _control(self, request: Request) -> Reply:
        match (request.method, request.path.removeprefix(CONTROL)):
            case ("GET", "ledger"):
                calls = {} if request.query == "calls=0" else {"calls": [asdict(call) for call in self._calls]}
                return Reply.of_json(200, {"totals": self.totals(), **calls})
            case ("GET", "requests"):
                shown = ("method", "path", "headers", "body")
                return Reply.of_json(200, [{name: getattr(each, name) for name in shown} for each in self._requests])
            case ("POST", "reset"):
                self._forget()
                return Reply.of_json(200, {"reset": True})
            case ("POST", "settings"):
                try:
                    changes = dict(request.body)
                    fail, refuse_ms = changes.pop("fail_next", None), changes.pop("refuse_ms", None)
                    self.set(**changes)
                    if fail is not None:
                        if fail["kind"] == "refuse":
                            raise ValueError("refuse would close this port as well: post refuse_ms")
                        self.fail_next(fail["kind"], fail.get("times", 1))
                    if refuse_ms is not None:
                        self._refusing = asyncio.create_task(self.refuse_for(refuse_ms / 1000))
                except (ValueError, TypeError, KeyError) as error:
                    return Reply.of_json(400, {"error": str(error)})
                return Reply.of_json(200, {"set": True})
        return Reply.of_json(404, {"error": "unknown path"})

    def _route(self, request: Request) -> Reply:
        body = request.body
        azure, plain = AZURE.fullmatch(request.path), AZURE_PLAIN.fullmatch(request.path)
        if (azure or plain) and "api-version" not in parse_qs(request.query):
            raise HttpError(404, "Resource not found")
        if azure:
            name, body = azure[2], {**body, "model": unquote(azure[1])} if isinstance(body, dict) else body
        else:
            openai = plain or OPENAI.fullmatch(request.path)
            name = openai[1] if openai else ""
        if name == "models" or name.startswith("models/"):
            return self._models(unquote(name.removeprefix("models").lstrip("/")))
        if name not in ENDPOINTS:
            raise HttpError(404, f"Invalid URL ({request.method} {request.path})")
        if request.method != "POST":
            raise HttpError(405, f"Not allowed to {request.method} on {request.path}.")
        return self._call(request.path, ENDPOINTS[name], body)

    def _models(self, name: str) -> Reply:
        if (kind := self.settings.models_fault) is not None:
            return self._without_answer(kind) or self._refused(HTTP_FAULTS["http_500"])
        self._check_model(name)
        listed = [
            {"id": each, "object": "model", "created": CREATED, "owned_by": OWNER}
            for each in ([name] if name else self.settings.models or DEFAULT_MODELS)
        ]
        return Reply.of_json(200, listed[0] if name else {"object": "list", "data": listed})

    def _check_model(self, name: str) -> None:
        if name and self.settings.models and name not in self.settings.models:
            raise HttpError(404, f"The model `{name}` does not exist.", code="model_not_found")

    def _call(self, path: str, protocol: FakeProtocol, body: Any) -> Reply:
        """Answer a call to a model, or fail it by a fault: the next one queued, or one drawn by chance."""
        fields: Json = body if isinstance(body, dict) else {}
        fault = self._next_faults.popleft() if self._next_faults else None
        if fault is None and (rates := self.settings.faults):
            drawn = self._random.random()
            sums = zip(rates, accumulate(rates.values()), strict=True)
            fault = next((kind for kind, share in sums if drawn < share), None)
        call_id, stream = (
            f"{protocol.prefix}{next(self._numbers):08d}",
            bool(fields.get("stream")) and protocol.generates,
        )
        call = FakeCall(call_id, path, str(fields.get("model", "")), stream, fault)
        self._calls.append(call)
        try:
            reply = self._reply(call, protocol, body)
        except HttpError as refusal:
            call.end("failed")
            reply = self._refused(refusal, protocol)
        reply.call = call
        reply.headers += (("x-request-id", f"req_{call_id}"), ("openai-processing-ms", "1"))
        reply.latency = self.settings.latency_ms / 1000
        return reply

    def _reply(self, call: FakeCall, protocol: FakeProtocol, body: Any) -> Reply:
        settings, fault = self.settings, call.fault or ""
        if (reply := self._without_answer(fault, protocol)) is not None:
            if reply.end == "complete":
                call.end("failed")
            return reply
        if not isinstance(body, dict):
            raise HttpError(400, "We could not parse the JSON body of your request.")
        if not isinstance(body.get("model"), str):
            raise HttpError(400, "you must provide a model parameter", param="model")
        self._check_model(body["model"])
        prompts = protocol.prompts(body)
        answer = compose(call.id, prompts, body, settings, generates=protocol.generates, fault=call.fault)
        if not (fault == "error_first" or (fault == "error_event" and not call.stream)):
            is_billed = not isinstance(protocol, TokenCountFormat)
            if is_billed:
                call.prompt_tokens, call.cached_tokens = answer.prompt_tokens, answer.cached_tokens
                call.cache_write_tokens = answer.cache_write_tokens
        if fault == "http_504":
            return Reply.whole(504, HTTP_FAULTS["http_504"].body, tokens=answer.completion_tokens)
        if call.stream:
            is_broken = fault in ("cut", "stall", "broken_json", *ERROR_FAULTS)
            frames = _broken_stream(fault, protocol, answer) if is_broken else protocol.stream(answer)
            reply = Reply(200, frames, content_type=EVENT_STREAM)
            reply.first_delay, reply.interval = settings.first_token_ms / 1000, settings.chunk_interval_ms / 1000
        else:
            reply = _whole(fault, protocol, answer)
        if fault == "slow":
            reply.slow_down(settings.slow_interval_ms / 1000)
        reply.end = {"cut": "cut", "stall": "silence"}.get(fault, "complete")
        return reply

    def _without_answer(self, fault: str, protocol: FakeProtocol | None = None) -> Reply | None:
        """Return the reply of a fault that needs no answer and bills nothing; None for the others."""
        if fault in HTTP_FAULTS and fault != "http_504":
            return self._refused(HTTP_FAULTS[fault], protocol)
        if fault == "wrong_type":
            return Reply.whole(200, HTML_PAGE, "text/html")
        if fault in ("reset", "hang"):
            return Reply(0, iter(()), end="reset" if fault == "reset" else "silence")
        return None

    def _refused(self, error: HttpError, protocol: FakeProtocol | None = None) -> Reply:
        reply = Reply.whole(error.status, error.body if protocol is None else protocol.refusal(error))
        if error is HTTP_FAULTS["http_429"]:
            reply.headers = (("Retry-After", f"{self.settings.retry_after:g}"),)
        return reply


def _whole(fault: str, protocol: FakeProtocol, answer: Answer) -> Reply:
    """Return the reply with an answer, or with what a fault makes of it."""
    tokens = answer.completion_tokens
    if fault == "broken_json":
        return Reply.whole(200, BROKEN_JSON, tokens=tokens)
    if fault in ERROR_FAULTS:
        reported = tokens // 2 if fault == "error_usage" else None
        return Reply.whole(
            200, json.dumps(protocol.error_body(ERROR_IN_200, answer, reported)).encode(), tokens=reported or 0
        )
    body = json.dumps(protocol.plain(answer)).encode()
    reply = Reply.whole(200, body, tokens=tokens)
    if fault in ("cut", "stall"):
        reply.frames = iter([(body[: len(body) // 2], tokens)])
    return reply


def _broken_stream(fault: str, protocol: FakeProtocol, answer: Answer) -> Iterator[Frame]:
    """Yield the events of an answer up to its middle, or to its beginning, and what a fault sends then."""
    sent = 0
    for frame, tokens in protocol.stream(answer):
        if fault == "error_first" or (tokens and sent >= answer.completion_tokens // 2):
            break
        yield frame, tokens
        sent += tokens
    if fault in ERROR_FAULTS:
        reported = sent if fault == "error_usage" else None
        yield protocol.error_event(protocol.error_body(ERROR_IN_200, answer, reported)), 0
    elif fault == "broken_json":
        yield sse(BROKEN_JSON), answer.completion_tokens - sent
