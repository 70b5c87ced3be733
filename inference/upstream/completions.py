"""What is read out of a provider's chat completion: whether it is one, what it used, what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accounts.exceptions import ContentFiltered, UpstreamFailed
from inference.upstream.attempts import AttemptFailed
from inference.upstream.errors import failed_attempt


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as a provider counts them; `cached_tokens` are part of the input."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int


def require_choices(body: Mapping[str, Any], *, route: str) -> None:
    """Check that an answer has choices; raises AttemptFailed for one that hasn't: another deployment may do better."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        failure: AttemptFailed = failed_attempt(ValueError("no choices"), route=route)
        raise failure


def read_usage(usage: Any) -> Usage | None:
    """Read the usage of a completion; None unless it holds both counts."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not _is_count(prompt) or not _is_count(completion):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(prompt, min(cached, prompt) if _is_count(cached) else 0, completion)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def answer_text(body: dict[str, Any]) -> str:
    """Return the text of the first choice. Raises ContentFiltered or UpstreamFailed where there is none to show."""
    choice = body["choices"][0]
    if choice.get("finish_reason") == "content_filter":
        raise ContentFiltered
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not content.strip():
        raise UpstreamFailed
    return content
