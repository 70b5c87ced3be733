"""A provider's endpoint as the pipeline sees it (WireProtocol), and what all endpoints share: usage, tokens, errors."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import toktok

from accounts.key_cache import AuthenticatedKey
from accounts.limits.types import MILLION, Amount, Bound
from core.background import LEAST_SLEEP, yield_to_others
from core.errors import InvalidRequest
from core.json import to_json
from inference.catalog import CatalogModel
from inference.protocols.parameters import MISSING, UNCACHEABLE, Check, refuse
from inference.usage import NOTHING, Usage, parse_usage

if TYPE_CHECKING:
    from inference.protocols.events import EventReader

Payload = Mapping[str, Any]
Body = dict[str, Any]

#: Most tokens that a provider's template adds around the whole prompt (PART_OVERHEAD: around each message or tool).
REQUEST_OVERHEAD = 32
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
#: Estimated tokens of the results of one web search (OpenAI's fixed block of its smaller models).
SEARCH_RESULTS = 8_000
#: Characters to count before other greenlets run; takes some milliseconds.
COUNTED_AT_ONCE = 500_000


class UnfitAnswer(Exception):
    """An answer that does not fit the request. Its text gives the reason and contains none of the provider's text."""


class WireProtocol(ABC):
    """An endpoint of a provider's API: its path, its parameters, the bound of a call, and the usage of an answer."""

    #: Path below the provider's base URL.
    path: str
    #: Parameter of the prompt, without which there is no request.
    prompt_parameter: str
    #: Checks of the parameters: of those that are refused (docs/openai.md has them), and of all. Content whose tokens
    #: can't be bounded, or that is stored at the provider, is refused too.
    refused: Mapping[str, Check]
    checks: Mapping[str, Check]
    #: Kind of the models that it serves (Model.Kind).
    kind: str = "chat"
    #: The endpoint's names of the longest answer, in order of precedence.
    output_names: Sequence[str] = ()
    #: Lowest maximum of output tokens that providers accept here.
    least_output: int = 1
    #: Whether it is an endpoint of Anthropic's API, otherwise of OpenAI's.
    is_anthropic: bool = False

    def check(self, payload: Payload) -> None:
        """Raise InvalidRequest, with `param` and `code`, for the first parameter or content that can't be passed on."""
        for name in ("model", self.prompt_parameter):
            if payload.get(name) is None:
                refuse(f"Missing required parameter: '{name}'.", name, MISSING)
        for name, check in self.checks.items():
            if payload.get(name) is not None:
                check(name, payload[name])

    @abstractmethod
    def prompt_bound(self, payload: Payload) -> int:
        """Return an upper bound of a payload's input tokens."""

    def most_prompt(self, payload: Payload, model: CatalogModel) -> int:
        """Return an upper bound of the input tokens of a call to a model, whose providers may add a prompt."""
        return self.prompt_bound(payload) + model.added_tokens

    def asked_output(self, payload: Payload) -> int | None:
        """Return the payload's maximum of output tokens for one answer; None if it names none."""
        return next((int(payload[name]) for name in self.output_names if payload.get(name) is not None), None)

    def answers(self, payload: Payload) -> int:
        """Return the number of answers that the payload asks for, each with its own output."""
        return 1

    def most_searches(self, payload: Payload) -> int:
        """Return the most web searches that the payload lets the provider run."""
        return 0

    def searches(self, body: Body) -> int:
        """Return the web searches in an answer."""
        return 0

    def generates(self, payload: Payload) -> bool:
        """Return whether the payload asks for output at all, so that an output of 0 tokens is wrong."""
        return True

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
    def count(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the usage of a call with a tokenizer."""

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the usage of a call with a tokenizer. If the provider reports a higher figure, that one is returned."""
        counted = self.count(payload, body, model=model)
        if searches := self.searches(body):
            counted = with_searches(counted, searches)
        return (self.reported(body) or counted).at_least(counted)

    def reported(self, body: Body) -> Usage | None:
        """Return the usage that the provider reports in an answer; None without a valid one."""
        return parse_usage(body.get("usage"))

    def is_of_all(self, reported: Usage, body: Body) -> bool:
        """Return whether the usage in an answer covers all of it."""
        return True

    def used(self, payload: Payload, body: Body, *, model: str) -> tuple[Usage, str]:
        """Return the usage of a non-streamed call, and its source: "provider" or "estimated"."""
        reported, generates = self.reported(body), self.generates(payload)
        if reported is None or (generates and not self.is_of_all(reported, body)):
            return self.estimate(payload, body, model=model), "estimated"
        if reported.input_tokens and (reported.output_tokens or not generates):
            return reported, "provider"
        return reported.filled(self.estimate(payload, body, model=model))

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
        """Return the payload to send for a stream, which must report its usage."""
        return {**payload, "stream": True}

    def reader(self, payload: Payload) -> EventReader:
        """Return a reader of the stream that the payload asks for."""
        raise NotImplementedError("only of endpoints that stream")

    def opens_stream(self, event: Body) -> bool:
        """Return whether an event may open a stream: it is no error and belongs to this endpoint."""
        return isinstance(event.get("choices"), list) and not event.get("error")

    def error_event(self, payload: Payload, model: str, reader: EventReader, error: Body) -> bytes:
        """Return what reports an error to the caller after the stream has begun; `error` is in OpenAI's shape."""
        return b"data: " + to_json(error) + b"\n\n"

    def is_cacheable(self, payload: Payload) -> bool:
        """Return whether an equal payload may get the same answer again (table in docs/openai.md).

        It may at temperature 0, which embeddings don't have, without tools and personal parameters.
        """
        is_exact = payload.get("temperature") == 0 or self.kind == "embedding"
        return is_exact and not any(payload.get(name) for name in UNCACHEABLE)

    def wanted_output(self, payload: Payload, identity: AuthenticatedKey, model: CatalogModel) -> int:
        """Return the output tokens of one answer: the least of the payload's, the tier's and the model's maximum."""
        most = min(identity.max_output_tokens, model.context_size)
        asked = self.asked_output(payload)
        return most if asked is None else min(asked, most)

    def bound(self, payload: Payload, identity: AuthenticatedKey, model: CatalogModel) -> Bound:
        """Return an upper bound of a call, at the highest price among the deployments that may answer it.

        If the request names no maximum, a limit may shorten the output, but not below `least_output` for each answer.
        Otherwise the request gets its maximum or is refused. After each web search the model reads its context anew.
        Raises InvalidRequest for a request too large to compute exactly.
        """
        prompt, answers = self.most_prompt(payload, model), self.answers(payload)
        searches = self.most_searches(payload) if payload.get("tools") else 0
        if searches:
            prompt = max(prompt, model.context_size) * (searches + 1)
        output, most = (
            self.wanted_output(payload, identity, model) * answers,
            model.ceiling(prompt, payload.get("service_tier")),
        )
        try:
            return Bound(
                prompt=Amount(prompt, -(-prompt * most.input // MILLION) + most.request + searches * most.search),
                output_tokens=output,
                output_price=most.output,
                minimum_output=min(answers * self.least_output, output) if self.asked_output(payload) is None else None,
                step=answers,
            )
        except ValueError as error:
            raise InvalidRequest("The request is too large.") from error


class ProviderError(Exception):
    """An error that a provider sent with status 200: instead of an answer, as an event, or as a failed response.

    `fields` is its error object (code, param, type, and a message that must not be passed on), `response` the failed
    response that contains it (empty if there is none). `usage` is the usage of the call; None if it is unknown or
    nothing was generated.
    """

    def __init__(self, fields: Body, *, response: Body, usage: Usage | None) -> None:
        super().__init__("the answer is an error")
        self.fields = fields
        self.response = response
        self.usage = usage
        self.usage_source = "provider"


def find_error(body: Body, *, is_named: bool = False) -> ProviderError | None:
    """Return the error in a body or an event's data; None if there is none. `is_named`: the event is named an error."""
    response = body.get("response") if body.get("type") == "response.failed" else body
    if not isinstance(response, dict):
        response = {}
    of_choices = (choice.get("error") for choice in choices_in(response))  # where OpenRouter puts it
    error = response.get("error") or next(filter(None, of_choices), None)
    is_failed = response is not body or body.get("status") == "failed"
    is_error = is_named or is_failed or body.get("type") == "error" or body.get("object") == "error"
    if not error and not is_error:
        return None
    fields = error if isinstance(error, dict) else {} if error or is_failed else body
    usage = response_usage(response)
    return ProviderError(fields, response=response if is_failed else {}, usage=usage if usage != NOTHING else None)


def searches_in(output: Any) -> int:
    """Count the web searches in a response's output; to open a page that was found costs nothing (OpenAI's prices)."""
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    actions = [item.get("action") for item in items if item.get("type") == "web_search_call"]
    return sum(not isinstance(each, dict) or each.get("type", "search") == "search" for each in actions)


def response_usage(response: Body) -> Usage | None:
    """Return the usage of a response, with the searches in its output, which OpenAI's usage lacks; None if invalid."""
    usage, searches = parse_usage(response.get("usage")), searches_in(response.get("output"))
    return replace(usage, web_searches=searches) if usage is not None and searches else usage


def choices_in(body: Body) -> list[Body]:
    """Return the choices of an answer or a chunk that are objects."""
    choices = body.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def with_searches(usage: Usage, searches: int) -> Usage:
    """Return an estimate with web searches: after each one, the model reads the prompt and all results so far."""
    read = usage.input_tokens * (searches + 1) + SEARCH_RESULTS * searches * (searches + 1) // 2
    return replace(usage, input_tokens=read, web_searches=searches)


def json_bytes(*values: Any) -> int:
    """Return the length of values as JSON in UTF-8, an upper bound of their tokens for any tokenizer."""
    size = sum(len(to_json(each)) for each in values)
    yield_to_others(size)
    return size


def prompts_in(value: Any) -> list[Any]:
    """Return the prompts of `prompt` or `input`: a text, a list of texts, a list of tokens, or a list of those."""
    if isinstance(value, list) and value and not all(isinstance(item, int) for item in value):
        return value
    return [value if value is not None else ""]


def count_prompts(prompts: list[Any], *, model: str) -> int:
    """Count the tokens of prompts, each a text or a list of tokens."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    return count_tokens(texts, model=model) + sum(len(prompt) for prompt in prompts if isinstance(prompt, list))


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
