"""What OpenAPI tells of the model endpoints beyond their bodies: examples, and the headers that go in and out."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework.serializers import Serializer

CHAT_EXAMPLES = [
    OpenApiExample("A question", value={"message": "What is the capital of France?"}, request_only=True),
    OpenApiExample(
        "A varied answer of a named model",
        value={"message": "Name a colour.", "temperature": 1.2, "model": "gpt-4o-mini"},
        request_only=True,
    ),
    OpenApiExample(
        "An answer",
        value={
            "response": "The capital of France is Paris.",
            "tokens_used": 36,
            "cached": False,
            "request_id": "01a20e31-7679-7bd8-a6f1-34a31d762537",
        },
        response_only=True,
        status_codes=["200"],
    ),
]
SUMMARIZE_EXAMPLES = [
    OpenApiExample(
        "A short summary",
        value={
            "text": "In 1885 the safety bicycle, with a chain drive and equal wheels, made cycling safe for everyone "
            "and became the pattern of all bicycles that followed.",
            "length": "short",
        },
        request_only=True,
    ),
    OpenApiExample(
        "A summary",
        value={
            "summary": "The safety bicycle of 1885 set the pattern for all that followed.",
            "original_length": 144,
            "summary_length": 65,
            "cached": False,
            "request_id": "01a20e31-926a-709f-83a9-7916dcefc6f1",
        },
        response_only=True,
        status_codes=["200"],
    ),
]
REQUEST_HEADERS = [
    OpenApiParameter(
        "Cache-Control",
        str,
        OpenApiParameter.HEADER,
        description="`no-cache`: a fresh answer; `no-store`: none is kept.",
    ),
    OpenApiParameter(
        "X-Request-ID", str, OpenApiParameter.HEADER, description="A label of your own, up to 64 of `[A-Za-z0-9._-]`."
    ),
]
#: Headers of a model's answer, by name: what each tells.
ANSWER_HEADERS = {
    "X-Cache": "HIT, MISS, COALESCED or BYPASS.",
    "X-Model": "The model that answered.",
    "X-Fallback": "Whether another deployment than the first answered: true or false.",
    "X-Cost-USD": "What the call cost, in US dollars; 0 for a hit. A stream has it only where it costs nothing.",
    "X-RateLimit-Limit": "Requests a minute.",
    "X-RateLimit-Remaining": "What is left of them.",
    "X-RateLimit-Reset": "When all are there again, in seconds since the epoch.",
    "X-Request-ID": "The request's id.",
    "X-Process-Time": "Seconds that the answer took.",
}


def model_answer(serializer: type[Serializer[Any]], *, streams: bool = False) -> dict[tuple[int, str], OpenApiResponse]:
    """Describe the answer of a model endpoint, and the stream that one can ask for instead."""
    told = "; ".join(f"`{name}`: {text}" for name, text in ANSWER_HEADERS.items())
    described = {(200, "application/json"): OpenApiResponse(serializer, description=f"The answer. Headers: {told}")}
    if streams:
        described[200, "text/event-stream"] = OpenApiResponse(OpenApiTypes.STR, description="Server-sent events.")
    return described
