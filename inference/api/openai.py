"""The OpenAI-compatible endpoints under /v1."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache, partial
from itertools import chain
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import KeyView
from accounts.key_cache import AuthenticatedKey
from accounts.limit_usage import openai_rate_headers
from accounts.limits.types import Admission
from core.errors import ApiError, ModelNotFound, NotFound, UpstreamFailed
from core.money import dollars
from inference.api.base import ModelEndpoint
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
from inference.catalog import CatalogModel, catalog
from inference.pipeline import answer
from inference.prices import Rates
from inference.protocols.base import Body, Payload, UnfitAnswer, WireProtocol
from inference.protocols.chat import chat_protocol, completion_protocol
from inference.protocols.embeddings import embedding_protocol
from inference.protocols.messages import messages_protocol
from inference.protocols.parameters import UNCACHEABLE, refuse_misspelt
from inference.protocols.responses import response_protocol

#: Header that overrides the tier on whether an answer at any temperature may be cached and shared.
CACHE_SWITCH = "HTTP_X_CACHE_ANSWER"
SWITCHED = {"1": True, "true": True, "0": False, "false": False}


#: The parts of a call that have prices by tokens.
PRICED = ("input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning")


class OpenAIEndpoint(ModelEndpoint):
    """A POST of OpenAI's API. The payload is passed on, apart from what its protocol checks, caps or refuses."""

    protocol: WireProtocol

    def post(self, request: Request) -> HttpResponseBase:
        """Answer in OpenAI's format, as a stream if the payload asks for one."""
        payload, protocol = dict(request.data), self.protocol
        refuse_misspelt(payload, checked_names())
        protocol.check(payload)
        is_stream, model = payload.pop("stream", None) is True, payload.pop("model")
        # Answers at temperature 0 are shared, and those at any temperature if the caller's header or the tier says so.
        chosen = SWITCHED.get(str(request.META.get(CACHE_SWITCH, "")).strip().lower())
        any_temperature = self.identity.cache_any_temperature if chosen is None else chosen
        shares = protocol.is_cacheable({**payload, "temperature": 0} if any_temperature else payload)
        read = partial(answer_for, protocol, payload)
        self.call.choose(protocol, model)
        self.call.headers = self.provider_headers(request)
        call = self.call.ask(payload, read=read, shares_answer=shares, is_stream=is_stream)
        if not is_stream:
            return self.respond(call, answer(call))
        return self.respond_as_stream(
            request,
            call,
            make_reader=lambda _: protocol.reader(payload),
            error_event=lambda error, reader: protocol.error_event(payload, model, reader, self.error_body(error)),
        )

    def provider_headers(self, request: Request) -> dict[str, str]:
        """Return the headers of the request that are passed on to a provider of the same format."""
        return {}

    def error_body(self, error: ApiError) -> Body:
        """Return an error in the endpoint's shape."""
        return openai_error_body(error)

    def rate_headers(self, admission: Admission) -> dict[str, str]:
        """Return the rate headers, with OpenAI's names added."""
        return {**super().rate_headers(admission), **openai_rate_headers(admission)}


def described(operation_id: str, summary: str, request: Any, answer: Any, *, streams: bool = True) -> Any:
    """Describe the POST of an endpoint in the OpenAPI schema."""
    responses = model_answer(answer, streams=streams)
    schema = extend_schema(operation_id=operation_id, summary=summary, request=request, responses=responses)
    return extend_schema_view(post=schema)


@described("v1_chat_completions", "OpenAI's chat completions, streams included", ChatCompletionRequest, ChatCompletion)
class ChatCompletionsView(OpenAIEndpoint):
    """POST /v1/chat/completions."""

    endpoint = "v1.chat.completions"
    required_scope = "chat"
    protocol = chat_protocol


@described("v1_completions", "OpenAI's completions, streams included", CompletionRequest, Completion)
class CompletionsView(OpenAIEndpoint):
    """POST /v1/completions."""

    endpoint = "v1.completions"
    required_scope = "chat"
    protocol = completion_protocol


@described("v1_embeddings", "OpenAI's embeddings", EmbeddingRequest, EmbeddingList, streams=False)
class EmbeddingsView(OpenAIEndpoint):
    """POST /v1/embeddings."""

    endpoint = "v1.embeddings"
    required_scope = "embeddings"
    protocol = embedding_protocol


@described(
    "v1_responses",
    "OpenAI's responses, streams included; nothing is stored at the provider",
    ResponseRequest,
    ResponseObject,
)
class ResponsesView(OpenAIEndpoint):
    """POST /v1/responses."""

    endpoint = "v1.responses"
    required_scope = "chat"
    protocol = response_protocol


@cache
def checked_names() -> frozenset[str]:
    """Return the names of all parameters that the platform looks at, on whichever endpoint."""
    protocols = (chat_protocol, completion_protocol, embedding_protocol, response_protocol, messages_protocol)
    return frozenset(chain(UNCACHEABLE, *(protocol.checks for protocol in protocols)))


class ModelsView(KeyView):
    """GET /v1/models."""

    @extend_schema(operation_id="v1_models", summary="List the models that the key may use", responses=ModelList)
    def get(self, request: Request) -> Response:
        """List the models that the key may use and that have an enabled deployment."""
        models = [model for _, model in sorted(catalog.models().items()) if _is_listed(model, self.identity)]
        if is_anthropic(request):
            listed = [_shown_by_anthropic(model) for model in models if model.kind == messages_protocol.kind]
            ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {}
            return Response({"data": listed, "has_more": False, "first_id": None, "last_id": None, **ends})
        return Response({"object": "list", "data": list(map(_shown, models))})


class ModelView(KeyView):
    """GET /v1/models/{id}."""

    @extend_schema(operation_id="v1_model", summary="See one model", responses=ModelObject)
    def get(self, request: Request, name: str) -> Response:
        """Return a listed model under the requested name or alias, as OpenAI does; raises ModelNotFound."""
        model = catalog.find(name)
        if model is None or not _is_listed(model, self.identity):
            raise ModelNotFound(name)
        shown = _shown_by_anthropic if is_anthropic(request) else _shown
        return Response({**shown(model), "id": name})


class UnsupportedView(KeyView):
    """Every other path under /v1: files, batches, audio, images."""

    permission_classes = []
    authentication_classes = []
    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Raise NotFound, whatever the method."""
        raise NotFound("This path of OpenAI's API is not supported here.")


def answer_for(protocol: WireProtocol, payload: Payload, body: Body) -> Body:
    """Return an answer in the form that this caller asks for: it may come from a call with another form."""
    try:
        return protocol.answered(payload, body)
    except UnfitAnswer as error:
        raise UpstreamFailed from error


def is_anthropic(request: Request) -> bool:
    """Return whether a request is of a client of Anthropic's API, all of which send its version."""
    return "HTTP_ANTHROPIC_VERSION" in request.META


def _shown_by_anthropic(model: CatalogModel) -> dict[str, Any]:
    """Return Anthropic's fields of a model."""
    created = f"{datetime.fromtimestamp(model.created, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "type": "model",
        "id": model.public_name,
        "display_name": model.public_name,
        "created_at": created,
        "max_input_tokens": model.context_size,
    }


def _is_listed(model: CatalogModel, identity: AuthenticatedKey) -> bool:
    """Return whether the key may use a model and its limits allow an enabled deployment."""
    may_be_asked = model.routes_within(identity.limits_for(model.public_name))
    return bool(may_be_asked) and identity.may_use_model(model.public_name)


def _prices(rates: Rates) -> dict[str, str | None]:
    """Return the prices of all prompts, or of longer ones, in US dollars."""
    prices: dict[str, str | None] = {f"{part}_per_million": dollars(getattr(rates, part)) for part in PRICED}
    return prices | {
        "per_request": dollars(rates.request),
        "per_search": None if rates.search is None else dollars(rates.search),
    }


def _shown(model: CatalogModel) -> dict[str, Any]:
    """Return OpenAI's fields of a model, plus its kind, other names, context and price."""
    rates = model.routes[0].rates
    return {
        "id": model.public_name,
        "object": "model",
        "created": model.created,
        "owned_by": model.routes[0].provider,
        "kind": model.kind,
        "aliases": list(model.aliases),
        "context_size": model.context_size,
        "price": rates
        and {
            **_prices(rates),
            "long_prompts": [{"above_tokens": above, **_prices(each)} for above, each in rates.steps],
        },
    }
