"""Bodies of /v1 as OpenAPI tells them: what the platform looks at; OpenAI's own reference has the rest."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from inference.models import Model
from inference.openai.parameters import MOST_ANSWERS, MOST_DIMENSIONS, MOST_OUTPUT

PASSED_ON = (
    "Other parameters are passed on as they are, apart from those by which a call could use more than is set aside for "
    "it: they are refused with `unsupported_parameter`."
)


TEXT = {"type": "string", "minLength": 1}
TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}


def _text_or_list(*items: dict[str, Any]) -> dict[str, Any]:
    """Make the schema of a text, or of a list of one kind of items."""
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
    """What the endpoints that generate text share."""

    model = serializers.CharField(help_text="A model by its public name, as in /v1/models.")
    stream = serializers.BooleanField(required=False, help_text="Answer as server-sent events.")
    temperature = serializers.FloatField(required=False, min_value=0, max_value=2)
    top_p = serializers.FloatField(required=False, min_value=0, max_value=1)


class ChatCompletionRequest(StreamedRequest):
    __doc__ = f"What POST /v1/chat/completions takes. {PASSED_ON}"

    messages = MessageBody(many=True, allow_empty=False)
    n = serializers.IntegerField(required=False, min_value=1, max_value=MOST_ANSWERS)
    max_completion_tokens = serializers.IntegerField(required=False, min_value=1, max_value=MOST_OUTPUT)
    tools = serializers.ListField(child=serializers.DictField(), required=False)


class CompletionRequest(StreamedRequest):
    __doc__ = f"What POST /v1/completions takes. {PASSED_ON}"

    prompt = Prompt(help_text="A text, a list of texts, of tokens, or of lists of tokens.")
    n = serializers.IntegerField(required=False, min_value=1, max_value=MOST_ANSWERS)
    best_of = serializers.IntegerField(required=False, min_value=0, max_value=MOST_ANSWERS)
    max_tokens = serializers.IntegerField(required=False, min_value=0, max_value=MOST_OUTPUT)


class EmbeddingRequest(serializers.Serializer[Any]):
    __doc__ = f"What POST /v1/embeddings takes. {PASSED_ON}"

    model = serializers.CharField()
    input = Prompt(help_text="A text, a list of texts, of tokens, or of lists of tokens.")
    encoding_format = serializers.ChoiceField(
        choices=["float", "base64"], required=False, help_text="base64: little-endian float32. Default: float."
    )
    dimensions = serializers.IntegerField(
        required=False, min_value=1, max_value=MOST_DIMENSIONS, help_text="The length of each vector."
    )


class ResponseRequest(StreamedRequest):
    __doc__ = f"What POST /v1/responses takes. {PASSED_ON}"

    input = Items(help_text="A text, or a list of items.")
    instructions = serializers.CharField(required=False, allow_blank=True)
    max_output_tokens = serializers.IntegerField(required=False, min_value=1, max_value=MOST_OUTPUT)


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


class ModelObject(serializers.Serializer[Any]):
    """A model that the key may use."""

    id = serializers.CharField()
    object = serializers.CharField()
    created = serializers.IntegerField()
    owned_by = serializers.CharField(help_text="The provider that is asked first.")
    kind = serializers.ChoiceField(
        choices=Model.Kind.choices, help_text="`embedding` for /v1/embeddings, `chat` for every other endpoint."
    )


class ModelList(serializers.Serializer[Any]):
    """The models that the key may use."""

    object = serializers.CharField()
    data = ModelObject(many=True)  # type: ignore[assignment]
