"""The OpenAPI description of the model endpoints: examples, headers, and the bodies of /v1.

The bodies describe the parameters that the platform reads; OpenAI's own reference has the rest.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema_field
from rest_framework import serializers
from rest_framework.serializers import Serializer

from inference.models import Model
from inference.protocols.parameters import MOST_ANSWERS, MOST_DIMENSIONS, MOST_OUTPUT

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
        description="`no-cache`: a fresh answer, which is stored; `no-store`: one that is not.",
    ),
    OpenApiParameter(
        "X-Request-ID", str, OpenApiParameter.HEADER, description="A label of your own, up to 64 of `[A-Za-z0-9._-]`."
    ),
]
#: Headers of a model's answer and their meanings.
ANSWER_HEADERS = {
    "X-Cache": "HIT, MISS, COALESCED or BYPASS.",
    "X-Model": "The model that answered.",
    "X-Fallback": "Whether another deployment than the first answered: true or false.",
    "X-Cost-USD": "The cost of the call in US dollars; 0 for a hit. A stream has it only if it costs nothing.",
    "X-RateLimit-Limit": "Requests a minute.",
    "X-RateLimit-Remaining": "Requests left.",
    "X-RateLimit-Reset": "When all requests are available again, in seconds since the epoch.",
    "X-Request-ID": "The request's id.",
    "X-Process-Time": "Duration of the request in seconds.",
}


def model_answer(serializer: type[Serializer[Any]], *, streams: bool = False) -> dict[tuple[int, str], OpenApiResponse]:
    """Return the OpenAPI responses of a model endpoint: JSON and, if it can stream, server-sent events."""
    headers = "; ".join(f"`{name}`: {text}" for name, text in ANSWER_HEADERS.items())
    described = {(200, "application/json"): OpenApiResponse(serializer, description=f"The answer. Headers: {headers}")}
    if streams:
        described[200, "text/event-stream"] = OpenApiResponse(OpenApiTypes.STR, description="Server-sent events.")
    return described


PASSED_ON = (
    "Other parameters are passed on as they are, apart from those by which a call could use more than is set aside for "
    "it: they are refused with `unsupported_parameter`."
)


TEXT = {"type": "string", "minLength": 1}
TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}


def _text_or_list(*items: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a text, or of a list of one kind of items."""
    return {"anyOf": [TEXT, *({"type": "array", "minItems": 1, "items": each} for each in items)]}


@extend_schema_field(_text_or_list(TEXT, TOKENS["items"], TOKENS))  # type: ignore[arg-type]
class Prompt(serializers.JSONField):
    """A text, a list of texts, a list of tokens, or a list of those."""


@extend_schema_field(_text_or_list({"type": "object"}))
class Items(serializers.JSONField):
    """A text, or a list of items."""


class MessageBody(serializers.Serializer[Any]):
    """A message of a conversation."""

    role = serializers.CharField(help_text="system, developer, user, assistant or tool.")
    content = serializers.JSONField(required=False, allow_null=True, help_text="A text, or a list of parts.")


class StreamedRequest(serializers.Serializer[Any]):
    """Parameters that all endpoints that generate text share."""

    model = serializers.CharField(help_text="A model by its public name, as in /v1/models.")
    stream = serializers.BooleanField(required=False, help_text="Answer as server-sent events.")
    temperature = serializers.FloatField(required=False, min_value=0, max_value=2)
    top_p = serializers.FloatField(required=False, min_value=0, max_value=1)


class ChatCompletionRequest(StreamedRequest):
    __doc__ = f"The request body of POST /v1/chat/completions. {PASSED_ON}"

    messages = MessageBody(many=True, allow_empty=False)
    n = serializers.IntegerField(required=False, min_value=1, max_value=MOST_ANSWERS)
    max_completion_tokens = serializers.IntegerField(required=False, min_value=1, max_value=MOST_OUTPUT)
    tools = serializers.ListField(child=serializers.DictField(), required=False)


class CompletionRequest(StreamedRequest):
    __doc__ = f"The request body of POST /v1/completions. {PASSED_ON}"

    prompt = Prompt(help_text="A text, a list of texts, of tokens, or of lists of tokens.")
    n = serializers.IntegerField(required=False, min_value=1, max_value=MOST_ANSWERS)
    best_of = serializers.IntegerField(required=False, min_value=0, max_value=MOST_ANSWERS)
    max_tokens = serializers.IntegerField(required=False, min_value=0, max_value=MOST_OUTPUT)


class EmbeddingRequest(serializers.Serializer[Any]):
    __doc__ = f"The request body of POST /v1/embeddings. {PASSED_ON}"

    model = serializers.CharField()
    input = Prompt(help_text="A text, a list of texts, of tokens, or of lists of tokens.")
    encoding_format = serializers.ChoiceField(
        choices=["float", "base64"], required=False, help_text="base64: little-endian float32. Default: float."
    )
    dimensions = serializers.IntegerField(
        required=False, min_value=1, max_value=MOST_DIMENSIONS, help_text="The length of each vector."
    )


class ResponseRequest(StreamedRequest):
    __doc__ = f"The request body of POST /v1/responses. {PASSED_ON}"

    input = Items(help_text="A text, or a list of items.")
    instructions = serializers.CharField(required=False, allow_blank=True)
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=MOST_OUTPUT)


class TokenCountRequest(serializers.Serializer[Any]):
    """The request body of POST /v1/messages/count_tokens."""

    model = serializers.CharField(help_text="A model by its public name, as in /v1/models.")
    messages = MessageBody(many=True, allow_empty=False)
    system = serializers.JSONField(required=False, help_text="A text, or a list of blocks.")
    tools = serializers.ListField(child=serializers.DictField(), required=False)


class MessagesRequest(TokenCountRequest):
    __doc__ = f"The request body of POST /v1/messages. {PASSED_ON}"

    max_tokens = serializers.IntegerField(min_value=1, max_value=MOST_OUTPUT)
    stream = serializers.BooleanField(required=False, help_text="Answer as server-sent events.")
    temperature = serializers.FloatField(required=False, min_value=0, max_value=1)
    top_p = serializers.FloatField(required=False, min_value=0, max_value=1)


class TokenCount(serializers.Serializer[Any]):
    """The tokens of a prompt."""

    input_tokens = serializers.IntegerField()


class MessageObject(serializers.Serializer[Any]):
    """A message, as a provider like Anthropic answered it, or translated from a chat completion."""

    id = serializers.CharField()
    type = serializers.CharField()
    role = serializers.CharField()
    model = serializers.CharField()
    content = serializers.ListField(child=serializers.DictField())
    stop_reason = serializers.CharField(allow_null=True)
    usage = serializers.DictField()


class UsageBody(serializers.Serializer[Any]):
    """Tokens that a call used."""

    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField(required=False)
    total_tokens = serializers.IntegerField()


class ChatCompletion(serializers.Serializer[Any]):
    """A chat completion, as the provider answered it."""

    id = serializers.CharField()
    object = serializers.CharField()
    created = serializers.IntegerField()
    model = serializers.CharField()
    choices = serializers.ListField(child=serializers.DictField())
    usage = UsageBody(required=False)


class Completion(ChatCompletion):
    """A completion, as the provider answered it."""


class EmbeddingList(serializers.Serializer[Any]):
    """Embeddings, as the provider answered them."""

    object = serializers.CharField()
    model = serializers.CharField()
    data = serializers.ListField(child=serializers.DictField())  # type: ignore[assignment]  # a field, not the property
    usage = UsageBody(required=False)


class ResponseObject(serializers.Serializer[Any]):
    """A response, as the provider answered it."""

    id = serializers.CharField()
    object = serializers.CharField()
    status = serializers.CharField()
    model = serializers.CharField()
    output = serializers.ListField(child=serializers.DictField())


class ModelPrice(serializers.Serializer[Any]):
    """US dollars per million tokens, for each call, and for each web search, as texts with nine decimals."""

    input_per_million = serializers.CharField()
    cached_input_per_million = serializers.CharField()
    cache_write_per_million = serializers.CharField()
    cache_write_1h_per_million = serializers.CharField()
    output_per_million = serializers.CharField()
    reasoning_per_million = serializers.CharField()
    per_request = serializers.CharField()
    per_search = serializers.CharField(allow_null=True, help_text="null: the provider may not search.")


class LongPromptPrice(ModelPrice):
    """The prices of calls whose prompt is longer than `above_tokens`."""

    above_tokens = serializers.IntegerField()


class ModelPrices(ModelPrice):
    """The prices of a model."""

    long_prompts = LongPromptPrice(many=True, help_text="The longest first; the first that fits holds.")


class ModelObject(serializers.Serializer[Any]):
    """A model that the key may use."""

    id = serializers.CharField()
    object = serializers.CharField()
    created = serializers.IntegerField()
    owned_by = serializers.CharField(help_text="The provider that is asked first.")
    kind = serializers.ChoiceField(
        choices=Model.Kind.choices, help_text="`embedding` for /v1/embeddings, `chat` for every other endpoint."
    )
    aliases = serializers.ListField(child=serializers.CharField(), help_text="Other names that requests may use.")
    context_size = serializers.IntegerField(help_text="Tokens of prompt and answer together.")
    price = ModelPrices(
        allow_null=True,
        help_text="At the provider that is asked first; another may cost more or less. null: unknown.",
    )


class ModelList(serializers.Serializer[Any]):
    """The models that the key may use."""

    object = serializers.CharField()
    data = ModelObject(many=True)  # type: ignore[assignment]
