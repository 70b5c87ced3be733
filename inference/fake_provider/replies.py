"""The fake provider's replies to requests: authentication, endpoints, answers and faults."""

import json
import re
from collections.abc import Callable
from itertools import count
from typing import Any
from urllib.parse import parse_qs, unquote

from inference.fake_provider.answers import Answer, BadRequest, FakeProtocol, Json, compose, half, sse
from inference.fake_provider.chat import CHAT, COMPLETIONS, EMBEDDINGS
from inference.fake_provider.http import Reply, Request
from inference.fake_provider.ledger import Call, Ledger, Received
from inference.fake_provider.responses import RESPONSES
from inference.fake_provider.settings import (
    BROKEN_JSON,
    ERROR_FAULTS,
    HTML_PAGE,
    HTTP_FAULTS,
    MID_STREAM_ERROR,
    OWNER,
    FakeSettings,
    FaultPlan,
    HttpError,
)

SURFACES: dict[str, FakeProtocol] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
    "responses": RESPONSES,
}
_OPENAI = re.compile(r"/(?:openai/)?v1/(.+?)/?")
#: Azure's paths under a deployment, and those of the whole resource.
_AZURE = re.compile(r"/openai/deployments/([^/]+)/(chat/completions|completions|embeddings)")
_AZURE_PLAIN = re.compile(r"/openai/(responses|models)")
_CREATED = 1_700_000_000
_EVENT_STREAM = "text/event-stream; charset=utf-8"


def json_reply(status: int, body: Any) -> Reply:
    """Return a JSON reply."""
    return Reply.whole(status, json.dumps(body).encode())


def error_reply(error: HttpError) -> Reply:
    """Return a reply with OpenAI's error body."""
    return Reply.whole(error.status, error.body())


def _not_found(what: str, code: str | None = None) -> BadRequest:
    return BadRequest(what, code=code, status=404)


class Provider:
    """Answers requests like an OpenAI-compatible provider, without any sockets.

    Every POST to a known endpoint is a call in the ledger, including refused ones (with nothing billed).
    """

    def __init__(self, settings: FakeSettings, plan: FaultPlan, ledger: Ledger) -> None:
        self.settings = settings
        self._plan = plan
        self._ledger = ledger
        self._numbers = count(1)

    def reply(self, request: Request) -> Reply:
        """Answer one request."""
        try:
            body = self._received(request)
            self._authorize(request)
            return self._route(request, body)
        except BadRequest as refusal:
            return error_reply(refusal.error)

    def _received(self, request: Request) -> Any:
        try:
            body = json.loads(request.body) if request.body else None
        except ValueError:
            body = None
        self._ledger.requests.append(Received(request.method, request.path, request.headers, body))
        return body

    def _authorize(self, request: Request) -> None:
        wanted = self.settings.api_key
        given = request.headers.get("api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if wanted is not None and given != wanted:
            raise BadRequest("Incorrect API key provided.", code="invalid_api_key", status=401)

    def _route(self, request: Request, body: Any) -> Reply:
        azure, plain = _AZURE.fullmatch(request.path), _AZURE_PLAIN.fullmatch(request.path)
        if (azure or plain) and "api-version" not in parse_qs(request.query):
            raise _not_found("Resource not found")
        if azure:
            named = {**body, "model": unquote(azure[1])} if isinstance(body, dict) else body
            return self._post(request, azure[2], named)
        openai = plain or _OPENAI.fullmatch(request.path)
        name = openai[1] if openai else ""
        if name == "models" or name.startswith("models/"):
            return self._models(unquote(name.removeprefix("models").lstrip("/")))
        return self._post(request, name, body)

    def _post(self, request: Request, name: str, body: Any) -> Reply:
        protocol = SURFACES.get(name)
        if protocol is None:
            raise _not_found(f"Invalid URL ({request.method} {request.path})")
        if request.method != "POST":
            raise BadRequest(f"Not allowed to {request.method} on {request.path}.", status=405)
        return self._call(request.path, protocol, body if isinstance(body, dict) else {}, valid=isinstance(body, dict))

    def _models(self, name: str) -> Reply:
        if (kind := self.settings.models_fault) is not None:
            return _unbilled_fault(kind, self.settings) or error_reply(HTTP_FAULTS["http_500"])
        if not name:
            return json_reply(200, {"object": "list", "data": [_model(each) for each in self.settings.model_names]})
        self._check_model(name)
        return json_reply(200, _model(name))

    def _check_model(self, name: str) -> None:
        if self.settings.models and name not in self.settings.models:
            raise _not_found(f"The model `{name}` does not exist.", "model_not_found")

    def _call(self, path: str, protocol: FakeProtocol, body: Json, *, valid: bool) -> Reply:
        stream = bool(body.get("stream")) and protocol.stream is not None
        call_id = f"{protocol.prefix}{next(self._numbers):08d}"
        call = Call(call_id, path, str(body.get("model", "")), stream, self._plan.draw(self.settings.faults))
        self._ledger.calls.append(call)
        reply = self._answered(call, protocol, body, valid=valid)
        reply.call = call
        reply.headers += (("x-request-id", f"req_{call_id}"), ("openai-processing-ms", "1"))
        reply.latency = self.settings.latency_ms / 1000
        return reply

    def _answered(self, call: Call, protocol: FakeProtocol, body: Json, *, valid: bool) -> Reply:
        settings = self.settings
        if call.fault is not None and (reply := _unbilled_fault(call.fault, settings)) is not None:
            if reply.end == "complete":
                call.end("failed")
            return reply
        try:
            if not valid:
                raise BadRequest("We could not parse the JSON body of your request.")
            if not isinstance(body.get("model"), str):
                raise BadRequest("you must provide a model parameter", param="model")
            self._check_model(body["model"])
            answer = compose(call.id, protocol, body, settings, call.fault)
        except BadRequest as refusal:
            call.end("failed")
            return error_reply(refusal.error)
        if not (call.fault == "error_first" or (call.fault == "error_event" and not call.stream)):
            call.prompt_tokens, call.cached_tokens = answer.prompt_tokens, answer.cached_tokens
        if call.fault == "http_504":
            return Reply.whole(504, HTTP_FAULTS["http_504"].body(), tokens=answer.completion_tokens)
        return _streamed(call, protocol, answer, settings) if call.stream else _whole(call, protocol, answer, settings)


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": OWNER}


def _unbilled_fault(kind: str, settings: FakeSettings) -> Reply | None:
    """Return the reply of a fault that needs no answer; None for the others."""
    if kind in HTTP_FAULTS and kind != "http_504":
        reply = error_reply(HTTP_FAULTS[kind])
        if kind == "http_429":
            reply.headers = (("Retry-After", f"{settings.retry_after:g}"),)
        return reply
    if kind == "wrong_type":
        return Reply.whole(200, HTML_PAGE, "text/html")
    if kind in ("reset", "hang"):
        return Reply(0, iter(()), end="reset" if kind == "reset" else "silence")
    return None


def _whole(call: Call, protocol: FakeProtocol, answer: Answer, settings: FakeSettings) -> Reply:
    tokens = answer.completion_tokens
    body = json.dumps(protocol.plain(answer)).encode()
    if call.fault == "broken_json":
        body = BROKEN_JSON
    elif call.fault in ERROR_FAULTS:
        tokens = tokens // 2 if call.fault == "error_usage" else 0
        reported = tokens if call.fault == "error_usage" else None
        body = json.dumps(protocol.error_body(MID_STREAM_ERROR, answer, reported)).encode()
    reply = Reply.whole(200, body, tokens=tokens)
    if call.fault in ("cut", "stall"):
        reply.frames = iter([(body[: len(body) // 2], tokens)])
        reply.end = "cut" if call.fault == "cut" else "silence"
    elif call.fault == "slow":
        reply.slowed(settings.slow_interval_ms / 1000)
    return reply


def _streamed(call: Call, protocol: FakeProtocol, answer: Answer, settings: FakeSettings) -> Reply:
    write: Callable[[Answer], Any] = protocol.stream or protocol.plain
    reply = Reply(200, write(answer), content_type=_EVENT_STREAM)
    reply.first_delay = settings.first_token_ms / 1000
    reply.interval = settings.chunk_interval_ms / 1000
    if call.fault == "slow":
        reply.slowed(settings.slow_interval_ms / 1000)
    if call.fault in ("cut", "stall", "broken_json", *ERROR_FAULTS):
        frames = [] if call.fault == "error_first" else list(half(reply.frames, answer.completion_tokens))
        sent = sum(tokens for _, tokens in frames)
        if call.fault in ERROR_FAULTS:
            reported = sent if call.fault == "error_usage" else None
            frames.append((protocol.error_frame(protocol.error_body(MID_STREAM_ERROR, answer, reported)), 0))
        elif call.fault == "broken_json":
            frames.append((sse(BROKEN_JSON), answer.completion_tokens - sent))
        reply.frames = iter(frames)
        reply.end = {"cut": "cut", "stall": "silence"}.get(call.fault, "complete")
    return reply
