"""The OpenAI-compatible endpoints under /v1, and the events that report an error within one of their streams."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import KeyView
from accounts.key_cache import AuthenticatedKey
from accounts.limit_usage import openai_rate_headers
from accounts.limits.types import Admission
from core.errors import ApiError, ModelNotFound, NotFound, UpstreamFailed
from inference.api import validation
from inference.api.base import ModelEndpoint, cache_directives, server_sent
from inference.api.errors import openai_error_body
from inference.api.schema import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    EmbeddingList,
    EmbeddingRequest,
    ModelList,
    ModelObject,
    ResponseObject,
    ResponseRequest,
    model_answer,
)
from inference.api.validation import Check, check_payload
from inference.calls import ModelCall
from inference.catalog import CatalogModel, catalog
from inference.pipeline import answer_call
from inference.protocols.base import Body, UnfitAnswer, WireProtocol, is_count
from inference.protocols.chat import chat_surface, refuse_unbounded
from inference.protocols.completions import completion_surface, embedding_surface
from inference.protocols.content import refuse_items
from inference.protocols.events import EventReader
from inference.protocols.responses import response_surface

#: Header that overrides the tier on whether an answer at any temperature may be cached and shared.
CACHE_SWITCH = "HTTP_X_CACHE_ANSWER"
SWITCHED = {"1": True, "true": True, "0": False, "false": False}


class OpenAIEndpoint(ModelEndpoint):
    """A POST of OpenAI's API. The payload is passed on as it is, apart from what is checked, capped or refused here."""

    protocol: WireProtocol
    checks: Mapping[str, Check]
    required: tuple[str, ...]

    def answer(self, request: Request) -> HttpResponseBase:
        """Check the payload and answer it, as a stream if it asks for one."""
        payload = dict(request.data)
        validation.refuse_misspelt(payload)
        check_payload(payload, self.checks, required=self.required)
        self.refuse(payload)
        is_stream = payload.pop("stream", None) is True
        call = ModelCall(
            endpoint=self.endpoint,
            protocol=self.protocol,
            model=payload.pop("model"),
            payload=payload,
            read=partial(_read, self.protocol, payload),
            shares_answer=self._may_share(request, payload),
            is_stream=is_stream,
            **cache_directives(request),
        )
        if not is_stream:
            return self.respond_plainly(request, call)
        reader = self.protocol.reader
        return self.respond_as_stream(
            request, call, make_reader=lambda _: reader(payload), error_event=error_event(call)
        )

    def _may_share(self, request: Request, payload: Mapping[str, Any]) -> bool:
        """Return whether the answer may be cached and shared.

        That needs temperature 0, unless the caller's header or the tier allows any temperature.
        """
        chosen = SWITCHED.get(str(request.META.get(CACHE_SWITCH, "")).strip().lower())
        any_temperature = self.caller(request).identity.cache_any_temperature if chosen is None else chosen
        return self.protocol.is_cacheable({**payload, "temperature": 0} if any_temperature else payload)

    def refuse(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidRequest for content that can't be passed on, beyond the checks of single parameters."""

    def rate_headers(self, admission: Admission) -> dict[str, str]:
        """Return the rate headers, with OpenAI's names added."""
        return {**super().rate_headers(admission), **openai_rate_headers(admission)}

    def respond_plainly(self, request: Request, call: ModelCall) -> Response:
        """Answer with the provider's body."""
        answer = answer_call(call, self.caller(request))
        return self.respond(answer, answer.content)


class ChatCompletionsView(OpenAIEndpoint):
    """POST /v1/chat/completions."""

    endpoint = "v1.chat.completions"
    required_scope = "chat"
    protocol = chat_surface
    checks = validation.CHAT_CHECKS
    required = ("model", "messages")

    @extend_schema(
        operation_id="v1_chat_completions",
        summary="OpenAI's chat completions, streams included",
        request=ChatCompletionRequest,
        responses=model_answer(ChatCompletion, streams=True),
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Answer in OpenAI's format."""
        return self.answer(request)

    def refuse(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidRequest for content that can't be bounded or that is stored at the provider."""
        refuse_unbounded(payload)


class CompletionsView(OpenAIEndpoint):
    """POST /v1/completions."""

    endpoint = "v1.completions"
    required_scope = "chat"
    protocol = completion_surface
    checks = validation.COMPLETION_CHECKS
    required = ("model", "prompt")

    @extend_schema(
        operation_id="v1_completions",
        summary="OpenAI's completions, streams included",
        request=CompletionRequest,
        responses=model_answer(Completion, streams=True),
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Answer in OpenAI's format."""
        return self.answer(request)


class EmbeddingsView(OpenAIEndpoint):
    """POST /v1/embeddings."""

    endpoint = "v1.embeddings"
    required_scope = "embeddings"
    protocol = embedding_surface
    checks = validation.EMBEDDING_CHECKS
    required = ("model", "input")

    @extend_schema(
        operation_id="v1_embeddings",
        summary="OpenAI's embeddings",
        request=EmbeddingRequest,
        responses=model_answer(EmbeddingList),
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Answer in OpenAI's format."""
        return self.answer(request)


class ResponsesView(OpenAIEndpoint):
    """POST /v1/responses."""

    endpoint = "v1.responses"
    required_scope = "chat"
    protocol = response_surface
    checks = validation.RESPONSE_CHECKS
    required = ("model", "input")

    @extend_schema(
        operation_id="v1_responses",
        summary="OpenAI's responses, streams included, without what would live on at the provider",
        request=ResponseRequest,
        responses=model_answer(ResponseObject, streams=True),
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Answer in OpenAI's format."""
        return self.answer(request)

    def refuse(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidRequest for content that can't be bounded or that is stored at the provider."""
        refuse_items(payload)


class ModelsView(KeyView):
    """GET /v1/models."""

    @extend_schema(operation_id="v1_models", summary="List the models that the key may use", responses=ModelList)
    def get(self, request: Request) -> Response:
        """List the models that the key may use and that have an enabled deployment."""
        return Response({"object": "list", "data": [_shown(model) for model in _listed(request)]})


class ModelView(KeyView):
    """GET /v1/models/{id}."""

    @extend_schema(operation_id="v1_model", summary="See one model", responses=ModelObject)
    def get(self, request: Request, name: str) -> Response:
        """Return a listed model under the requested name or alias, as OpenAI does; raises ModelNotFound."""
        model = catalog.find(name)
        if model is None or not _is_listed(model, _identity(request)):
            raise ModelNotFound(name)
        return Response({**_shown(model), "id": name})


class UnsupportedView(KeyView):
    """Every other path under /v1: files, batches, audio, images."""

    permission_classes = []
    authentication_classes = []
    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Raise NotFound, whatever the method."""
        raise NotFound("This path of OpenAI's API is not supported here.")


def _read(protocol: WireProtocol, payload: Mapping[str, Any], body: Body) -> Body:
    """Return an answer in the form that this caller asks for: it may come from a call with another form."""
    try:
        return protocol.answered(payload, body)
    except UnfitAnswer as error:
        raise UpstreamFailed from error


def _identity(request: Request) -> AuthenticatedKey:
    identity: AuthenticatedKey = request._request.identity  # type: ignore[attr-defined]
    return identity


def _listed(request: Request) -> list[CatalogModel]:
    identity = _identity(request)
    return [model for _, model in sorted(catalog.models().items()) if _is_listed(model, identity)]


def _is_listed(model: CatalogModel, identity: AuthenticatedKey) -> bool:
    """Return whether the key may use a model and its limits allow an enabled deployment."""
    may_be_asked = model.routes_within(identity.limits_for(model.public_name))
    return bool(may_be_asked) and identity.may_use_model(model.public_name)


def _shown(model: CatalogModel) -> dict[str, Any]:
    """Return OpenAI's fields of a model, plus its kind."""
    return {
        "id": model.public_name,
        "object": "model",
        "created": model.created,
        "owned_by": model.routes[0].provider,
        "kind": model.kind,
    }


def error_event(call: ModelCall) -> Callable[[ApiError, EventReader], bytes]:
    """Return a function that writes an error: as the event `response.failed` for responses, otherwise as a chunk."""

    def write(error: ApiError, reader: EventReader) -> bytes:
        body = openai_error_body(error)
        if call.protocol is response_surface:
            return _failed_response(call, reader, body["error"])
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"

    return write


def _failed_response(call: ModelCall, reader: EventReader, error: Body) -> bytes:
    """Return the event that ends a response as failed: the object received so far, under the next sequence number.

    If no event was sent yet, `response.created` comes first, because clients rely on it.
    """
    events = list(reader.events())
    received = [event["response"] for event in events if isinstance(event.get("response"), dict)]
    beginning, number = b"", _next_number(events)
    if not received:
        received = [_new_response(call)]
        beginning, number = _numbered("response.created", 0, received[0]), 1
    items = {
        event["output_index"]: event.get("item")
        for event in events
        if event.get("type") == "response.output_item.done" and is_count(event.get("output_index"))
    }
    provider = reader.error.response if reader.error is not None else {}
    whole = {
        **received[-1],
        "output": [items[index] for index in sorted(items)],
        **provider,
        "status": "failed",
        "error": {name: error[name] for name in ("code", "message", "param")},
    }
    return beginning + _numbered("response.failed", number, whole)


def _next_number(events: list[Body]) -> int:
    """Return the next sequence number; the number of events if the provider's events have none."""
    numbers = [event["sequence_number"] for event in events if is_count(event.get("sequence_number"))]
    return max(numbers) + 1 if numbers else len(events)


def _numbered(kind: str, number: int, response: Body) -> bytes:
    return server_sent(kind, {"type": kind, "sequence_number": number, "response": response})


def _new_response(call: ModelCall) -> Body:
    """Build the object of a response that has just begun, from the request."""
    asked = call.payload
    defaults: dict[str, Any] = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": call.model,
        "output": [],
        "usage": None,
        "store": False,
        **{name: default if asked.get(name) is None else asked[name] for name, default in defaults.items()},
    }
