"""The answers of chat completions as Anthropic's messages, whole and streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from core.json import parse_strictly, to_json
from inference.protocols.base import GIVEN_UP, Body, ProviderError, choices_in
from inference.protocols.events import DONE, END_OF_EVENT, BrokenStream, event_data, parse_event, server_sent
from inference.protocols.translation import DAMAGED
from inference.usage import NOTHING, Usage, anthropic_usage, is_count, parse_usage

#: Stop reasons; any other finish reason is one of other servers' names for `stop`. A stop sequence is not told apart.
STOP_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
    **dict.fromkeys(GIVEN_UP),
}
#: A text in JSON, and the one of a chunk's delta.
STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
IS_STRING = re.compile(STRING)
CONTENT = re.compile(rb'"content": ?(' + STRING + rb")")
#: OpenAI's padding of chunks, which makes them differ.
OBFUSCATION = re.compile(rb', ?"obfuscation": ?"\w*"')
#: How many chunks may be compared with the next ones, in a stream where no two are alike.
MOST_LESSONS = 3


def as_message(body: Body) -> Body:
    """Return a chat completion as a message; raises one of DAMAGED if it is none."""
    choice: Body = next(iter(body["choices"]), {})
    message, reason = choice["message"], choice.get("finish_reason")
    thinking, text = said(message)
    calls = message.get("tool_calls") or []
    own_id = message_id(body)
    content = [*thinking, *([{"type": "text", "text": text}] if text else [])]
    for at, call in enumerate(calls):
        content.append(tool_use(call, own_id, at) | {"input": parsed_input(call["function"], reason)})
    translated = {**empty_message(body, own_id), "content": content, "stop_reason": stop_reason(reason, bool(calls))}
    usage = usage_in(body, choice)
    return translated if usage is None else {**translated, "usage": anthropic_usage(usage)}


def message_id(body: Body) -> str:
    """Return a message's ID made from that of a chat completion."""
    return f"msg_{str(body.get('id') or uuid4().hex).removeprefix('chatcmpl-')}"


def empty_message(body: Body, own_id: str) -> Body:
    """Return the beginning of a message."""
    ending = {"stop_reason": None, "stop_sequence": None}
    model = str(body.get("model") or "")
    return {"id": own_id, "type": "message", "role": "assistant", "model": model, "content": [], **ending}


def said(message: Mapping[str, Any]) -> tuple[list[Body], str]:
    """Return the thinking blocks and the text of a message or a delta. Mistral has both as parts of the content."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content if part.get("type") == "text"]
        thoughts = [part["thinking"] for part in content if part.get("type") == "thinking"]
        reasoning = reasoning or "".join(each["text"] for thought in thoughts for each in thought if "text" in each)
        content = "".join(texts)
    thinking = [
        {"signature": "", **block} if block.get("type") == "thinking" else dict(block)
        for block in message.get("thinking_blocks") or []
        if block.get("type") in ("thinking", "redacted_thinking")
    ]
    if not thinking and isinstance(reasoning, str) and reasoning:
        thinking = [{"type": "thinking", "thinking": reasoning, "signature": ""}]
    text = (content or "") + (message.get("refusal") or "")
    return thinking, text


def tool_use(call: Mapping[str, Any], own_id: str, at: int) -> Body:
    """Return the block of a message's tool call without its input; raises ValueError if it has no name."""
    name = call["function"]["name"]
    if not name or not isinstance(name, str):
        raise ValueError("a tool call without a name")
    made = f"toolu_{own_id.removeprefix('msg_')}_{at}"
    return {"type": "tool_use", "id": call.get("id") or made, "name": name, "input": {}}


def arguments_of(function: Mapping[str, Any]) -> str:
    """Return a call's arguments, or a piece of them, as text: some servers send an object."""
    arguments = function.get("arguments")
    return arguments if isinstance(arguments, str) else to_json(arguments).decode() if arguments else ""


def parsed_input(function: Mapping[str, Any], reason: Any) -> Body:
    """Return a call's arguments; an empty object if there are none, or if the answer's maximum cut them off.

    Raises ValueError if they are no JSON object.
    """
    arguments = arguments_of(function)
    found = parsed_object(arguments) if arguments.strip() else {}
    if found is None and reason != "length":
        raise ValueError("arguments that are no JSON object")
    return found or {}


def parsed_object(text: str) -> Body | None:
    """Return a JSON object; None for anything else."""
    try:
        value = parse_strictly(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def stop_reason(reason: Any, calls: bool) -> str | None:
    """Return the stop reason; None if the answer was aborted or is not at its end.

    OpenAI's finish reason is `stop` if the caller named the tool; that of some servers always is.
    """
    if not isinstance(reason, str):
        return None
    found = STOP_REASONS.get(reason, "end_turn")
    return "tool_use" if calls and found == "end_turn" else found


def usage_in(body: Body, choice: Body) -> Usage | None:
    """Return the usage of an answer or a chunk: at the top, in the choice (Moonshot) or under x_groq (Groq)."""
    groq = body.get("x_groq")
    of_groq = groq.get("usage") if isinstance(groq, dict) else None
    for usage in (body.get("usage"), choice.get("usage"), of_groq):
        if usage is not None and (found := parse_usage(usage)) is not None:
            return found
    return None


# Streams


@dataclass(slots=True)
class Block:
    """A content block: its beginning, and the deltas that wait for it to be opened."""

    start: Body
    waiting: list[Body] = field(default_factory=list)
    #: The arguments of a tool's call so far. Other blocks are complete when another one follows.
    arguments: list[str] = field(default_factory=list)
    is_signed: bool = False

    @property
    def is_complete(self) -> bool:
        """Return whether no more of it can follow after other blocks."""
        return self.start["type"] != "tool_use" or parsed_object("".join(self.arguments)) is not None


class MessageWriter:
    """Writes the events of a message from the chunks of a chat completion.

    One block is open at a time. What follows a tool's call with incomplete arguments waits until the end, since servers
    may send the pieces of several calls in turn.
    """

    def __init__(self) -> None:
        self.is_done = False
        self._id = ""
        self._has_failed = False
        self._index = -1
        self._open: Block | None = None
        self._waiting: list[Block] = []
        self._calls: dict[int | None, Block] = {}
        self._number_of_calls = 0
        self._reason: Any = None
        self._usage: Usage | None = None
        self._usage_is_early = False
        #: What the chunks of the open text have in common, before their text and after it; empty if unknown.
        self._before = self._after = self._event = b""
        self._lessons = 0

    def read(self, events: bytes) -> Iterator[bytes]:
        """Yield what whole events of the provider become, in one piece.

        Raises BrokenStream or one of DAMAGED, after the part that is valid.
        """
        if b'"obfuscation"' in events:
            events = OBFUSCATION.sub(b"", events)
        written = bytearray()
        try:
            for event in events.split(END_OF_EVENT):
                if event and not self.is_done:
                    written += self._read(event)
        except (BrokenStream, *DAMAGED):
            if written:
                yield bytes(written)
            raise
        if written:
            yield bytes(written)

    def end(self) -> bytes:
        """Return the last events, from all that is known when the provider's stream ends.

        Without a finish reason, or with that of an aborted answer, the message does not end.
        """
        reason = stop_reason(self._reason, self._number_of_calls > 0)
        if not self._id or self._has_failed or (reason is None and self._usage is None):
            return b""
        written = self._close()
        for block in self._waiting:
            written += self._begin(block) + self._close()
        usage = self._usage or NOTHING
        if self._usage_is_early:  # the output that followed is unknown
            usage = replace(usage, output_tokens=0, reasoning_tokens=0)
        delta = {"stop_reason": reason, "stop_sequence": None}
        written += event_of("message_delta", delta=delta, usage=anthropic_usage(usage))
        if reason and (self.is_done or self._usage is not None):
            written += event_of("message_stop")
        return written

    def _read(self, event: bytes) -> bytes:
        if self._before and event.startswith(self._before) and event.endswith(self._after):
            begin, end = len(self._before), len(event) - len(self._after)
            if IS_STRING.fullmatch(event, begin, end):
                self._lessons = 0
                return self._event + event[begin:end] + b"}}" + END_OF_EVENT
        if self._has_failed:
            return event + END_OF_EVENT  # it may have the usage
        data = event_data(event)
        if data == DONE:
            if not self._id:
                raise BrokenStream("no choices")
            self.is_done = True
            return self.end()
        found = parse_event(event, data)
        if isinstance(found, ProviderError):
            self._has_failed, self._before = True, b""
            return event + END_OF_EVENT
        return self._chunk(event, found) if found else b""

    def _chunk(self, event: bytes, body: Body) -> bytes:
        choice = next(iter(choices_in(body)), {})
        usage = usage_in(body, choice)
        if usage is not None and (usage != NOTHING or self._usage is None):
            self._usage, self._usage_is_early = usage, False
        if not choice:
            return b""
        written = b"" if self._id else self._start(body)
        delta, reason = choice.get("delta") or {}, choice.get("finish_reason")
        self._reason = reason or self._reason
        thinking, text = said(delta)
        calls = delta.get("tool_calls") or []
        for thought in thinking:
            written += self._think(thought)
        if text:
            written += self._say({"type": "text", "text": ""}, {"type": "text_delta", "text": text})
        for call in calls:
            written += self._call(call)
        if usage is None and self._usage is not None and (thinking or text or calls):
            self._usage_is_early = True
        is_text = text and delta.get("content") == text and not (thinking or calls or reason)
        if is_text and self._usage is None and not self._waiting:
            self._learn(event, body, delta)
        else:
            self._before = b""
        return written

    def _learn(self, event: bytes, body: Body, delta: Body) -> None:
        """Note what surrounds a chunk's text: chunks that differ in nothing else need no parsing."""
        found = CONTENT.search(event)
        if found is None or self._lessons == MOST_LESSONS:
            return
        self._lessons += 1
        before, after = event[: found.start(1)], event[found.end(1) :]
        other = before + b'"?"' + after
        delta["content"] = "?"
        if parse_event(other, event_data(other)) == body:
            self._before, self._after = before, after
            example = event_of("content_block_delta", index=self._index, delta={"type": "text_delta", "text": ""})
            self._event = example.removesuffix(b'""}}' + END_OF_EVENT)

    def _start(self, body: Body) -> bytes:
        self._id = message_id(body)
        # zeros even if this chunk has a usage: its parts may be larger than those of the last one
        return event_of("message_start", message={**empty_message(body, self._id), "usage": anthropic_usage(NOTHING)})

    def _think(self, thought: Body) -> bytes:
        """Return the events of thinking, or of a piece of it; its signature comes last."""
        if thought["type"] == "redacted_thinking":
            return self._place(Block(thought))
        start = {"type": "thinking", "thinking": "", "signature": ""}
        written = b""
        if text := thought["thinking"]:
            written += self._say(start, {"type": "thinking_delta", "thinking": text})
        if signature := thought["signature"]:
            written += self._say(start, {"type": "signature_delta", "signature": signature})
        return written

    def _call(self, call: Body) -> bytes:
        """Return the events of a tool's call, or of a piece of it."""
        function, call_id = call.get("function") or {}, call.get("id")
        at = call["index"] if is_count(call.get("index")) else None
        block, written = self._calls.get(at), b""
        # some servers have no index, or the same one for all calls
        is_other = function.get("name") and block and (call_id != block.start["id"] if call_id else at is None)
        if block is None or is_other:
            block = self._calls[at] = Block(tool_use(call, self._id, self._number_of_calls))
            self._number_of_calls += 1
            written = self._place(block)
        arguments = arguments_of(function)
        if arguments and (block.arguments or arguments.strip()):
            block.arguments.append(arguments)
            written += self._put(block, {"type": "input_json_delta", "partial_json": arguments})
        return written

    def _say(self, start: Body, delta: Body) -> bytes:
        """Return the events of a delta of the last block if it has this beginning's type, otherwise of a new one."""
        block = self._waiting[-1] if self._waiting else self._open
        written = b""
        if block is None or block.start["type"] != start["type"] or block.is_signed:
            block = Block(start)
            written = self._place(block)
        block.is_signed = delta["type"] == "signature_delta"
        return written + self._put(block, delta)

    def _place(self, block: Block) -> bytes:
        """Open a new block, or let it wait."""
        if self._waiting or (self._open is not None and not self._open.is_complete):
            self._waiting.append(block)
            return b""
        return self._close() + self._begin(block)

    def _put(self, block: Block, delta: Body) -> bytes:
        """Return a delta of the open block, or keep that of one which waits."""
        if block is self._open:
            return event_of("content_block_delta", index=self._index, delta=delta)
        if not any(block is each for each in self._waiting):
            raise BrokenStream("more of a block that is complete")
        block.waiting.append(delta)
        return b""

    def _begin(self, block: Block) -> bytes:
        self._index += 1
        self._open = block
        written = event_of("content_block_start", index=self._index, content_block=block.start)
        return written + b"".join(self._put(block, delta) for delta in block.waiting)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open, self._before = None, b""
        return event_of("content_block_stop", index=self._index)


def event_of(kind: str, **fields: Any) -> bytes:
    """Return an event of Anthropic's."""
    return server_sent(kind, {"type": kind, **fields})
