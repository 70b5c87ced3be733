"""Tokens as providers report them: one parser for every shape of `usage`, and what its parts are.

docs/usage.md has the table of the shapes. Providers differ in three things: the names of the fields; whether cached
tokens are a part of the prompt's or come beside them (Anthropic); whether reasoning is a part of the output or comes
beside it (xAI and Gemini, whose `total_tokens` shows it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

#: More than any call can use. A higher number from a provider is ignored, and could not be stored exactly.
MOST_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used: input and output tokens, parts of these, and the web searches that the provider ran.

    Cached tokens were read from the provider's cache of prompts, cache writes were stored in it, some for an hour.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    web_searches: int = 0

    @property
    def tokens(self) -> int:
        """Return input and output tokens."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of two usages."""
        return Usage(*(getattr(self, name) + getattr(other, name) for name in Usage.__slots__))

    def with_totals(self, input_tokens: int, output_tokens: int) -> Usage:
        """Return this usage with other totals, which are not below its parts."""
        return replace(self, input_tokens=input_tokens, output_tokens=output_tokens)

    def at_least(self, counted: Usage) -> Usage:
        """Return the higher figure of this usage and a counted one, for input, output and searches separately."""
        return replace(
            self,
            input_tokens=max(self.input_tokens, counted.input_tokens),
            output_tokens=max(self.output_tokens, counted.output_tokens),
            web_searches=max(self.web_searches, counted.web_searches),
        )

    def filled(self, counted: Usage) -> tuple[Usage, str]:
        """Return this usage with the counted figure in place of each 0, which is wrong beside a text, and its source.

        The source is "provider" if nothing was replaced, otherwise "estimated".
        """
        used = self.with_totals(self.input_tokens or counted.input_tokens, self.output_tokens or counted.output_tokens)
        return used, "provider" if used == self else "estimated"


#: The last usage of some servers, which sent the real one before.
NOTHING = Usage()

#: Names of the input and the output tokens, and what an absent output means: embeddings report none.
TOTALS = (
    ("prompt_tokens", "completion_tokens", 0),
    ("input_tokens", "output_tokens", None),
    ("promptTokenCount", "candidatesTokenCount", 0),
)
#: Where the parts are found: the first count above 0 is taken.
CACHED = (
    "prompt_tokens_details.cached_tokens",
    "input_tokens_details.cached_tokens",
    "cache_read_input_tokens",  # Anthropic, LiteLLM, Bedrock
    "prompt_cache_hit_tokens",  # DeepSeek
    "cached_tokens",  # Moonshot
    "cachedContentTokenCount",  # Gemini
)
WRITTEN = (
    "cache_creation_input_tokens",  # Anthropic, LiteLLM, Bedrock
    "prompt_tokens_details.cache_write_tokens",  # OpenRouter
    "input_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_creation_tokens",  # LiteLLM
)
WRITTEN_1H = ("cache_creation.ephemeral_1h_input_tokens",)
REASONING = (
    "completion_tokens_details.reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
    "output_tokens_details.thinking_tokens",  # Anthropic
    "reasoning_tokens",  # Perplexity
    "thoughtsTokenCount",  # Gemini
)
SEARCHES = ("server_tool_use.web_search_requests",)  # Anthropic; in a response, its output shows them
ALL = ("total_tokens", "totalTokenCount")
#: Fields that only Anthropic has: its input tokens are those neither read from the cache nor written to it.
ANTHROPIC = ("cache_read_input_tokens", "cache_creation_input_tokens")


def parse_usage(usage: Any) -> Usage | None:
    """Parse a `usage` of any provider; None if it is invalid. Parts that are larger than their whole are cut."""
    if not isinstance(usage, dict):
        return None
    names = next((each for each in TOTALS if each[0] in usage), None)
    if names is None:
        return None
    read, output = usage[names[0]], usage.get(names[1], names[2])
    if not is_count(read) or not is_count(output):
        return None
    cached, written, reasoning = _first(usage, CACHED), _first(usage, WRITTEN), _first(usage, REASONING)
    beside = max(0, _first(usage, ALL) - read - output)
    if names[0] == "input_tokens" and any(name in usage for name in ANTHROPIC):
        read += cached + written
    elif beside and beside == cached + written:
        read += beside
    elif beside:
        output += beside
        reasoning = reasoning or beside
    elif reasoning > output:
        output += reasoning
    if max(read, output) > MOST_TOKENS:
        return None
    cached = min(cached, read)
    written = min(written, read - cached)
    written_1h, reasoning = min(_first(usage, WRITTEN_1H), written), min(reasoning, output)
    return Usage(read, cached, output, written, written_1h, reasoning, _first(usage, SEARCHES))


def anthropic_usage(usage: Usage) -> dict[str, Any]:
    """Return a usage as Anthropic reports it, with all parts; `parse_usage` reads the same from it."""
    hour = usage.cache_write_1h_tokens
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens - hour,
            "ephemeral_1h_input_tokens": hour,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def chat_usage(usage: Usage) -> dict[str, Any]:
    """Return a usage as chat completions report it, with all parts; `parse_usage` reads the same from it.

    OpenAI has no cache writes: they are in OpenRouter's field, those for an hour in Anthropic's.
    """
    rendered: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    if usage.cache_write_tokens:
        rendered["prompt_tokens_details"]["cache_write_tokens"] = usage.cache_write_tokens
    if usage.cache_write_1h_tokens:
        rendered["cache_creation"] = {"ephemeral_1h_input_tokens": usage.cache_write_1h_tokens}
    return rendered


def response_usage(usage: Usage) -> dict[str, Any]:
    """Return a usage as responses report it, with all parts; `parse_usage` reads the same from it."""
    chat = chat_usage(usage)
    renamed = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
    renamed |= {f"{old}_details": f"{new}_details" for old, new in renamed.items()}
    rendered = {renamed.get(name, name): value for name, value in chat.items()}
    rendered["input_tokens_details"].setdefault("cache_write_tokens", 0)  # OpenAI's field too
    return rendered


def merged_usage(*reports: Any) -> dict[str, Any]:
    """Merge the usages in the events of one message: each number is cumulative, so the highest one counts.

    Some servers send zeros in the first event, others in the last.
    """
    merged: dict[str, Any] = {}
    for report in reports:
        for name, value in report.items() if isinstance(report, dict) else ():
            before = merged.get(name)
            if isinstance(value, dict):
                merged[name] = merged_usage(before, value)
            elif is_count(before):
                merged[name] = max(before, value) if is_count(value) else before
            elif value is not None:
                merged[name] = value
    return merged


def _first(usage: Mapping[str, Any], places: tuple[str, ...]) -> int:
    """Return the first count above 0 at one of the places (`field` or `object.field`); 0 without one."""
    for place in places:
        holder, _, name = place.rpartition(".")
        found = usage.get(holder) if holder else usage
        value = found.get(name) if isinstance(found, dict) else None
        if is_count(value) and value:
            return value
    return 0


def is_count(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer from 0 to MOST_TOKENS, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
