"""OpenAI's responses on a provider that has chat completions: the first step towards one that has only messages.

Reasoning keeps what the provider needs to continue it: the item's `encrypted_content` is the JSON of the message's
`thinking_blocks`. That of another provider is left out, since nobody else can read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

from core.json import to_json
from inference.protocols.base import Body, Payload, ProviderError, choices_in
from inference.protocols.chat import chat_protocol
from inference.protocols.content import url_of
from inference.protocols.events import (
    DONE,
    END_OF_EVENT,
    BrokenStream,
    EventBuffer,
    event_data,
    parse_event,
    server_sent,
)
from inference.protocols.parameters import is_string, is_text, wrong_type
from inference.protocols.responses import new_response
from inference.protocols.translation import DAMAGED, Translation, untranslatable
from inference.usage import parse_usage, response_usage

#: Values besides null that mean nothing.
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "background": [False],
    "service_tier": ["auto", "default"],
    "store": [False],
    "top_logprobs": [0],
    "truncation": ["disabled"],
}
PASSED_ON = (
    "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "temperature", "top_p", "user",
)  # fmt: skip
#: Statuses by finish reason, as the reason why a response is incomplete; it is completed for any other.
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of the caller: `custom` takes a text, a function an object; it may belong to a namespace."""

    name: str
    is_custom: bool = False
    namespace: str = ""

    @property
    def flat_name(self) -> str:
        """The function's name in chat completions."""
        return f"{self.namespace}__{self.name}" if self.namespace else self.name


class ResponsesOnChat(Translation):
    """Responses on chat completions."""

    target = chat_protocol
    fields: Mapping[str, str] = {
        "client_metadata": "left out: Codex describes itself in it",
        "include": "left out: reasoning is always returned as `encrypted_content`",
        "input": "`messages`: texts and images, calls of functions and custom tools with their outputs, and reasoning "
        "that came from here. Other items are refused",
        "instructions": "the first message, of the role `system`",
        "max_output_tokens": "the maximum of output tokens",
        "max_tool_calls": "left out: it counts calls of tools that the provider runs",
        "metadata": "as in chat completions, and repeated in the response",
        "parallel_tool_calls": "as in chat completions",
        "prompt_cache_key": "as in chat completions",
        "reasoning": "`effort`: `reasoning_effort`; a summary is the reasoning itself, if the provider shows it",
        "safety_identifier": "as in chat completions",
        "stream_options": "left out: a stream always reports its usage",
        "temperature": "as in chat completions",
        "text": "`format`: `response_format`; `verbosity` as in chat completions",
        "tool_choice": "`tool_choice`; other values than a word, a function or a custom tool are refused",
        "tools": "functions, also those in namespaces. A custom tool is a function with a text. All others are refused",
        "top_p": "as in chat completions",
        "user": "as in chat completions",
    }

    def is_neutral(self, name: str, value: object) -> bool:
        """Accept OpenAI's default values."""
        return value is None or value in NEUTRAL.get(name, ())

    def payload(self, payload: Payload, *, model: str) -> Body:
        """Return the payload of a chat completion."""
        self.check(payload)
        begin = [{"role": "system", "content": payload["instructions"]}] if payload.get("instructions") else []
        body: Body = {"messages": [*begin, *messages_of(payload["input"])]}
        body |= {name: payload[name] for name in PASSED_ON if payload.get(name) is not None}
        tools = [translated for tool in translated_tools(payload) for translated in tool]
        if tools:
            body["tools"] = tools
        else:
            body.pop("parallel_tool_calls", None)
        if (choice := payload.get("tool_choice")) is not None and (tools or choice not in ("auto", "none")):
            body["tool_choice"] = tool_choice(choice)
        text, reasoning = payload.get("text") or {}, payload.get("reasoning") or {}
        for name, holder in (("text", text), ("reasoning", reasoning)):
            if not isinstance(holder, dict):
                wrong_type(name, "an object")
        shown = text.get("format") or {"type": "text"}
        if shown.get("type") == "json_schema":
            schema = {name: shown[name] for name in ("name", "schema", "strict", "description") if name in shown}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif shown.get("type") != "text":
            body["response_format"] = shown
        more = {"verbosity": text.get("verbosity"), "reasoning_effort": reasoning.get("effort")}
        return body | {name: value for name, value in more.items() if value is not None}

    def body(self, payload: Payload, body: Body) -> Body:
        """Return a chat completion as a response."""
        choice = body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        response = Response(payload, body)
        thinking, reasoning = message.get("thinking_blocks") or [], message.get("reasoning_content") or ""
        if thinking or reasoning:
            response.add(response.reasoning(reasoning, thinking))
        for kind in ("content", "refusal"):
            if message.get(kind):
                response.add(response.message(kind, message[kind]))
        for call in message.get("tool_calls") or []:
            response.add(response.call(call.get("id"), call["function"]["name"], call["function"]["arguments"]))
        return response.ended(reason, body.get("usage"))

    def events(self, payload: Payload, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks of a chat completion as the events of a response."""
        buffer, writer = EventBuffer(), ResponseWriter(payload)
        for piece in pieces:
            yield from writer.translate(buffer.add(piece))
        yield from writer.translate(buffer.end())
        yield from writer.end()


def messages_of(given: Any) -> list[Body]:
    """Return the messages of an input."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Body] = []

    def assistant(*, begins: Sequence[str] = ()) -> Body:
        """Return the assistant's message that an item belongs to; a new one if the last has one of the fields."""
        last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
        if last is None or any(last.get(name) for name in begins):
            messages.append(last := {"role": "assistant", "content": None})
        return last

    for at, item in enumerate(given):
        name, kind = f"input[{at}]", item.get("type", "message")
        if kind == "message" and item.get("role") == "assistant":
            texts = [part["text"] for part in parts_of(f"{name}.content", item.get("content"))]
            message = assistant(begins=["content", "tool_calls"])
            message["content"] = "".join(texts)
        elif kind == "message":
            messages.append({"role": item.get("role"), "content": parts_of(f"{name}.content", item.get("content"))})
        elif kind == "reasoning":
            if blocks := thinking_of(item):
                assistant(begins=["content", "tool_calls"]).setdefault("thinking_blocks", []).extend(blocks)
        elif kind in ("function_call", "custom_tool_call"):
            is_custom = kind == "custom_tool_call"
            tool = Tool(str(item.get("name")), is_custom, item.get("namespace") or "")
            arguments = to_json({"input": item.get("input")}).decode() if is_custom else item.get("arguments")
            function = {"name": tool.flat_name, "arguments": arguments}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            assistant().setdefault("tool_calls", []).append(call)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            content = parts_of(f"{name}.output", item.get("output"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
            untranslatable(f"{name}.type", "no such tool exists there")
    return messages


def parts_of(name: str, content: Any) -> list[Body]:
    """Return the parts of a message or of a tool's output."""
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content or []
    translated: list[Body] = []
    for number, part in enumerate(parts):
        place = f"{name}[{number}]"
        if part["type"] == "input_image":
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            translated.append({"type": "image_url", "image_url": {"url": url_of(part), **detail}})
        elif part["type"] == "encrypted_content":
            untranslatable(f"{place}.type")
        else:
            field = "refusal" if part["type"] == "refusal" else "text"
            is_string(f"{place}.{field}", part.get(field))
            translated.append({"type": "text", "text": part[field]})
    return translated


def thinking_of(item: Body) -> list[Body]:
    """Return the thinking blocks of a reasoning item; none if it is another provider's."""
    try:
        blocks = json.loads(item.get("encrypted_content") or "")
    except (ValueError, RecursionError, TypeError):
        return []
    return [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []


def translated_tools(payload: Payload) -> Iterator[list[Body]]:
    """Yield the functions that stand for each tool."""
    for at, tool in enumerate(payload.get("tools") or []):
        name, kind = f"tools[{at}]", tool.get("type")
        if kind == "namespace":
            inner = enumerate(tool.get("tools") or [])
            yield [function_of(f"{name}.tools[{number}]", each, str(tool.get("name"))) for number, each in inner]
        else:
            yield [function_of(name, tool)]


def function_of(name: str, tool: Body, namespace: str = "") -> Body:
    """Return a function or a custom tool as a function of chat completions."""
    if tool.get("type") not in ("function", "custom"):
        untranslatable(f"{name}.type", "no such tool exists there")
    is_text(f"{name}.name", tool.get("name"))
    function = {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
    if tool["type"] == "custom":
        shape = tool.get("format") or {}
        described = [tool.get("description"), shape.get("definition")] if isinstance(shape, dict) else []
        text = {"type": "string"}
        function = {
            "description": "\n\n".join(filter(None, described)),
            "parameters": {"type": "object", "properties": {"input": text}, "required": ["input"]},
        }
    return {"type": "function", "function": {"name": Tool(tool["name"], namespace=namespace).flat_name, **function}}


def tools_by_name(payload: Payload) -> dict[str, Tool]:
    """Return the caller's tools by the names of their functions."""
    found = []
    for tool in payload.get("tools") or []:
        if tool.get("type") == "namespace":
            found += [Tool(inner["name"], namespace=tool["name"]) for inner in tool.get("tools") or []]
        else:
            found.append(Tool(tool["name"], tool.get("type") == "custom"))
    return {tool.flat_name: tool for tool in found}


def tool_choice(choice: Any) -> Any:
    """Return which tools may or must be called."""
    if isinstance(choice, str):
        return choice
    if not isinstance(choice, dict) or choice.get("type") not in ("function", "custom"):
        untranslatable("tool_choice")
    tool = Tool(str(choice.get("name")), namespace=choice.get("namespace") or "")
    return {"type": "function", "function": {"name": tool.flat_name}}


class Response:
    """A response in the making; `labels` is the chat completion or its first chunk."""

    def __init__(self, payload: Payload, labels: Body) -> None:
        self.tail = str(labels.get("id") or uuid4().hex).removeprefix("chatcmpl-")
        self.begun = new_response(payload, str(labels.get("model") or "")) | {"id": f"resp_{self.tail}"}
        self.output: list[Body] = []
        self._tools = tools_by_name(payload)

    def add(self, item: Body) -> None:
        """Add an item."""
        self.output.append(item)

    def reasoning(self, text: str, blocks: Sequence[Body]) -> Body:
        """Return an item of reasoning."""
        summary = [{"type": "summary_text", "text": text}] if text else []
        kept = [{key: value for key, value in block.items() if key != "index"} for block in blocks]
        return self._item("rs", type="reasoning", summary=summary, encrypted_content=to_json(kept).decode())

    def message(self, kind: str, text: str) -> Body:
        """Return an item with a text; `kind` is `content` or `refusal`."""
        return self._item("msg", type="message", status="completed", role="assistant", content=[text_part(kind, text)])

    def call(self, call_id: str | None, name: str, arguments: str) -> Body:
        """Return an item with a call of a tool."""
        tool, given = self._tools.get(name, Tool(name)), arguments or "{}"
        namespace = {"namespace": tool.namespace} if tool.namespace else {}
        own_id = call_id or f"call_{self.tail}_{len(self.output)}"
        fields = {"status": "completed", "call_id": own_id, "name": tool.name}
        if tool.is_custom:
            return self._item("ctc", type="custom_tool_call", **fields, **namespace, input=custom_input(given))
        return self._item("fc", type="function_call", **fields, **namespace, arguments=given)

    def _item(self, prefix: str, **fields: Any) -> Body:
        return {"id": f"{prefix}_{self.tail}_{len(self.output)}", **fields}

    def ended(self, reason: Any, usage: Any) -> Body:
        """Return the whole response; the last item of an incomplete one is incomplete too."""
        why = INCOMPLETE.get(reason or "")
        if why and self.output and "status" in self.output[-1]:
            self.output[-1]["status"] = "incomplete"
        reported = parse_usage(usage)
        return {
            **self.begun,
            "status": "incomplete" if why else "completed",
            "incomplete_details": {"reason": why} if why else None,
            "output": self.output,
            "usage": None if reported is None else response_usage(reported),
        }


def text_part(kind: str, text: str) -> Body:
    """Return the part of a message's item: its content or a refusal."""
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def custom_input(arguments: str) -> str:
    """Return the text that a custom tool is called with; what is no object is the text itself."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = given.get("input") if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments


class ResponseWriter:
    """Writes the events of a response from the chunks of a chat completion."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._response: Response | None = None
        self._numbers = count()
        #: The item in progress: what it is (a tool's number, "content", "refusal", "reasoning"), and its pieces.
        self._kind: Any = None
        self._item: Body = {}
        self._pieces: list[str] = []
        self._blocks: list[Body] = []
        self._reason: str | None = None
        self._usage: Any = None
        self._is_done = False

    def translate(self, events: bytes) -> Iterator[bytes]:
        """Yield what becomes of whole events; raises BrokenStream after the valid part."""
        for event in filter(None, events.split(END_OF_EVENT)):
            if self._is_done:
                return
            try:
                yield from self._read(event)
            except DAMAGED as error:
                raise BrokenStream("no chunk") from error

    def end(self) -> Iterator[bytes]:
        """Yield the last event, if the answer has a finish reason."""
        if self._is_done or self._reason is None or self._response is None:
            return
        self._is_done = True
        whole = self._response.ended(self._reason, self._usage)
        yield self._event(whole["status"], response=whole)

    def _read(self, event: bytes) -> Iterator[bytes]:
        data = event_data(event)
        if data == DONE:
            yield from self.end()
            return
        found = parse_event(event, data)
        if isinstance(found, ProviderError):
            self._is_done = True
            yield event + END_OF_EVENT
            return
        if not found:
            return
        if self._response is None:
            self._response = Response(self._payload, found)
            for kind in ("created", "in_progress"):
                yield self._event(kind, response=self._response.begun)
        if found.get("usage") is not None:
            self._usage = found["usage"]
        for choice in choices_in(found)[:1]:
            yield from self._add(choice.get("delta") or {})
            if choice.get("finish_reason"):
                self._reason = choice["finish_reason"]
                yield from self._close(INCOMPLETE.get(self._reason or ""))

    def _event(self, kind: str, **fields: Any) -> bytes:
        kind = f"response.{kind}"
        return server_sent(kind, {"type": kind, "sequence_number": next(self._numbers), **fields})

    def _at(self) -> Body:
        assert self._response is not None  # noqa: S101  (_read makes it first)
        return {"item_id": self._item["id"], "output_index": len(self._response.output)}

    def _add(self, delta: Body) -> Iterator[bytes]:
        if text := delta.get("reasoning_content"):
            yield from self._begin("reasoning")
            yield self._event("reasoning_summary_text.delta", **self._at(), summary_index=0, delta=text)
            self._pieces.append(text)
        for block in delta.get("thinking_blocks") or []:
            yield from self._begin("reasoning", shows=bool(self._pieces and self._kind == "reasoning"))
            self._blocks.append(block)
        for kind, name in (("content", "output_text"), ("refusal", "refusal")):
            if text := delta.get(kind):
                yield from self._begin(kind)
                logprobs: Body = {"logprobs": []} if kind == "content" else {}
                yield self._event(f"{name}.delta", **self._at(), content_index=0, delta=text, **logprobs)
                self._pieces.append(text)
        for call in delta.get("tool_calls") or []:
            function = call.get("function") or {}
            yield from self._begin(call.get("index", 0), call=call)
            if piece := function.get("arguments"):
                self._pieces.append(piece)
                if self._item["type"] == "function_call":
                    yield self._event("function_call_arguments.delta", **self._at(), delta=piece)

    def _begin(self, kind: Any, *, shows: bool = True, call: Body | None = None) -> Iterator[bytes]:
        """Begin an item unless it is in progress; `shows`: reasoning has a text."""
        if kind == self._kind:
            return
        yield from self._close()
        response = self._response
        assert response is not None  # noqa: S101  (_read makes it first)
        self._kind = kind
        if call is not None:
            self._item = response.call(call.get("id"), call["function"]["name"], "")
            empty: Body = {"input": ""} if self._item["type"] == "custom_tool_call" else {"arguments": ""}
        elif kind == "reasoning":
            self._item, empty = response.reasoning("", []), {}
        else:
            self._item, empty = response.message(kind, ""), {"content": []}
        begun = {**self._item, **empty} | ({"status": "in_progress"} if "status" in self._item else {})
        yield self._event("output_item.added", output_index=len(response.output), item=begun)
        if kind == "reasoning" and shows:
            part = {"type": "summary_text", "text": ""}
            yield self._event("reasoning_summary_part.added", **self._at(), summary_index=0, part=part)
        elif kind in ("content", "refusal"):
            yield self._event("content_part.added", **self._at(), content_index=0, part=text_part(kind, ""))

    def _close(self, why: str | None = None) -> Iterator[bytes]:
        """End the item in progress, if there is one; `why`: the response ends with it, incomplete."""
        kind, response, at = self._kind, self._response, self._at() if self._kind is not None else {}
        if kind is None or response is None:
            return
        text, blocks, item = "".join(self._pieces), self._blocks, self._item
        self._kind, self._pieces, self._blocks = None, [], []
        if kind == "reasoning":
            item = response.reasoning(text, blocks)
            if text:
                part = item["summary"][0]
                yield self._event("reasoning_summary_text.done", **at, summary_index=0, text=text)
                yield self._event("reasoning_summary_part.done", **at, summary_index=0, part=part)
        elif kind in ("content", "refusal"):
            item = response.message(kind, text)
            done: Body = {"text": text, "logprobs": []} if kind == "content" else {"refusal": text}
            name = "output_text" if kind == "content" else "refusal"
            yield self._event(f"{name}.done", **at, content_index=0, **done)
            yield self._event("content_part.done", **at, content_index=0, part=item["content"][0])
        elif item["type"] == "custom_tool_call":
            item = {**item, "input": custom_input(text or "{}")}
            yield self._event("custom_tool_call_input.delta", **at, delta=item["input"])
            yield self._event("custom_tool_call_input.done", **at, input=item["input"])
        else:
            item = {**item, "arguments": text or "{}"}
            yield self._event("function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"])
        if why and "status" in item:
            item = {**item, "status": "incomplete"}
        response.add(item)
        yield self._event("output_item.done", output_index=at["output_index"], item=item)


responses_on_chat = ResponsesOnChat()
