"""The bodies of /chat and /summarize, in and out (WIRE.md, Endpoints)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from rest_framework import serializers

from inference.prompts import SENTENCES

MODEL_NAME_LENGTH = 100


class StrictCharField(serializers.CharField):
    """A text as it was sent: a number is no text, and white space is neither cut off nor enough."""

    default_error_messages = {"invalid": "Must be a text."}

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def to_internal_value(self, data: Any) -> str:
        """Return the text, or fail for another type."""
        if not isinstance(data, str):
            self.fail("invalid")
        if not data.strip() and not self.allow_blank:
            self.fail("blank")
        return str(super().to_internal_value(data))


class StrictFloatField(serializers.FloatField):
    """A JSON number: neither a text that looks like one nor a boolean."""

    default_error_messages = {"invalid": "Must be a number."}

    def to_internal_value(self, data: Any) -> float:
        """Return the number, or fail for another type or one that is not finite."""
        if isinstance(data, bool) or not isinstance(data, int | float) or not _is_finite(data):
            self.fail("invalid")
        return float(super().to_internal_value(data))


class StrictBooleanField(serializers.BooleanField):
    """true or false, and not a word or number that could mean it."""

    default_error_messages = {"invalid": "Must be true or false."}

    def to_internal_value(self, data: Any) -> bool:
        """Return the boolean, or fail for another type."""
        if not isinstance(data, bool):
            self.fail("invalid")
        return bool(data)


class StrictChoiceField(serializers.ChoiceField):
    """One of a few words, exactly as they are; what was sent instead is not repeated."""

    def __init__(self, choices: Iterable[str], **options: Any) -> None:
        words = list(choices)
        super().__init__(words, **options)
        self.error_messages["invalid_choice"] = f"Must be one of {', '.join(words)}."

    def to_internal_value(self, data: Any) -> str:
        """Return the word, or fail for anything else."""
        if not isinstance(data, str) or data not in self.choices:
            self.fail("invalid_choice")
        return data


class StrictSerializer(serializers.Serializer[Any]):
    """A body without unknown fields, so that a misspelt one is told instead of ignored."""

    @classmethod
    def validated(cls, data: Any) -> dict[str, Any]:
        """Return a body's validated fields; raises DRF's ValidationError.

        One serializer serves all requests of the process: making one copies every field, which costs more than to
        validate, and validating leaves nothing behind in it.
        """
        fields: dict[str, Any] = _shared(cls).run_validation(data)
        return fields

    def to_internal_value(self, data: Any) -> Any:
        """Validate the fields, then refuse what is none."""
        unknown = sorted(set(data) - set(self.fields)) if isinstance(data, dict) else []
        if unknown:
            raise serializers.ValidationError({name[:100]: ["Unknown field."] for name in unknown[:20]})
        return super().to_internal_value(data)


class ChatRequest(StrictSerializer):
    """What /chat takes."""

    message = StrictCharField(max_length=1000, help_text="What to ask; not blank.")
    temperature = StrictFloatField(
        min_value=0,
        max_value=2,
        default=0.7,
        help_text="0 is the most predictable, 2 the most varied. The local demo model takes 0.1 where none is given.",
    )
    model = StrictCharField(
        max_length=MODEL_NAME_LENGTH, required=False, help_text="A model by its public name; default: the platform's."
    )
    stream = StrictBooleanField(default=False, help_text="Answer as server-sent events: delta, then done or error.")


class ChatAnswer(serializers.Serializer[Any]):
    """What /chat answers."""

    response = serializers.CharField(help_text="The model's answer.")
    tokens_used = serializers.IntegerField(
        help_text="Tokens of prompt and answer; on a cache hit those of the original answer, and nothing is billed."
    )
    cached = serializers.BooleanField(help_text="Whether the answer came from the cache.")
    request_id = serializers.CharField(help_text="The request's id, as in X-Request-ID.")


class SummarizeRequest(StrictSerializer):
    """What /summarize takes."""

    text = StrictCharField(min_length=10, max_length=5000, help_text="What to summarize; not blank.")
    length = StrictChoiceField(
        choices=SENTENCES, default="medium", help_text="short, medium, long: 1-2, 3-4, 5-6 sentences."
    )
    model = StrictCharField(
        max_length=MODEL_NAME_LENGTH, required=False, help_text="A model by its public name; default: the platform's."
    )


class SummarizeAnswer(serializers.Serializer[Any]):
    """What /summarize answers."""

    summary = serializers.CharField(help_text="The summary, without white space around it.")
    original_length = serializers.IntegerField(help_text="Characters of the text.")
    summary_length = serializers.IntegerField(help_text="Characters of the summary.")
    cached = serializers.BooleanField(help_text="Whether the answer came from the cache.")
    request_id = serializers.CharField(help_text="The request's id, as in X-Request-ID.")


@cache
def _shared(kind: type[StrictSerializer]) -> StrictSerializer:
    return kind()


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
