"""Translation between the format of a caller's endpoint and that of a provider that has only another one.

A translation has a table of its endpoint's parameters (docs/translation.md shows it). A parameter that is not in the
table is refused by name, never left out silently. Between two formats that have no translation of their own, chat
completions are the middle one: `Chain`.

`thinking_blocks` of an assistant's message, `[{"type": "thinking", "thinking": ..., "signature": ...}]`, are the one
field here that OpenAI's chat completions lack (LiteLLM's name).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NoReturn

from inference.protocols.base import Body, Payload, WireProtocol
from inference.protocols.parameters import refuse

#: What a translation raises for an answer that is not in the provider's format.
DAMAGED = (KeyError, TypeError, ValueError, AttributeError)


def untranslatable(place: str, why: str = "") -> NoReturn:
    """Raise InvalidRequest for what is at a place of the payload and has no counterpart at the provider."""
    text = f"'{place}' can't be translated for this model's provider{': ' if why else ''}{why}."
    refuse(text, place, "unsupported_parameter")


class Translation(ABC):
    """A caller's endpoint on a provider's: payloads in one direction, answers and streams in the other."""

    #: The provider's endpoint.
    target: WireProtocol
    #: The caller's parameters, and what becomes of each. Values that mean nothing are not listed (`is_neutral`).
    fields: Mapping[str, str]

    def check(self, payload: Payload) -> None:
        """Raise InvalidRequest for a parameter that is not in `fields`, unless its value means nothing."""
        for name, value in payload.items():
            if name not in self.fields and not self.is_neutral(name, value):
                untranslatable(name)

    def is_neutral(self, name: str, value: object) -> bool:
        """Return whether a parameter's value is the same as no parameter."""
        return value is None

    @abstractmethod
    def payload(self, payload: Payload, *, model: str) -> Body:
        """Return the provider's payload, without the maximum of output tokens; `model` is the provider's name of it.

        Begins with `check`. Raises InvalidRequest, with the place as `param`, for what can't be translated.
        """

    @abstractmethod
    def body(self, payload: Payload, body: Body) -> Body:
        """Return a provider's complete answer in the caller's format.

        Raises one of DAMAGED if it is not in the provider's format.
        """

    @abstractmethod
    def events(self, payload: Payload, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield a provider's stream, in pieces as received, as whole events of the caller's format.

        Events that are errors are yielded unchanged. A stream that ends early ends early here too. Raises BrokenStream,
        or one of DAMAGED.
        """


class Chain(Translation):
    """A translation by way of a middle format: `first` from the caller's to the middle, `second` to the provider's."""

    def __init__(self, first: Translation, second: Translation) -> None:
        self.first, self.second = first, second
        self.target, self.fields = second.target, first.fields

    def payload(self, payload: Payload, *, model: str) -> Body:
        """Translate twice."""
        return self.second.payload(self.first.payload(payload, model=model), model=model)

    def body(self, payload: Payload, body: Body) -> Body:
        """Translate back twice."""
        middle = self.first.payload(payload, model="")
        return self.first.body(payload, self.second.body(middle, body))

    def events(self, payload: Payload, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Translate back twice."""
        middle = self.first.payload(payload, model="")
        return self.first.events(payload, self.second.events(middle, pieces))
