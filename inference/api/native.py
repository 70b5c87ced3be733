"""The platform's native model endpoints, /chat and /summarize: request and response bodies, and views."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.serializers import StrictSerializer
from inference import prompts
from inference.api.base import EVENT_STREAM, ModelEndpoint, accepts_events
from inference.api.schema import CHAT_EXAMPLES, REQUEST_HEADERS, SUMMARIZE_EXAMPLES, model_answer
from inference.call import Call
from inference.pipeline import answer
from inference.prompts import SENTENCES
from inference.protocols.base import Body, Payload, choices_in
from inference.protocols.chat import ChunkReader, answer_text, chat_protocol, usable_text
from inference.protocols.events import server_sent
from inference.upstream import local_model

MODEL_NAME_LENGTH = 100


class StrictCharField(serializers.CharField):
    """A text, unchanged: numbers are refused, white space is not trimmed, and a blank text is refused."""

    default_error_messages = {"invalid": "Must be a text."}

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def to_internal_value(self, data: Any) -> str:
        """Return the text; fails for another type or a blank text."""
        if not isinstance(data, str):
            self.fail("invalid")
        if not data.strip() and not self.allow_blank:
            self.fail("blank")
        return str(super().to_internal_value(data))


class StrictFloatField(serializers.FloatField):
    """A finite JSON number: numeric texts and booleans are refused."""

    default_error_messages = {"invalid": "Must be a number."}

    def to_internal_value(self, data: Any) -> float:
        """Return the number; fails for another type or a number that is not finite."""
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        try:
            number = float(data)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail("invalid")
        return float(super().to_internal_value(data))


class StrictBooleanField(serializers.BooleanField):
    """A JSON boolean: texts and numbers are refused."""

    default_error_messages = {"invalid": "Must be true or false."}

    def to_internal_value(self, data: Any) -> bool:
        """Return the boolean; fails for another type."""
        if not isinstance(data, bool):
            self.fail("invalid")
        return bool(data)


class StrictChoiceField(serializers.ChoiceField):
    """One of a few exact words. The error message does not repeat the invalid value."""

    def __init__(self, choices: Iterable[str], **options: Any) -> None:
        words = list(choices)
        super().__init__(words, **options)
        self.error_messages["invalid_choice"] = f"Must be one of {', '.join(words)}."

    def to_internal_value(self, data: Any) -> str:
        """Return the word; fails for anything else."""
        if not isinstance(data, str) or data not in self.choices:
            self.fail("invalid_choice")
        return data


class SharedSerializer(StrictSerializer):
    """A body without unknown fields, whose serializer all requests of the process share."""

    @classmethod
    def validated(cls, data: Any) -> dict[str, Any]:
        """Return a body's validated fields; raises DRF's ValidationError.

        A new serializer copies every field, which costs more than validation; validation leaves no state in it.
        """
        fields: dict[str, Any] = _shared(cls).run_validation(data)
        return fields


class ChatRequest(SharedSerializer):
    """The request body of /chat."""

    message = StrictCharField(max_length=1000, help_text="What to ask; not blank.")
    temperature = StrictFloatField(
        min_value=0,
        max_value=2,
        default=0.7,
        help_text="0 is the most predictable, 2 the most varied. Default of the local demo model: 0.1.",
    )
    model = StrictCharField(
        max_length=MODEL_NAME_LENGTH, required=False, help_text="A model by its public name; default: the platform's."
    )
    stream = StrictBooleanField(default=False, help_text="Answer as server-sent events: delta, then done or error.")


class ChatAnswer(serializers.Serializer[Any]):
    """The response body of /chat."""

    response = serializers.CharField(help_text="The model's answer.")
    tokens_used = serializers.IntegerField(
        help_text="Tokens of prompt and answer; on a cache hit those of the original answer, and nothing is billed."
    )
    cached = serializers.BooleanField(help_text="Whether the answer came from the cache.")
    request_id = serializers.CharField(help_text="The request's id, as in X-Request-ID.")


class SummarizeRequest(SharedSerializer):
    """The request body of /summarize."""

    text = StrictCharField(min_length=10, max_length=5000, help_text="What to summarize; not blank.")
    length = StrictChoiceField(
        choices=SENTENCES, default="medium", help_text="short, medium, long: 1-2, 3-4, 5-6 sentences."
    )
    model = StrictCharField(
        max_length=MODEL_NAME_LENGTH, required=False, help_text="A model by its public name; default: the platform's."
    )


class SummarizeAnswer(serializers.Serializer[Any]):
    """The response body of /summarize."""

    summary = serializers.CharField(help_text="The summary, without white space around it.")
    original_length = serializers.IntegerField(help_text="Characters of the text.")
    summary_length = serializers.IntegerField(help_text="Characters of the summary.")
    cached = serializers.BooleanField(help_text="Whether the answer came from the cache.")
    request_id = serializers.CharField(help_text="The request's id, as in X-Request-ID.")


@cache
def _shared(kind: type[SharedSerializer]) -> SharedSerializer:
    return kind()


class ChatView(ModelEndpoint):
    """POST /chat."""

    endpoint = "chat"
    required_scope = "chat"

    @extend_schema(
        operation_id="chat",
        summary="Ask a model one question",
        description="The same question again is answered from your account's cache, at no cost.",
        request=ChatRequest,
        responses=model_answer(ChatAnswer, streams=True),
        examples=CHAT_EXAMPLES,
        parameters=REQUEST_HEADERS,
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Ask a model one question; the answer is streamed if the request asks for that."""
        asked = ChatRequest.validated(request.data)
        is_stream = asked["stream"] or accepts_events(request)
        model = self.call.choose(chat_protocol, asked.get("model"))
        is_small = "temperature" not in request.data and model.public_name == local_model.MODEL_NAME
        temperature = local_model.TEMPERATURE if is_small else asked["temperature"]
        payload = {"messages": prompts.chat_messages(asked["message"]), "temperature": temperature}
        call = self.call.ask(payload, read=answer_text, is_stream=is_stream)
        if not is_stream:
            return self._answer(call)
        name, label = call.model_name or "", call.trace.label
        return self.respond_as_stream(
            request,
            call,
            make_reader=lambda is_cached: DeltaReader(call.payload, model=name, label=label, is_cached=is_cached),
            error_event=lambda error, _: server_sent(
                "error", {"detail": error.detail, "code": error.error_code, "request_id": label}
            ),
        )

    def answer_form(self, request: Request) -> str:
        """Return the media type of events if Accept asks for a stream; empty otherwise."""
        return EVENT_STREAM if accepts_events(request) else ""

    def _answer(self, call: Call) -> Response:
        text = answer(call)
        return self.respond(
            call,
            {
                "response": text,
                "tokens_used": call.answer_tokens,
                "cached": call.is_cached,
                "request_id": call.trace.label,
            },
        )


class SummarizeView(ModelEndpoint):
    """POST /summarize."""

    endpoint = "summarize"
    required_scope = "summarize"

    @extend_schema(
        operation_id="summarize",
        summary="Summarize a text in a few sentences",
        description="short, medium and long are 1-2, 3-4 and 5-6 sentences.",
        request=SummarizeRequest,
        responses=model_answer(SummarizeAnswer),
        examples=SUMMARIZE_EXAMPLES,
        parameters=REQUEST_HEADERS,
    )
    def post(self, request: Request) -> Response:
        """Summarize a text in a number of sentences."""
        asked = SummarizeRequest.validated(request.data)
        text, length = asked["text"], asked["length"]
        is_local = self.call.choose(chat_protocol, asked.get("model")).public_name == local_model.MODEL_NAME
        payload = {
            "messages": prompts.summary_messages(text, length),
            "temperature": prompts.SUMMARY_TEMPERATURE,
            **(local_model.summary_options(text, length) if is_local else {}),
        }
        call = self.call.ask(payload, read=answer_text)
        summary = answer(call).strip()
        body = {
            "summary": summary,
            "original_length": len(text),
            "summary_length": len(summary),
            "cached": call.is_cached,
            "request_id": call.trace.label,
        }
        return self.respond(call, body)


class DeltaReader(ChunkReader):
    """Turns a provider's chunks into the events of /chat: `delta` with `{text}`, then `done` with the whole answer."""

    parses_all = True

    def __init__(self, payload: Payload, *, model: str, label: str, is_cached: bool) -> None:
        super().__init__(forwards_usage=False)
        self._payload = payload
        self._model = model
        self._label = label
        self._is_cached = is_cached
        self._said: list[str] = []
        self._reason: Any = None

    def read(self, event: bytes, body: Body) -> bytes:
        """Take the usage, and write the text as a `delta`."""
        super().read(event, body)
        choice = next(iter(choices_in(body)), {})
        self._reason = choice.get("finish_reason") or self._reason  # checked at the end, when the usage is known
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if not isinstance(text, str) or not text:
            return b""
        self._said.append(text)
        return server_sent("delta", {"text": text})

    def read_done(self, event: bytes) -> bytes:
        """Write the event `done`, with the body of a non-streamed answer.

        Raises ContentFiltered or UpstreamFailed if the provider filtered or aborted the answer, which is then
        incomplete, and UpstreamFailed if it is empty.
        """
        super().read_done(event)
        response = usable_text("".join(self._said), self._reason)
        usage, _ = self.billed_usage(partial(chat_protocol.estimate, self._payload, model=self._model))
        answer = {
            "response": response,
            "tokens_used": usage.input_tokens + usage.output_tokens,
            "cached": self._is_cached,
            "request_id": self._label,
        }
        return server_sent("done", answer)
