"""POST /completions and POST /embeddings: a prompt without messages."""

from __future__ import annotations

from typing import Any

from inference.surfaces.base import REQUEST_OVERHEAD, Body, Payload, Surface, Usage, json_bytes, read_openai_usage
from inference.surfaces.chat import UNCACHEABLE
from inference.surfaces.events import ChunkReader
from inference.tokens import count_tokens

#: OpenAI's own maximum where a completion names none.
DEFAULT_OUTPUT = 16


class CompletionSurface(Surface):
    """Completions of a bare prompt."""

    path = "/completions"

    def prompt_bound(self, payload: Payload) -> int:
        """Reckon one token a byte, for each prompt of a list."""
        return REQUEST_OVERHEAD + json_bytes(payload)

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_tokens, or what the provider takes for it."""
        asked = payload.get("max_tokens")
        return DEFAULT_OUTPUT if asked is None else int(asked)

    def answers(self, payload: Payload) -> int:
        """Return how many are made: `n` or `best_of` of them for each prompt."""
        return max(int(payload.get("n") or 1), int(payload.get("best_of") or 1)) * len(_prompts(payload.get("prompt")))

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set max_tokens."""
        return {**payload, "max_tokens": tokens}

    def read_usage(self, body: Body) -> Usage | None:
        """Read `usage`."""
        return read_openai_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the prompts and the answers with a tokenizer."""
        texts = [str(choice.get("text") or "") for choice in body.get("choices", ())]
        prompts = _prompts(payload.get("prompt"))
        return Usage(count_prompts(prompts, model=model), 0, count_tokens(texts, model=model))

    def is_complete(self, body: Body) -> bool:
        """Say whether there are choices."""
        return isinstance(body.get("choices"), list) and bool(body["choices"])

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the request is deterministic as far as it can be, and nobody's own."""
        return payload.get("temperature") == 0 and not any(payload.get(name) for name in UNCACHEABLE)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream with usage at its end, whether the caller wants that or not."""
        options = {**(payload.get("stream_options") or {}), "include_usage": True}
        return {**payload, "stream": True, "stream_options": options}

    def reader(self, payload: Payload) -> ChunkReader:
        """Follow chunks."""
        return ChunkReader(forwards_usage=bool((payload.get("stream_options") or {}).get("include_usage")))


class EmbeddingSurface(Surface):
    """Embeddings: no output tokens, and the same for the same input."""

    path = "/embeddings"
    kind = "embedding"

    def prompt_bound(self, payload: Payload) -> int:
        """Reckon one token a byte of texts, or the tokens themselves."""
        return REQUEST_OVERHEAD + json_bytes(payload.get("input"))

    def asked_output(self, payload: Payload) -> int | None:
        """Return 0."""
        return 0

    def read_usage(self, body: Body) -> Usage | None:
        """Read `usage`."""
        return read_openai_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the input with a tokenizer."""
        return Usage(count_prompts(_prompts(payload.get("input")), model=model), 0, 0)

    def is_complete(self, body: Body) -> bool:
        """Say whether there are embeddings."""
        return isinstance(body.get("data"), list) and bool(body["data"])

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the request is nobody's own."""
        return not any(payload.get(name) for name in UNCACHEABLE)


def count_prompts(prompts: list[Any], *, model: str) -> int:
    """Count prompts that are texts or lists of tokens."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    return count_tokens(texts, model=model) + sum(len(prompt) for prompt in prompts if isinstance(prompt, list))


def _prompts(value: Any) -> list[Any]:
    """Return the prompts of `prompt` or `input`: a text, a list of texts, a list of tokens, or a list of those."""
    if isinstance(value, list) and value and not all(isinstance(item, int) for item in value):
        return value
    return [value if value is not None else ""]


completion_surface = CompletionSurface()
embedding_surface = EmbeddingSurface()
