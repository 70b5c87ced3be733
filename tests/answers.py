"""What came back over HTTP, plain or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer: header names in lower case; `label` is the request id that was sent along."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    label: str = ""

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Parse the data of each event of a stream; `[DONE]` stays a text."""
        return data_of(self.body.decode())

    @property
    def error(self) -> dict[str, Any]:
        """Return the error under /v1: message, type, param, code."""
        error: dict[str, Any] = self.json()["error"]
        return error


def data_of(text: str) -> list[Any]:
    """Parse the data of each event; `[DONE]` stays a text."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def said(text: str) -> str:
    """Join what a chat completion's stream says."""
    chunks = [event for event in data_of(text) if isinstance(event, dict)]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
