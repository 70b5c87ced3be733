"""The model endpoints of the platform's own: /chat and /summarize."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from inference import prompts
from inference.calls import ModelCall
from inference.catalog import catalog
from inference.documentation import CHAT_EXAMPLES, REQUEST_HEADERS, SUMMARIZE_EXAMPLES, model_answer
from inference.endpoints import ModelEndpoint, cache_directives
from inference.event_stream import EVENT_STREAM, DeltaReader, accepts_events, chat_error_event
from inference.pipeline import answer_call
from inference.serializers import ChatAnswer, ChatRequest, SummarizeAnswer, SummarizeRequest
from inference.surfaces.chat import answer_text, chat_surface
from inference.upstream import local_model


class ChatView(ModelEndpoint):
    """POST /chat."""

    endpoint = "chat"
    required_scope = "chat"

    @extend_schema(
        operation_id="chat",
        summary="Ask a model one question",
        description="The same question again is answered from the cache of your account, and costs nothing.",
        request=ChatRequest,
        responses=model_answer(ChatAnswer, streams=True),
        examples=CHAT_EXAMPLES,
        parameters=REQUEST_HEADERS,
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Ask a model one question, and stream the answer to one who wants that."""
        asked = ChatRequest.validated(request.data)
        is_stream = asked["stream"] or accepts_events(request)
        is_small = "temperature" not in request.data and _is_local(asked.get("model"))
        temperature = local_model.TEMPERATURE if is_small else asked["temperature"]
        payload = {"messages": prompts.chat_messages(asked["message"]), "temperature": temperature}
        call = ModelCall(
            endpoint=self.endpoint,
            surface=chat_surface,
            model=asked.get("model"),
            payload=payload,
            read=answer_text,
            is_stream=is_stream,
            **cache_directives(request),
        )
        return self._stream(request, call) if is_stream else self._answer(request, call)

    def answer_form(self, request: Request) -> str:
        """Tell streams that Accept asks for from plain answers."""
        return EVENT_STREAM if accepts_events(request) else ""

    def _answer(self, request: Request, call: ModelCall) -> Response:
        caller = self.caller(request)
        answer = answer_call(call, caller)
        return self.respond(
            answer,
            {
                "response": answer.content,
                "tokens_used": answer.tokens,
                "cached": answer.is_cached,
                "request_id": caller.trace.label,
            },
        )

    def _stream(self, request: Request, call: ModelCall) -> HttpResponseBase:
        caller = self.caller(request)

        def make_reader(is_cached: bool) -> DeltaReader:
            return DeltaReader(caller, call.payload, model=call.model or "", is_cached=is_cached)

        return self.respond_as_stream(request, call, make_reader=make_reader, error_event=chat_error_event(caller))


class SummarizeView(ModelEndpoint):
    """POST /summarize."""

    endpoint = "summarize"
    required_scope = "summarize"

    @extend_schema(
        operation_id="summarize",
        summary="Summarize a text in so many sentences",
        description="short, medium and long are 1-2, 3-4 and 5-6 sentences.",
        request=SummarizeRequest,
        responses=model_answer(SummarizeAnswer),
        examples=SUMMARIZE_EXAMPLES,
        parameters=REQUEST_HEADERS,
    )
    def post(self, request: Request) -> Response:
        """Summarize a text in so many sentences."""
        asked = SummarizeRequest.validated(request.data)
        caller = self.caller(request)
        answer = answer_call(self._call(asked, request), caller)
        summary = answer.content.strip()
        return self.respond(
            answer,
            {
                "summary": summary,
                "original_length": len(asked["text"]),
                "summary_length": len(summary),
                "cached": answer.is_cached,
                "request_id": caller.trace.label,
            },
        )

    def _call(self, asked: dict[str, Any], request: Request) -> ModelCall:
        text, length = asked["text"], asked["length"]
        payload = {
            "messages": prompts.summary_messages(text, length),
            "temperature": prompts.SUMMARY_TEMPERATURE,
        }
        if _is_local(asked.get("model")):
            payload |= local_model.summary_options(text, length)
        return ModelCall(
            endpoint=self.endpoint,
            surface=chat_surface,
            model=asked.get("model"),
            payload=payload,
            read=answer_text,
            **cache_directives(request),
        )


def _is_local(name: str | None) -> bool:
    """Return whether a model, or the default where none is named, is the local one."""
    model = catalog.default() if name is None else catalog.find(name)
    return model is not None and model.public_name == local_model.MODEL_NAME
