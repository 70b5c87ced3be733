"""The interface of a provider's endpoint to the pipeline, and the functions that the endpoints share."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import toktok

from accounts.key_cache import AuthenticatedKey
from accounts.limits.types import MILLION, Amount, Bound
from core.background import LEAST_SLEEP, yield_to_others
from core.errors import InvalidRequest
from inference.catalog import CatalogModel
from inference.protocols.parameters import UNCACHEABLE, Check, check_payload

if TYPE_CHECKING:
    from inference.protocols.events import EventReader

Payload = Mapping[str, Any]
Body = dict[str, Any]

#: Most tokens that a provider's template adds around the whole prompt (PART_OVERHEAD: around each message or tool).
REQUEST_OVERHEAD = 32
#: More than any call can use. A higher number from a provider is ignored, and could not be stored exactly.
MOST_TOKENS = 1_000_000_000
PART_OVERHEAD = 16
#: Names of the longest answer, and other parameters that may be sent without the caller's asking.
OUTPUT_PARAMETERS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
ADDED_PARAMETERS = ("store", "stream_options")
#: Finish reasons of an answer that the provider aborted: OpenRouter's, SGLang's and DeepSeek's.
GIVEN_UP = ("error", "abort", "insufficient_system_resource")

#: Prefixes of the names of models with the older encoding; all others are counted with the newer one.
OLDER_MODELS = ("gpt-3.5", "gpt-4-", "text-embedding", "davinci-002", "babbage-002")
#: Tokens around each message, and around the whole, in OpenAI's chat format (OpenAI cookbook, "How to count tokens").
MESSAGE_TOKENS = 3
REPLY_TOKENS = 3
#: Characters to count before other greenlets run; takes some milliseconds.
COUNTED_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as a provider counts them; `cached_tokens` are part of `input_tokens`."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of two usages."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )

    def at_least(self, counted: Usage) -> Usage:
        """Return the higher figure of this usage and a counted one, for input and output separately."""
        prompt, output = (max(self.input_tokens, counted.input_tokens), max(self.output_tokens, counted.output_tokens))
        return Usage(prompt, self.cached_tokens, output)

    def filled(self, counted: Usage) -> Usage:
        """Return this usage with the counted figure in place of each 0, which is wrong beside a text."""
        return Usage(
            self.input_tokens or counted.input_tokens, self.cached_tokens, self.output_tokens or counted.output_tokens
        )


class UnfitAnswer(Exception):
    """An answer that does not fit the request. Its text gives the reason and contains none of the provider's text."""


class WireProtocol(ABC):
    """An endpoint of OpenAI's API: its path, its parameters, the bound of a call, and the usage of an answer."""

    #: Path below the provider's base URL.
    path: str
    #: Parameter of the prompt, without which there is no request.
    prompt_parameter: str
    #: Checks of the parameters: of those that are refused (docs/openai.md has them), and of all.
    refused: Mapping[str, Check]
    checks: Mapping[str, Check]
    #: Kind of the models that it serves (Model.Kind).
    kind: str = "chat"
    #: Lowest maximum of output tokens that providers accept here.
    least_output: int = 1

    def check(self, payload: Payload) -> None:
        """Raise InvalidRequest for a parameter or content that can't be passed on."""
        check_payload(payload, self.checks, required=("model", self.prompt_parameter))
        self.check_content(payload)

    def check_content(self, payload: Payload) -> None:  # noqa: B027  (bare prompts have none)
        """Raise InvalidRequest for content whose tokens can't be bounded, or that is stored at the provider."""

    @abstractmethod
    def prompt_bound(self, payload: Payload) -> int:
        """Return an upper bound of a payload's input tokens."""

    def asked_output(self, payload: Payload) -> int | None:
        """Return the payload's maximum of output tokens for one answer; None if it names none."""
        return None

    def answers(self, payload: Payload) -> int:
        """Return the number of answers that the payload asks for, each with its own output."""
        return 1

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Return the payload to send, with the tokens granted to each answer as its maximum.

        `parameter` is the deployment's name of the maximum, for endpoints that have two names.
        """
        return dict(payload)

    def is_added(self, parameter: str | None, payload: Payload) -> bool:
        """Return whether the platform sends a parameter that the payload does not contain."""
        name = (parameter or "").partition(".")[0]
        if name in OUTPUT_PARAMETERS:
            return self.asked_output(payload) is None
        return name in ADDED_PARAMETERS and name not in payload

    @abstractmethod
    def read_usage(self, body: Body) -> Usage | None:
        """Return the usage in an answer; None if there is none, or if it does not cover the whole answer."""

    @abstractmethod
    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the usage of a call with a tokenizer. If the provider reports a higher figure, that one is returned."""

    def used(self, payload: Payload, body: Body, *, model: str) -> tuple[Usage, str]:
        """Return the usage of a non-streamed call, and its source: "provider" or "estimated"."""
        reported = self.read_usage(body)
        if (
            reported is not None
            and reported.input_tokens
            and (reported.output_tokens or self.asked_output(payload) == 0)
        ):
            return reported, "provider"
        counted = self.estimate(payload, body, model=model)
        used = reported.filled(counted) if reported is not None else counted
        return used, "provider" if used == reported else "estimated"

    @abstractmethod
    def is_complete(self, body: Body) -> bool:
        """Return whether a provider's body is an answer of this endpoint."""

    @abstractmethod
    def is_finished(self, body: Body) -> bool:
        """Return whether an answer is complete and may be cached: not filtered, aborted or in progress."""

    def answered(self, payload: Payload, body: Body) -> Body:
        """Return a complete answer in the form that the payload asks for; raises UnfitAnswer if it does not fit."""
        return body

    def shaping(self, payload: Payload) -> Payload:
        """Return the part of a payload that determines the cached answer, which `answered` adapts to each caller."""
        return payload

    def as_stream(self, payload: Payload) -> Body:
        """Return the payload to send for a stream; raises InvalidRequest if the endpoint does not stream."""
        raise InvalidRequest("This endpoint does not stream.", param="stream")

    def reader(self, payload: Payload) -> EventReader:
        """Return a reader of the stream that the payload asks for."""
        raise NotImplementedError("only of endpoints that stream")

    def error_event(self, payload: Payload, model: str, reader: EventReader, error: Body) -> bytes:
        """Return what reports an error to the caller after the stream has begun; `error` is in OpenAI's shape."""
        return b"data: " + json.dumps(error, separators=(",", ":")).encode() + b"\n\n"

    def opens_stream(self, event: Body) -> bool:
        """Return whether an event may open a stream: it is no error and belongs to this endpoint."""
        return isinstance(event.get("choices"), list) and not event.get("error")

    def is_cacheable(self, payload: Payload) -> bool:
        """Return whether an equal payload may get the same answer again (table in docs/openai.md).

        It may at temperature 0, without tools and personal parameters.
        """
        return payload.get("temperature") == 0 and not any(payload.get(name) for name in UNCACHEABLE)

    def wanted_output(self, payload: Payload, identity: AuthenticatedKey, model: CatalogModel) -> int:
        """Return the output tokens of one answer: the least of the payload's, the tier's and the model's maximum."""
        most = min(identity.max_output_tokens, model.context_size)
        asked = self.asked_output(payload)
        return most if asked is None else min(asked, most)

    def bound(self, payload: Payload, identity: AuthenticatedKey, model: CatalogModel) -> Bound:
        """Return an upper bound of a call, at the highest price among the deployments that may answer it.

        If the request names no maximum, a limit may shorten the output, but not below `least_output` for each answer.
        Otherwise the request gets its maximum or is refused. Raises InvalidRequest for a request too large to compute
        exactly.
        """
        prompt, answers, prices = self.prompt_bound(payload), self.answers(payload), model.dearest
        output = self.wanted_output(payload, identity, model) * answers
        try:
            return Bound(
                prompt=Amount(prompt, -(-prompt * prices.input // MILLION)),
                output_tokens=output,
                output_price=prices.output,
                minimum_output=min(answers * self.least_output, output) if self.asked_output(payload) is None else None,
                step=answers,
            )
        except ValueError as error:
            raise InvalidRequest("The request is too large.") from error


def json_bytes(value: Any) -> int:
    """Return the length of a value as JSON in UTF-8, an upper bound of its tokens for any tokenizer."""
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    yield_to_others(size)
    return size


def written_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8; as ASCII with escapes if it contains half of a surrogate pair."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def choices_in(body: Body) -> list[Body]:
    """Return the choices of an answer or a chunk that are objects."""
    choices = body.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def is_count(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer from 0 to MOST_TOKENS, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def read_openai_usage(usage: Any) -> Usage | None:
    """Parse the usage of chat completions, completions and embeddings; None if it is invalid."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not is_count(prompt) or not is_count(completion):
        return None
    return Usage(prompt, cached_tokens(usage.get("prompt_tokens_details"), prompt), completion)


def read_response_usage(usage: Any) -> Usage | None:
    """Parse the usage of responses, whose fields have other names; None if it is invalid."""
    if not isinstance(usage, dict):
        return None
    prompt, output = usage.get("input_tokens"), usage.get("output_tokens")
    if not is_count(prompt) or not is_count(output):
        return None
    return Usage(prompt, cached_tokens(usage.get("input_tokens_details"), prompt), output)


def is_of_one_answer(output_tokens: int, texts: Sequence[str]) -> bool:
    """Return whether a provider's output tokens cover one of several answers only, as llama.cpp reports them.

    The provider's tokenizer may differ: a count lower by a fifth, and by a token for each text, is accepted.
    """
    return len(texts) > 1 and (count_tokens(texts, model="") - len(texts)) * 4 > output_tokens * 5


def cached_tokens(details: Any, prompt: int) -> int:
    """Return the cached tokens in the details of a usage: at most the prompt's, 0 if there are none."""
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return min(cached, prompt) if is_count(cached) else 0


def count_tokens(texts: Iterable[str], *, model: str) -> int:
    """Count the tokens of texts with the encoding of a model, given by its provider's name.

    Exact for OpenAI's models, an estimate for others.
    """
    older = model == "gpt-4" or model.startswith(OLDER_MODELS)
    encoding = "cl100k_base" if older else "o200k_base"
    tokens, size, waiting = 0, 0, list[str]()
    # a long text is counted in pieces; each cut may add a token
    pieces = (text[at : at + COUNTED_AT_ONCE] for text in texts for at in range(0, len(text), COUNTED_AT_ONCE))
    for piece in pieces:
        if size + len(piece) > COUNTED_AT_ONCE:
            tokens += int(sum(toktok.batch_count(waiting, encoding, 1)))
            size, waiting = 0, []
            time.sleep(LEAST_SLEEP)
        waiting.append(piece.encode("utf-8", "replace").decode())  # replaces halves of surrogate pairs
        size += len(piece)
    return tokens + int(sum(toktok.batch_count(waiting, encoding, 1)))
