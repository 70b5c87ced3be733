"""What the pipeline asks of a provider's endpoint, whichever it is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from accounts.key_cache import Identity
from accounts.limits.types import MILLION, Amount, Bound
from core.background import give_turn
from core.errors import InvalidRequest
from inference.catalog import CatalogModel
from inference.protocols.tokens import count_tokens

if TYPE_CHECKING:
    from inference.protocols.events import EventReader

Payload = Mapping[str, Any]
Body = dict[str, Any]

#: Tokens that a provider's template may add around the whole prompt, and around each message or tool in it.
REQUEST_OVERHEAD = 32
#: More than any call can use: a provider that says so is not believed, and its numbers could not be stored exactly.
MOST_TOKENS = 1_000_000_000
PART_OVERHEAD = 16
#: How endpoints and servers call the longest answer, and what else may be sent without having been asked for.
OUTPUT_PARAMETERS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
ADDED_PARAMETERS = ("store", "stream_options")
#: Why an answer ends that is whole: OpenAI's reasons, and other servers' names for `stop`.
FINISHED = ("stop", "length", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence")
#: Why one ends that the provider gave up: OpenRouter's reason, SGLang's and DeepSeek's.
GIVEN_UP = ("error", "abort", "insufficient_system_resource")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as a provider counts them; `cached_tokens` are part of the input."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int

    def __add__(self, other: Usage) -> Usage:
        """Return what two attempts used together."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )

    def at_least(self, counted: Usage) -> Usage:
        """Return each figure of a provider, or the one that was counted where that is higher."""
        prompt, output = (max(self.input_tokens, counted.input_tokens), max(self.output_tokens, counted.output_tokens))
        return Usage(prompt, self.cached_tokens, output)

    def filled(self, counted: Usage) -> Usage:
        """Return each figure of a provider, or what was counted where it is 0: 0 beside a text can't be."""
        return Usage(
            self.input_tokens or counted.input_tokens, self.cached_tokens, self.output_tokens or counted.output_tokens
        )


class UnfitAnswer(Exception):
    """An answer that does not fit the question; its text says how, in words without any of the provider's."""


class Surface(ABC):
    """An endpoint of OpenAI's protocol: where it is, what a call may use there, and what it did use."""

    #: Below the provider's base URL.
    path: str
    #: Of the models that it serves (Model.Kind).
    kind: str = "chat"
    #: The least longest answer that providers take here.
    least_output: int = 1

    @abstractmethod
    def prompt_bound(self, payload: Payload) -> int:
        """Return the most input tokens that a payload can be."""

    def asked_output(self, payload: Payload) -> int | None:
        """Return the most output tokens of one answer that the payload asks for; None where it names no maximum."""
        return None

    def answers(self, payload: Payload) -> int:
        """Return how many answers are asked for at once, each with an output of its own."""
        return 1

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Return the payload as it is sent: with the output that was granted to each answer as its maximum.

        `parameter` names the parameter that the deployment knows, where the endpoint has two names for it.
        """
        return dict(payload)

    def is_added(self, parameter: str | None, payload: Payload) -> bool:
        """Say whether a parameter is sent to providers that the payload does not ask for."""
        name = (parameter or "").partition(".")[0]
        if name in OUTPUT_PARAMETERS:
            return self.asked_output(payload) is None
        return name in ADDED_PARAMETERS and name not in payload

    @abstractmethod
    def read_usage(self, body: Body) -> Usage | None:
        """Read the usage out of an answer; None where it has none, or one that is not of all that came."""

    @abstractmethod
    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count what a call used whose provider sent no usage, or one below that: each figure is the higher one."""

    def used(self, payload: Payload, body: Body, *, model: str) -> tuple[Usage, str]:
        """Return what a plain call used, and where that is known from: "provider" or "estimated"."""
        told = self.read_usage(body)
        if told is not None and told.input_tokens and (told.output_tokens or self.asked_output(payload) == 0):
            return told, "provider"
        counted = self.estimate(payload, body, model=model)
        used = told.filled(counted) if told is not None else counted
        return used, "provider" if used == told else "estimated"

    @abstractmethod
    def is_complete(self, body: Body) -> bool:
        """Say whether a provider's body is an answer of this endpoint."""

    @abstractmethod
    def is_finished(self, body: Body) -> bool:
        """Return whether an answer is whole, so that it may be cached: not filtered, given up, or still going on."""

    def answered(self, payload: Payload, body: Body) -> Body:
        """Return a whole answer as the payload asks for it. Raises UnfitAnswer for one to another question."""
        return body

    def shaping(self, payload: Payload) -> Payload:
        """Return what of a payload shapes the answer that is kept, of which `answered` makes the caller's."""
        return payload

    def as_stream(self, payload: Payload) -> Body:
        """Return the payload of a stream as it is sent; raises InvalidRequest where the endpoint has none."""
        raise InvalidRequest("This endpoint does not stream.", param="stream")

    def reader(self, payload: Payload) -> EventReader:
        """Make what follows the stream that the payload asks for."""
        raise NotImplementedError("only of endpoints that stream")

    def opens_stream(self, event: Body) -> bool:
        """Say whether an event may be a stream's first: not an error, nor what another kind of server sends."""
        return isinstance(event.get("choices"), list) and not event.get("error")

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the same payload again may get the same answer (the table is in docs/api.md)."""
        return False

    def wanted_output(self, payload: Payload, identity: Identity, model: CatalogModel) -> int:
        """Return the output of one answer: what is asked for, the tier's maximum, the model's context."""
        most = min(identity.max_output_tokens, model.context_size)
        asked = self.asked_output(payload)
        return most if asked is None else min(asked, most)

    def bound(self, payload: Payload, identity: Identity, model: CatalogModel) -> Bound:
        """Compute a true upper bound of a call, at the dearest price among the deployments that it may reach.

        The output is cut to what is left of a limit, but not below what providers take, where the request names no
        maximum; one that does gets it whole or is refused. Raises InvalidRequest for a request so large that it can't
        be reckoned exactly.
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
    """Return the length of a value as JSON in UTF-8: no tokenizer makes more tokens of it than that."""
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    give_turn(size)
    return size


def written_json(value: Any) -> bytes:
    """Write a value as JSON in UTF-8. Half of a surrogate pair, whose other half comes later, goes as an escape."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def choices_in(body: Body) -> list[Body]:
    """Return the choices of an answer or a chunk, leaving out what is none."""
    choices = body.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def are_finished(choices: Sequence[Body]) -> bool:
    """Return whether each choice of an answer came to an end of its own (see FINISHED)."""
    return bool(choices) and all(choice.get("finish_reason") in FINISHED for choice in choices)


def is_count(value: Any) -> TypeGuard[int]:
    """Say whether a value is a whole number from 0 on, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def read_openai_usage(usage: Any) -> Usage | None:
    """Read usage as chat completions, completions and embeddings tell it."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not is_count(prompt) or not is_count(completion):
        return None
    return Usage(prompt, cached_tokens(usage.get("prompt_tokens_details"), prompt), completion)


def read_response_usage(usage: Any) -> Usage | None:
    """Read usage as responses tell it, under names of their own."""
    if not isinstance(usage, dict):
        return None
    prompt, output = usage.get("input_tokens"), usage.get("output_tokens")
    if not is_count(prompt) or not is_count(output):
        return None
    return Usage(prompt, cached_tokens(usage.get("input_tokens_details"), prompt), output)


def is_of_one_answer(output_tokens: int, texts: Sequence[str]) -> bool:
    """Say whether a provider's output tokens can't be those of all the answers that came: llama.cpp tells one's.

    Its tokenizer is not ours. One that makes a fifth less of the texts, and a token less of each, is believed.
    """
    return len(texts) > 1 and (count_tokens(texts, model="") - len(texts)) * 4 > output_tokens * 5


def cached_tokens(details: Any, prompt: int) -> int:
    """Read the cached tokens out of usage's details: at most the prompt's, 0 where none are told."""
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return min(cached, prompt) if is_count(cached) else 0
