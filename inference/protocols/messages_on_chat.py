"""Anthropic's messages on a provider that has OpenAI's chat completions.

Refused by name is what has no counterpart and would change the answer. Left out is what only concerns Anthropic's own
service: marks of the prompt cache, metadata, the clearing of old results. Reasoning of earlier turns is left out too,
since chat completions take none back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn
from uuid import uuid4

from core.json import parse_strictly, to_json
from inference.protocols.base import GIVEN_UP, Body, Payload, ProviderError, choices_in
from inference.protocols.chat import chat_protocol
from inference.protocols.events import (
    DONE,
    END_OF_EVENT,
    BrokenStream,
    EventBuffer,
    event_data,
    parse_event,
    server_sent,
)
from inference.protocols.parameters import refuse
from inference.protocols.translation import Translation
from inference.usage import NOTHING, Usage, anthropic_usage, is_count, parse_usage

#: Between texts that become one.
PARAGRAPH = "\n\n"
#: In a tool's result, for an image of it.
IMAGE_BELOW = "(The image is in the next message.)"
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
#: Values that are the same as no parameter.
NEUTRAL: Mapping[str, Any] = {"mcp_servers": [], "speed": "standard"}
#: Fields of content blocks and other objects that are translated, or that mean nothing to another provider.
KNOWN: Mapping[str, Sequence[str]] = {
    "message": ("role", "content"),
    "text": ("text", "citations"),
    "image": ("source",),
    "document": ("source", "title", "context", "citations"),
    "search_result": ("source", "title", "content", "citations"),
    "tool_use": ("id", "name", "input", "caller"),
    "tool_result": ("tool_use_id", "content", "is_error"),
    "tool_reference": ("tool_name",),
    "tool": ("name", "description", "input_schema", "strict", "defer_loading", "eager_input_streaming"),
    "tool_choice": ("name", "disable_parallel_tool_use"),
    "output_config": ("format", "effort"),
}
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
#: How many chunks may be compared with the next ones, in a stream where no two are alike.
MOST_LESSONS = 3


class MessagesOnChat(Translation):
    """POST /v1/messages on a provider's chat completions."""

    target = chat_protocol
    fields = {
        "cache_control": "left out: providers with this format cache prompts by themselves",
        "context_management": "left out: `clear_*` edits only save input tokens; others are refused",
        "max_tokens": "the maximum of output tokens, under the deployment's name for it",
        "messages": "`messages`: images as `image_url`, tool calls as `tool_calls`, tool results as messages of the "
        "role `tool` (their images in the user message after them), documents of text and search results as text. "
        "Thinking is left out, since chat completions take no reasoning back. PDFs, citations and an answer that the "
        "last message begins are refused",
        "metadata": "left out: only for Anthropic's own checks for abuse",
        "output_config": "`format`: `response_format`, strict; `effort`: `reasoning_effort`, where `max` is `xhigh`",
        "output_format": "`response_format`, strict",
        "service_tier": "left out: `auto` and `standard_only`; others are refused",
        "stop_sequences": "`stop`; the answer's `stop_reason` is `end_turn` even if one of them ended it",
        "system": "the first message, of the role `system`",
        "temperature": "`temperature`",
        "thinking": "left out: the model decides how long it reasons; `output_config.effort` is passed on",
        "tool_choice": "`tool_choice`: `any` is `required`; `disable_parallel_tool_use`: `parallel_tool_calls`",
        "tools": "`tools` of the type `function`; Anthropic's own types (bash, text editor, computer, memory) are "
        "refused. `defer_loading` is left out: the model gets all tools at once",
        "top_p": "`top_p`",
    }

    def is_neutral(self, name: str, value: object) -> bool:
        """Return whether a value is null or Anthropic's default."""
        return value is None or (name in NEUTRAL and value == NEUTRAL[name])

    def payload(self, payload: Payload, *, model: str) -> Body:
        """Return the payload of a chat completion; raises InvalidRequest."""
        self.check(payload)
        given = {name: value for name, value in payload.items() if value is not None}
        messages: list[Body] = []
        if given.get("system"):
            with reading("system"):
                messages.append({"role": "system", "content": joined(blocks_of("system", given["system"]))})
        for at, message in enumerate(given["messages"]):
            with reading(f"messages[{at}]"):
                messages += translated_message(f"messages[{at}]", message)
        if messages[-1]["role"] == "assistant":
            place = f"messages[{len(given['messages']) - 1}]"
            untranslatable(place, "the last message can't be the assistant's")
        renamed = {"stop": given.get("stop_sequences") or None, **translated_tools(given), **translated_output(given)}
        check_left_out(given)
        return {
            "messages": messages,
            **{name: given[name] for name in ("temperature", "top_p") if name in given},
            **{name: value for name, value in renamed.items() if value is not None},
        }

    def body(self, payload: Payload, body: Body) -> Body:
        """Return a chat completion as a message."""
        choice = body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        thinking, text = said(message)
        calls = message.get("tool_calls") or []
        own_id = message_id(body)
        content = [*thinking, *([{"type": "text", "text": text}] if text else [])]
        for at, call in enumerate(calls):
            content.append(tool_use(call, own_id, at) | {"input": parsed_input(call["function"], reason)})
        translated = {
            **empty_message(body, own_id),
            "content": content,
            "stop_reason": stop_reason(reason, bool(calls)),
        }
        usage = usage_in(body, choice)
        return translated if usage is None else {**translated, "usage": anthropic_usage(usage)}

    def events(self, payload: Payload, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks of a chat completion as the events of a message."""
        buffer, writer = EventBuffer(), MessageWriter()
        for piece in pieces:
            yield from writer.read(buffer.add(piece))
            if writer.is_done:
                return
        yield from writer.read(buffer.end())
        if not writer.is_done and (ending := writer.end()):
            yield ending


messages_on_chat = MessagesOnChat()


# Requests


def untranslatable(place: str, why: str = "") -> NoReturn:
    """Raise InvalidRequest for what is at a place of the payload and has no counterpart in chat completions."""
    text = f"'{place}' can't be translated for this model's provider{': ' if why else ''}{why}."
    refuse(text, place, "unsupported_parameter")


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Raise InvalidRequest with the place if a part of the payload lacks a field or has one of another type."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError):
        refuse(f"Invalid '{place}'.", place, "invalid_value")


def check_fields(place: str, value: Mapping[str, Any], kind: str) -> None:
    """Raise InvalidRequest for a field that would be lost; `kind` is a key of KNOWN."""
    for name, each in value.items():
        if name not in (*KNOWN[kind], "type", "cache_control") and each is not None:
            untranslatable(f"{place}.{name[:100]}")


def check_left_out(given: Payload) -> None:
    """Raise InvalidRequest for what may be left out, but not with this value."""
    if given.get("service_tier", "auto") not in ("auto", "standard_only"):
        untranslatable("service_tier")
    with reading("context_management"):
        for at, edit in enumerate((given.get("context_management") or {}).get("edits") or []):
            if not edit["type"].startswith("clear_"):
                untranslatable(f"context_management.edits[{at}]")


def translated_message(place: str, message: Mapping[str, Any]) -> list[Body]:
    """Return a message as those of chat completions: the results of tools first, each as a message of its own."""
    check_fields(place, message, "message")
    role, content = message["role"], f"{place}.content"
    if role == "assistant":
        return [translated_answer(content, message["content"])]
    if role == "system":
        return [{"role": role, "content": joined(blocks_of(content, message["content"]))}]
    if role != "user":
        refuse(f"Invalid '{place}.role'.", f"{place}.role", "invalid_value")
    results: list[Body] = []
    images: list[Body] = []
    parts: list[Body] = []
    for at, block in blocks_of(content, message["content"]):
        if block["type"] != "tool_result":
            parts += parts_of(at, block)
            continue
        check_fields(at, block, "tool_result")
        inner = [part for each in blocks_of(f"{at}.content", block.get("content") or []) for part in parts_of(*each)]
        images += (part for part in inner if part["type"] == "image_url")
        text = PARAGRAPH.join(part.get("text", IMAGE_BELOW) for part in inner)
        if block.get("is_error") and not text.startswith("Error: "):
            text = f"Error: {text}"
        results.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
    parts = images + parts
    is_text = not parts or (len(parts) == 1 and parts[0]["type"] == "text")
    asked: Any = "".join(part["text"] for part in parts) if is_text else parts
    return [*results, {"role": "user", "content": asked}] if parts or not results else results


def translated_answer(place: str, content: Any) -> Body:
    """Return an assistant's message. Its texts are parts of one text, which citations and thinking split."""
    texts: list[str] = []
    calls: list[Body] = []
    for at, block in blocks_of(place, content):
        if block["type"] in ("thinking", "redacted_thinking"):
            continue
        if block["type"] not in ("text", "tool_use"):
            untranslatable(f"{at}.type")
        check_fields(at, block, block["type"])
        if block["type"] == "text":
            texts.append(block["text"])
        else:
            function = {"name": block["name"], "arguments": to_json(block["input"]).decode()}
            calls.append({"id": block["id"], "type": "function", "function": function})
    text = "".join(texts)
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def blocks_of(place: str, content: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return content's blocks with their places; a text is a block."""
    if isinstance(content, str):
        return [(place, {"type": "text", "text": content})]
    return [(f"{place}[{at}]", block) for at, block in enumerate(content)]


def joined(blocks: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the paragraphs of blocks that may be texts only."""
    texts = []
    for at, block in blocks:
        if block["type"] != "text":
            untranslatable(f"{at}.type")
        check_fields(at, block, "text")
        texts.append(block["text"])
    return PARAGRAPH.join(texts)


def parts_of(place: str, block: Mapping[str, Any]) -> list[Body]:
    """Return a block of a user or of a tool's result as parts: a text, an image, or a document's texts and images."""
    kind = block["type"]
    if kind not in ("text", "image", "document", "search_result", "tool_reference"):
        untranslatable(f"{place}.type")
    check_fields(place, block, kind)
    if kind == "text":
        return [text_part(block["text"])]
    if kind == "tool_reference":
        return [text_part(block["tool_name"])]
    source = block["source"]
    if kind == "image":
        if source["type"] not in ("base64", "url"):
            untranslatable(f"{place}.source.type")
        is_data = source["type"] == "base64"
        url = f"data:{source['media_type']};base64,{source['data']}" if is_data else source["url"]
        return [{"type": "image_url", "image_url": {"url": url}}]
    if (block.get("citations") or {}).get("enabled"):
        untranslatable(f"{place}.citations", "its answers have none")
    if kind == "search_result":
        heading, inside, content = [block["title"], source], f"{place}.content", block["content"]
    elif source["type"] not in ("text", "content"):
        untranslatable(place, "only documents of text can")
    else:
        heading, inside = [block.get("title"), block.get("context")], f"{place}.source.content"
        content = source["data"] if source["type"] == "text" else source["content"]
    parts = [text_part(text) for text in heading if text]
    for at, each in blocks_of(inside, content):
        if each["type"] not in ("text", "image"):
            untranslatable(f"{at}.type")
        parts += parts_of(at, each)
    if all(part["type"] == "text" for part in parts):
        return [text_part(PARAGRAPH.join(part["text"] for part in parts))]
    return parts


def text_part(text: str) -> Body:
    """Return a part with a text."""
    return {"type": "text", "text": text}


def translated_tools(given: Payload) -> Body:
    """Return `tools`, `tool_choice` and `parallel_tool_calls`."""
    functions = []
    for at, tool in enumerate(given.get("tools") or []):
        place = f"tools[{at}]"
        with reading(place):
            if tool.get("type") not in (None, "custom"):
                untranslatable(f"{place}.type", "only tools with an `input_schema` of their own can")
            check_fields(place, {**tool, "allowed_callers": other_callers(tool)}, "tool")
            function = {"name": tool["name"], "description": tool.get("description")}
            function |= {"parameters": tool["input_schema"], "strict": tool.get("strict")}
            kept = {name: value for name, value in function.items() if value is not None}
            functions.append({"type": "function", "function": kept})
    translated: Body = {"tools": functions or None}
    if choice := given.get("tool_choice"):
        with reading("tool_choice"):
            check_fields("tool_choice", choice, "tool_choice")
            kind = choice["type"]
            named = {"type": "function", "function": {"name": choice["name"]}} if kind == "tool" else None
            # without tools, OpenAI refuses even what chooses none of them
            if functions or kind not in ("auto", "none"):
                translated["tool_choice"] = named or TOOL_CHOICES[kind]
            if functions and choice.get("disable_parallel_tool_use"):
                translated["parallel_tool_calls"] = False
    return translated


def other_callers(tool: Mapping[str, Any]) -> Any:
    """Return a tool's `allowed_callers` unless it is only the model itself."""
    callers = tool.get("allowed_callers")
    return None if callers == ["direct"] else callers


def translated_output(given: Payload) -> Body:
    """Return `response_format` and `reasoning_effort`."""
    with reading("output_config"):
        config = given.get("output_config") or {}
        check_fields("output_config", config, "output_config")
        effort = config.get("effort")
        if effort is not None and effort not in EFFORTS:
            untranslatable("output_config.effort")
        effort = EFFORTS[effort] if effort else None
        wanted, place = config.get("format"), "output_config.format"
    with reading("output_format"):
        if wanted is None:
            wanted, place = given.get("output_format"), "output_format"
        if wanted is None:
            return {"reasoning_effort": effort}
        if wanted["type"] != "json_schema":
            untranslatable(f"{place}.type")
        schema = {"name": "answer", "strict": True, "schema": wanted["schema"]}
        form = {"type": "json_schema", "json_schema": schema}
        return {"reasoning_effort": effort, "response_format": form}


# Answers


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
    if reason is None:
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
        """Yield what the provider's whole events become, in one piece; raises BrokenStream after the valid part."""
        written, broken = bytearray(), None
        try:
            for event in events.split(END_OF_EVENT):
                if event and not self.is_done:
                    written += self._read(event)
        except BrokenStream as error:
            broken = error
        except (KeyError, TypeError, ValueError, AttributeError):
            broken = BrokenStream("no chunk")
        if written:
            yield bytes(written)
        if broken is not None:
            raise broken

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
        usage = {"input_tokens": 0, "output_tokens": 0} if self._usage is None else anthropic_usage(self._usage)
        return event_of("message_start", message={**empty_message(body, self._id), "usage": usage})

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
