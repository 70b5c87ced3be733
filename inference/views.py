"""The model endpoints of the platform's own: /chat and /summarize."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.exceptions import ApiError
from accounts.refusals import dollars
from accounts.views import KeyView
from inference import prompts
from inference.accounting import Bill
from inference.calls import Answer, Caller, ModelCall
from inference.documentation import CHAT_EXAMPLES, REQUEST_HEADERS, SUMMARIZE_EXAMPLES, model_answer
from inference.parsers import is_chunked
from inference.pipeline import answer_call
from inference.serializers import ChatAnswer, ChatRequest, SummarizeAnswer, SummarizeRequest
from inference.surfaces.chat import answer_text, chat_surface
from inference.throttles import RequestRateThrottle
from monitoring.trace import Trace


class ModelEndpoint(KeyView):
    """A POST that asks a model: counted, recorded once whatever becomes of it, and told about in headers."""

    throttle_classes = [RequestRateThrottle]
    endpoint: str

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Hand a chunked body to the parser: DRF takes a body without a length for none."""
        wrapped = super().initialize_request(request, *args, **kwargs)
        if is_chunked(request):
            wrapped._stream = request  # type: ignore[assignment]
        return wrapped

    def caller(self, request: Request) -> Caller:
        """Return who asks, in which request."""
        plain = request._request
        return Caller(plain.identity, plain.trace, plain.admission)  # type: ignore[attr-defined]

    def respond(self, answer: Answer, body: dict[str, Any]) -> Response:
        """Make the answer with the headers that tell where it came from and what it cost."""
        headers = {
            "X-Cache": answer.cache.upper(),
            "X-Model": answer.model,
            "X-Cost-USD": dollars(answer.cost),
            "X-Fallback": "true" if answer.is_fallback else "false",
        }
        return Response(body, headers=headers)

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        """Record what the pipeline did not, and say what the platform itself took, by stage."""
        response = super().finalize_response(request, response, *args, **kwargs)
        trace: Trace = request._request.trace  # type: ignore[attr-defined]
        if getattr(request._request, "admission", None) is not None and not trace.is_recorded:
            self._record_failure(request, response)
        response["Server-Timing"] = ", ".join(f"{name};dur={spent:.2f}" for name, spent in trace.stages.items())
        return response

    def _record_failure(self, request: Request, response: Response) -> None:
        error: ApiError | None = getattr(request._request, "api_error", None)
        bill = Bill(self.caller(request), self.endpoint)
        bill.emit(status=response.status_code, error_code=error.error_code if error else "")


def cache_directives(request: Request) -> dict[str, bool]:
    """Read the request's Cache-Control: `no-cache` doesn't read the cache, `no-store` neither reads nor writes it."""
    directives = {part.strip().lower() for part in str(request.META.get("HTTP_CACHE_CONTROL", "")).split(",")}
    no_store = "no-store" in directives
    return {"reads_cache": not no_store and "no-cache" not in directives, "writes_cache": not no_store}


class ChatView(ModelEndpoint):
    """POST /chat."""

    endpoint = "chat"
    required_scope = "chat"

    @extend_schema(
        operation_id="chat",
        summary="Ask a model one question",
        description="The same question again is answered from the cache of your account, and costs nothing.",
        request=ChatRequest,
        responses=model_answer(ChatAnswer),
        examples=CHAT_EXAMPLES,
        parameters=REQUEST_HEADERS,
    )
    def post(self, request: Request) -> Response:
        """Ask a model one question."""
        body = ChatRequest(data=request.data)
        body.is_valid(raise_exception=True)
        asked = body.validated_data
        payload = {"messages": prompts.chat_messages(asked["message"]), "temperature": asked["temperature"]}
        caller = self.caller(request)
        call = ModelCall(
            self.endpoint, chat_surface, asked.get("model"), payload, answer_text, **cache_directives(request)
        )
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
        body = SummarizeRequest(data=request.data)
        body.is_valid(raise_exception=True)
        asked = body.validated_data
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
        length = asked["length"]
        payload = {
            "messages": prompts.summary_messages(asked["text"], length),
            "temperature": prompts.SUMMARY_TEMPERATURE,
        }
        return ModelCall(
            self.endpoint, chat_surface, asked.get("model"), payload, answer_text, **cache_directives(request)
        )
