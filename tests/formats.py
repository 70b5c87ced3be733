"""How providers of either format answer by a script: a text or calls of tools, plain or as a stream."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from tests.running import Asked, Reply, event

#: What a model thinks before it calls tools.
THOUGHT = "They want me to count."


@dataclass(frozen=True)
class Use:
    """A call of a tool by a model."""

    name: str
    input: dict[str, Any]
    id: str = "toolu_1"


def blocks_of(call: Asked) -> list[dict[str, Any]]:
    """Return the blocks of all of Anthropic's messages in a call; a content may be a text instead."""
    contents = (message["content"] for message in call.payload["messages"])
    return [block for content in contents if isinstance(content, list) for block in content]


class Format(ABC):
    """How providers of a format answer, and what they are told. A usage is 1000/20, of which 400 were cached."""

    style: str

    @abstractmethod
    def plain(self, *said: str | Use) -> Reply:
        """Make an answer that is no stream, without thoughts."""

    @abstractmethod
    def stream(self, *said: str | Use) -> Reply:
        """Make the stream of a text or of calls of tools, which are thought about first."""

    @abstractmethod
    def results(self, call: Asked) -> dict[str, Any]:
        """Return the contents of the results of tools by their ids."""


class Messages(Format):
    """Anthropic's messages."""

    style = "anthropic"
    usage = {"input_tokens": 600, "cache_read_input_tokens": 400, "cache_creation_input_tokens": 0}
    thought = {"type": "thinking", "thinking": THOUGHT, "signature": "c2lnbmF0dXJl"}

    def plain(self, *said: str | Use) -> Reply:
        content = [
            {"type": "text", "text": each}
            if isinstance(each, str)
            else {"type": "tool_use", "id": each.id, "name": each.name, "input": each.input}
            for each in said
        ]
        reason = "tool_use" if any(isinstance(each, Use) for each in said) else "end_turn"
        ended = {"content": content, "stop_reason": reason, "usage": {**self.usage, "output_tokens": 20}}
        return Reply(body=json.dumps({**self._begun, **ended}).encode())

    def stream(self, *said: str | Use) -> Reply:
        uses = [each for each in said if isinstance(each, Use)]
        usage = {**self.usage, "output_tokens": 1}
        events: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": {**self._begun, "usage": usage}})]
        for at, (block, deltas) in enumerate(self._blocks(said)):
            events.append(("content_block_start", {"index": at, "content_block": block}))
            events += [("content_block_delta", {"index": at, "delta": delta}) for delta in deltas]
            events.append(("content_block_stop", {"index": at}))
        ended = {"stop_reason": "tool_use" if uses else "end_turn", "stop_sequence": None}
        events += [("message_delta", {"delta": ended, "usage": {"output_tokens": 20}}), ("message_stop", {})]
        return Reply(body=[event({"type": kind, **data}, kind) for kind, data in events])

    def results(self, call: Asked) -> dict[str, Any]:
        return {each["tool_use_id"]: each["content"] for each in blocks_of(call) if each["type"] == "tool_result"}

    @property
    def _begun(self) -> dict[str, Any]:
        named = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
        return {**named, "stop_reason": None, "stop_sequence": None}

    def _blocks(self, said: tuple[str | Use, ...]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        if isinstance(said[0], Use):
            parts = [{"type": f"{name}_delta", name: self.thought[name]} for name in ("thinking", "signature")]
            yield {"type": "thinking", "thinking": "", "signature": ""}, parts
        for each in said:
            if isinstance(each, str):
                yield {"type": "text", "text": ""}, [{"type": "text_delta", "text": each}]
            else:
                begun = {"type": "tool_use", "id": each.id, "name": each.name, "input": {}}
                yield begun, [{"type": "input_json_delta", "partial_json": json.dumps(each.input)}]


class Chat(Format):
    """OpenAI's chat completions, with the reasoning of other servers."""

    style = "openai"
    usage: ClassVar[dict[str, Any]] = {
        "prompt_tokens": 1000,
        "completion_tokens": 20,
        "total_tokens": 1020,
        "prompt_tokens_details": {"cached_tokens": 400},
    }

    def plain(self, *said: str | Use) -> Reply:
        uses = [_call(each) for each in said if isinstance(each, Use)]
        text = "".join(each for each in said if isinstance(each, str))
        message = {"role": "assistant", "content": text or None, **({"tool_calls": uses} if uses else {})}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if uses else "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return Reply(body=json.dumps({**body, "usage": self.usage}).encode())

    def stream(self, *said: str | Use) -> Reply:
        deltas: list[dict[str, Any]] = []
        uses = [each for each in said if isinstance(each, Use)]
        if uses:
            deltas.append({"role": "assistant", "reasoning_content": THOUGHT})
        for at, use in enumerate(uses):
            call = _call(use)
            begun = {**call, "index": at, "function": {"name": use.name, "arguments": ""}}
            rest = {"index": at, "function": {"arguments": call["function"]["arguments"]}}
            deltas += [{"tool_calls": [begun]}, {"tool_calls": [rest]}]
        deltas += [{"role": "assistant", "content": each} for each in said if isinstance(each, str)]
        choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if uses else "stop"})
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        chunks = [{**chunk, "choices": [choice]} for choice in choices]
        return Reply(body=[event(each) for each in (*chunks, {**chunk, "choices": [], "usage": self.usage}, "[DONE]")])

    def results(self, call: Asked) -> dict[str, Any]:
        messages = call.payload["messages"]
        return {message["tool_call_id"]: message["content"] for message in messages if message["role"] == "tool"}


def _call(use: Use) -> dict[str, Any]:
    """Write a call of a tool as chat completions do."""
    function = {"name": use.name, "arguments": json.dumps(use.input)}
    return {"id": use.id, "type": "function", "function": function}


#: Runs a test on a provider of each format (`form`).
ON_BOTH = pytest.mark.parametrize("form", [Messages(), Chat()], ids=["anthropic", "openai"])
