"""OpenAI's chat completions on a provider that has only Anthropic's messages."""

from __future__ import annotations

import re
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from core.json import parse_strictly, to_json
from inference.protocols.base import Body, Payload, ProviderError
from inference.protocols.content import url_of
from inference.protocols.events import (
    DONE,
    END_OF_EVENT,
    BrokenStream,
    EventBuffer,
    event_data,
    parse_data,
    parse_event,
)
from inference.protocols.messages import messages_protocol
from inference.protocols.parameters import is_objects, is_string, is_text, of_type, one_of, refuse, wrong_type
from inference.protocols.translation import DAMAGED, Translation, untranslatable
from inference.usage import Usage, chat_usage, merged_usage, parse_usage

#: Values besides null that mean nothing.
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "n": [1],
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "logprobs": [False],
    "top_logprobs": [0],
    "logit_bias": [{}],
    "functions": [[]],
    "modalities": [["text"]],
    "service_tier": ["auto", "default"],
    "store": [False],
}
#: Fields of a message by its role. Those of tools may repeat the function's name.
MESSAGE_FIELDS: Mapping[str, Container[str]] = {
    "system": ("role", "content", "cache_control"),
    "developer": ("role", "content", "cache_control"),
    "user": ("role", "content", "cache_control"),
    "assistant": (
        "role", "content", "cache_control", "refusal", "tool_calls", "thinking_blocks", "reasoning_content",
        "reasoning",
    ),
    "tool": ("role", "content", "cache_control", "tool_call_id", "name"),
}  # fmt: skip
PART_FIELDS = ("type", "text", "refusal", "image_url", "cache_control", "prompt_cache_breakpoint")
FUNCTION_FIELDS = ("name", "description", "parameters", "strict", "cache_control")
THINKING = ("thinking", "redacted_thinking")
IMAGE = re.compile(r"data:image/(png|jpe?g|webp|gif);base64,", re.IGNORECASE)
#: What Anthropic does not accept in the id of a call.
NOT_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
#: Models that think with a budget; newer ones have an effort.
WITH_BUDGET = re.compile(r"claude-(?:3|(?:opus|sonnet|haiku)-4(?:$|[@:]|-20|[-.][015](?!\d)))", re.IGNORECASE)
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}
BUDGETS = {"low": 2048, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
TOOL_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
#: Chat completions' finish reasons; `stop` for all others.
FINISH_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
#: Beginning of the most frequent events.
DELTA = b"event: content_block_delta\n"


class ChatOnMessages(Translation):
    """Chat completions on messages."""

    target = messages_protocol
    fields: Mapping[str, str] = {
        "messages": (
            "`messages`; `system` and `developer` messages at the beginning are `system`, later ones are refused. "
            "Calls are `tool_use` blocks, `tool` messages `tool_result` blocks, `thinking_blocks` blocks of thinking. "
            "`cache_control` of a message or a part is kept. Left out: an image's `detail`, `prompt_cache_breakpoint`, "
            "`reasoning_content`. Refused: `name` (but of a tool), `function_call`, calls of custom tools"
        ),
        "max_completion_tokens": "`max_tokens`",
        "max_tokens": "`max_tokens`",
        "tools": "`tools`, with `parameters` as `input_schema`; `strict` and `cache_control` are kept",
        "tool_choice": "`tool_choice`: `required` is `any`, a function is `tool`; `allowed_tools` is refused",
        "parallel_tool_calls": "false is `tool_choice.disable_parallel_tool_use`",
        "stop": "`stop_sequences`",
        "temperature": "`temperature`; above 1 it is refused",
        "top_p": "`top_p`",
        "response_format": "`json_schema` is `output_config.format`; `json_object` is refused",
        "reasoning_effort": (
            "`none` and `minimal` disable `thinking`. Others: `thinking.budget_tokens` 2048 (`low`), 8192 (`medium`) "
            "or 24576 (above) for Claude up to 4.5, but nothing while results of tools are sent without the "
            "`thinking_blocks` of their calls, which such models require; for newer models adaptive thinking with "
            "`output_config.effort`, where `xhigh` is `max`"
        ),
        "safety_identifier": "`metadata.user_id`",
        "user": "`metadata.user_id`, unless `safety_identifier` is given",
        "metadata": "left out: it labels what OpenAI stores",
        "prompt_cache_key": "left out: it is of OpenAI's cache",
        "prompt_cache_options": "left out: it is of OpenAI's cache",
        "prompt_cache_retention": "left out: it is of OpenAI's cache",
        "verbosity": "left out: a hint that Anthropic's API has no place for",
        "stream_options": "read here: a stream reports its usage if `include_usage` is true",
    }

    def check(self, payload: Payload) -> None:
        """Recommend tools in place of functions."""
        for name in ("functions", "function_call"):
            if not self.is_neutral(name, payload.get(name)):
                refuse(f"'{name}' can't be translated: use 'tools'.", name, "unsupported_parameter")
        super().check(payload)

    def is_neutral(self, name: str, value: object) -> bool:
        """Accept OpenAI's default values."""
        return value is None or value in NEUTRAL.get(name, ())

    def payload(self, payload: Payload, *, model: str) -> Body:
        """Return the payload of a message."""
        self.check(payload)
        system, turns = split_messages(payload["messages"])
        body: Body = {"messages": turns}
        if any("cache_control" in block for block in system):
            body["system"] = system
        elif system:
            body["system"] = "\n\n".join(block["text"] for block in system)
        body |= tools_in(payload)
        if (payload.get("temperature") or 0) > 1:
            text = "Invalid 'temperature': this model's provider accepts values from 0 to 1."
            refuse(text, "temperature", "decimal_above_max_value")
        body |= {name: payload[name] for name in ("temperature", "top_p") if payload.get(name) is not None}
        if stop := payload.get("stop"):
            body["stop_sequences"] = stops = [stop] if isinstance(stop, str) else stop
            if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
                wrong_type("stop", "a string or an array of strings")
        for name in ("user", "safety_identifier"):
            if payload.get(name) is not None:
                is_string(name, payload[name])
                body["metadata"] = {"user_id": payload[name]}
        thinking, effort = thinking_of(payload.get("reasoning_effort"), model, turns)
        output = output_format(payload.get("response_format")) | effort
        return body | ({"thinking": thinking} if thinking else {}) | ({"output_config": output} if output else {})

    def body(self, payload: Payload, body: Body) -> Body:
        """Return a message as a chat completion."""
        blocks: Sequence[Body] = body["content"]
        texts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
        thoughts = [block for block in blocks if block["type"] in THINKING]
        thought = "".join(block["thinking"] for block in thoughts if block.get("thinking"))
        calls = [
            {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": text_of(block)}}
            for block in blocks
            if block["type"] == "tool_use"
        ]
        message: Body = {"role": "assistant", "content": "".join(texts) or None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if thought:
            message["reasoning_content"] = thought
        if thoughts:
            message["thinking_blocks"] = thoughts
        reason = FINISH_REASONS.get(body.get("stop_reason") or "", "stop")
        completion = {
            **labels(body, "chat.completion"),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        }
        usage = parse_usage(body.get("usage"))
        return completion if usage is None else {**completion, "usage": chat_usage(usage)}

    def events(self, payload: Payload, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the events of a message as chunks, with the usage in the last one, and `[DONE]`."""
        buffer, chunks = EventBuffer(), Chunks()
        for piece in pieces:
            yield from chunks.translate(buffer.add(piece))
        yield from chunks.translate(buffer.end())


class Chunks:
    """The chunks of a stream, made from the events of a message."""

    def __init__(self) -> None:
        #: A chunk up to its delta, and to its finish reason; nothing before the message starts.
        self._head = b""
        self._labels: Body = {}
        #: The provider's usage so far, and what the caller has of it.
        self._usage: Body = {}
        self._reported: Usage | None = None
        self._is_finished = self._is_done = False
        #: The blocks by their index: tools have their number, and `sent` once there are arguments.
        self._blocks: dict[Any, Body] = {}
        self._calls = self._thoughts = 0

    def translate(self, events: bytes) -> Iterator[bytes]:
        """Yield what becomes of whole events, all in one piece; raises BrokenStream after the valid part."""
        chunks: list[bytes] = []
        try:
            for event in filter(None, events.split(END_OF_EVENT)):
                if not self._is_done:
                    chunks += self._read(event)
        except (BrokenStream, *DAMAGED) as error:
            if chunks:
                yield b"".join(chunks)
            raise BrokenStream("no event of a message") from error
        if chunks:
            yield b"".join(chunks)

    def _read(self, event: bytes) -> Iterator[bytes]:
        data = event_data(event)
        if data == DONE:  # of some servers, after the end
            return
        found = parse_data(data) if event.startswith(DELTA) else parse_event(event, data)
        if isinstance(found, ProviderError):
            yield event + END_OF_EVENT
            return
        body = found or {}
        kind = body.get("type")
        if kind == "message_start":
            self._labels = labels(body["message"], "chat.completion.chunk")
            self._head = b"data: " + to_json(self._labels)[:-1] + b',"choices":[{"index":0,"delta":'
            self._usage = merged_usage(body["message"].get("usage"))
            yield self._chunk({"role": "assistant", "content": None})
        elif kind == "content_block_delta":
            yield from self._add(body["index"], body["delta"])
        elif kind == "content_block_start":
            yield from self._start(body["index"], body["content_block"])
        elif kind == "content_block_stop":
            yield from self._stop(body["index"])
        elif kind == "message_delta":
            self._usage = merged_usage(self._usage, body.get("usage"))
            reason = body["delta"].get("stop_reason")
            if reason or self._is_finished:
                yield from self._finish(reason)
        elif kind == "message_stop":
            self._is_done = True
            yield from self._finish(None)
            yield b"data: " + DONE + END_OF_EVENT

    def _chunk(self, delta: Body, reason: str | None = None) -> bytes:
        if not self._head:
            raise BrokenStream("no beginning")
        return self._head + to_json(delta) + b',"finish_reason":' + to_json(reason) + b"}]}\n\n"

    def _start(self, at: Any, block: Body) -> Iterator[bytes]:
        """Begin a block; some servers send all of it here."""
        self._blocks[at] = block
        if block["type"] == "tool_use":
            block["number"], self._calls = self._calls, self._calls + 1
            function = {"name": block["name"], "arguments": ""}
            call = {"index": block["number"], "id": block["id"], "type": "function", "function": function}
            yield self._chunk({"tool_calls": [call]})
        else:
            yield from self._add(at, {name: block[name] for name in ("text", "thinking") if block.get(name)})

    def _add(self, at: Any, delta: Body) -> Iterator[bytes]:
        """Add to a block: a text, a thought, its signature, or arguments."""
        if isinstance(text := delta.get("text"), str):
            if text:
                yield self._chunk({"content": text})
            return
        block = self._blocks.get(at, {})
        kind = block.get("type")
        if kind in THINKING:
            for name in ("thinking", "signature"):
                if isinstance(piece := delta.get(name), str):
                    block.setdefault("pieces", {}).setdefault(name, []).append(piece)
            if delta.get("thinking"):
                yield self._chunk({"reasoning_content": delta["thinking"]})
        elif kind == "tool_use" and delta.get("partial_json"):
            block["sent"] = True
            yield self._arguments(block, delta["partial_json"])

    def _arguments(self, block: Body, text: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": block["number"], "function": {"arguments": text}}]})

    def _stop(self, at: Any) -> Iterator[bytes]:
        """End a block: a thought is repeated with its signature, a call without arguments has an empty object."""
        block = self._blocks.pop(at, {})
        kind = block.get("type")
        if kind in THINKING:
            pieces = block.pop("pieces", {})
            whole = {**block, **{name: "".join(texts) for name, texts in pieces.items()}}
            yield self._chunk({"thinking_blocks": [{"index": self._thoughts, **whole}]})
            self._thoughts += 1
        elif kind == "tool_use" and not block.get("sent"):
            yield self._arguments(block, text_of(block))

    def _finish(self, reason: str | None) -> Iterator[bytes]:
        """End the choice, and report the usage, each once; some servers report more usage in another event."""
        if not self._is_finished:
            self._is_finished = True
            yield self._chunk({}, FINISH_REASONS.get(reason or "", "stop"))
        usage = parse_usage(self._usage)
        if usage is not None and usage != self._reported:
            self._reported = usage
            yield b"data: " + to_json({**self._labels, "choices": [], "usage": chat_usage(usage)}) + END_OF_EVENT


def labels(message: Body, kind: str) -> Body:
    """Return what a completion or its chunks begin with."""
    tail = str(message.get("id") or uuid4().hex).removeprefix("msg_")
    return {"id": f"chatcmpl-{tail}", "object": kind, "created": int(time.time()), "model": message.get("model")}


def text_of(block: Body) -> str:
    """Return the arguments of a call as JSON."""
    return to_json(block.get("input") or {}).decode()


def refuse_others(name: str, value: Body, known: Container[str]) -> None:
    """Raise InvalidRequest for a field that has no counterpart, unless it is empty."""
    for field in value:
        if field not in known and value[field]:
            untranslatable(f"{name}.{field[:100]}")


def split_messages(messages: Sequence[Body]) -> tuple[list[Body], list[Body]]:
    """Return the blocks of the system prompt, and the turns, each with all neighbouring messages of its role.

    So the results of parallel calls and what the user adds are in the message after the calls, as Anthropic requires.
    """
    system: list[Body] = []
    turns: list[Body] = []
    for at, message in enumerate(messages):
        name, role = f"messages[{at}]", message.get("role")
        one_of(*MESSAGE_FIELDS)(f"{name}.role", role)
        refuse_others(name, message, MESSAGE_FIELDS[str(role)])
        is_system = role in ("system", "developer")
        if is_system and turns:
            untranslatable(f"{name}.role", "system and developer messages must come first")
        blocks = blocks_of(f"{name}.content", message.get("content"), images=role in ("user", "tool"))
        if role == "assistant":
            blocks = assistant_blocks(name, message, blocks)
        elif role == "tool":
            is_text(f"{name}.tool_call_id", message.get("tool_call_id"))
            result = {"type": "tool_result", "tool_use_id": NOT_IN_ID.sub("_", message["tool_call_id"])}
            blocks = [{**result, "content": blocks} if blocks else result]
        if blocks and message.get("cache_control"):
            blocks[-1]["cache_control"] = message["cache_control"]
        turn = "assistant" if role == "assistant" else "user"
        if is_system:
            system += blocks
        elif turns and turns[-1]["role"] == turn:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": turn, "content": blocks})
    return system, turns


def thinking_of(effort: Any, model: str, turns: Sequence[Body]) -> tuple[Body, Body]:
    """Return the `thinking` and the `output_config` of a reasoning effort, each empty for the provider's default."""
    if effort is None:
        return {}, {}
    one_of("none", "minimal", *EFFORTS)("reasoning_effort", effort)
    if effort not in EFFORTS:
        return {"type": "disabled"}, {}
    if not WITH_BUDGET.search(model):
        return {"type": "adaptive"}, {"effort": EFFORTS[effort]}
    return {} if lacks_thoughts(turns) else {"type": "enabled", "budget_tokens": BUDGETS[effort]}, {}


def lacks_thoughts(turns: Sequence[Body]) -> bool:
    """Return whether the last turn has results of calls before which the caller left out the model's thoughts."""
    if len(turns) < 2:
        return False
    call, result = turns[-2]["content"][0], turns[-1]["content"][0]
    return bool(result["type"] == "tool_result" and call["type"] not in THINKING)


def blocks_of(name: str, content: Any, *, images: bool) -> list[Body]:
    """Return the blocks of a message's content, without empty texts, which Anthropic refuses."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    blocks: list[Body] = []
    for number, part in enumerate(parts):
        place, kind = f"{name}[{number}]", part["type"]
        refuse_others(place, part, PART_FIELDS)
        if kind == "image_url":
            if not images:
                untranslatable(place, "only users and tools send images")
            block = {"type": "image", "source": image_source(f"{place}.image_url", url_of(part))}
        else:
            is_string(f"{place}.{kind}", part.get(kind))
            if not part[kind].strip():
                continue
            block = {"type": "text", "text": part[kind]}
        if part.get("cache_control"):
            block["cache_control"] = part["cache_control"]
        blocks.append(block)
    return blocks


def image_source(name: str, url: str) -> Body:
    """Return the source of an image's block."""
    if not url.lower().startswith("data:"):
        return {"type": "url", "url": url}
    header = IMAGE.match(url)
    if header is None:
        refuse(f"Invalid image in '{name}': expected PNG, JPEG, WebP or GIF.", name, "invalid_image_url")
    kind = header[1].lower().replace("jpg", "jpeg")
    return {"type": "base64", "media_type": f"image/{kind}", "data": url[header.end() :]}


def assistant_blocks(name: str, message: Body, texts: list[Body]) -> list[Body]:
    """Return the blocks of an assistant's message: thoughts, texts, calls."""
    thoughts, calls = message.get("thinking_blocks") or [], message.get("tool_calls") or []
    is_objects(f"{name}.thinking_blocks", thoughts)
    for number, thought in enumerate(thoughts):
        one_of(*THINKING)(f"{name}.thinking_blocks[{number}].type", thought.get("type"))
    if message.get("refusal"):
        texts = [*texts, *blocks_of(f"{name}.refusal", message["refusal"], images=False)]
    is_objects(f"{name}.tool_calls", calls)
    return [
        *({key: value for key, value in thought.items() if key != "index"} for thought in thoughts),
        *texts,
        *(call_block(f"{name}.tool_calls[{number}]", call) for number, call in enumerate(calls)),
    ]


def call_block(name: str, call: Body) -> Body:
    """Return the block of an assistant's call of a function."""
    if call.get("type", "function") != "function":
        untranslatable(f"{name}.type", "only functions can be called")
    function = call.get("function")
    if not isinstance(function, dict):
        wrong_type(f"{name}.function", "an object")
    is_text(f"{name}.id", call.get("id"))
    is_text(f"{name}.function.name", function.get("name"))
    arguments, place = function.get("arguments") or "{}", f"{name}.function.arguments"
    is_string(place, arguments)
    try:
        given = parse_strictly(arguments if arguments.strip() else "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        refuse(f"Invalid '{place}': expected a JSON object.", place, "invalid_value")
    return {"type": "tool_use", "id": NOT_IN_ID.sub("_", call["id"]), "name": function["name"], "input": given}


def tools_in(payload: Payload) -> Body:
    """Return the tools and which of them must be called; nothing without tools."""
    tools = payload.get("tools") or []
    choice = tool_choice(payload.get("tool_choice"))
    if not tools:
        return {"tool_choice": choice} if choice.get("type") in ("any", "tool") else {}
    parallel = payload.get("parallel_tool_calls")
    if parallel is not None:
        of_type(bool, "a boolean")("parallel_tool_calls", parallel)
    if parallel is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    translated = [tool_of(f"tools[{number}]", tool) for number, tool in enumerate(tools)]
    return {"tools": translated, **({"tool_choice": choice} if choice else {})}


def tool_choice(choice: Any) -> Body:
    """Return the `tool_choice`; empty without one."""
    if choice is None:
        return {}
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        is_text("tool_choice.function.name", name)
        return {"type": "tool", "name": name}
    if isinstance(choice, dict):
        untranslatable("tool_choice", "it can be a function, or one of auto, required and none")
    one_of(*TOOL_CHOICES)("tool_choice", choice)
    return {"type": TOOL_CHOICES[choice]}


def tool_of(name: str, tool: Body) -> Body:
    """Return a function as a tool."""
    function = tool.get("function")
    if tool["type"] != "function":
        untranslatable(f"{name}.type", "tools must be functions")
    if not isinstance(function, dict):
        wrong_type(f"{name}.function", "an object")
    refuse_others(name, tool, ("type", "function", "cache_control"))
    refuse_others(f"{name}.function", function, FUNCTION_FIELDS)
    is_text(f"{name}.function.name", function.get("name"))
    parameters = function.get("parameters") or {"properties": {}}
    if not isinstance(parameters, dict):
        wrong_type(f"{name}.function.parameters", "an object")
    translated = {"name": function["name"], "input_schema": {"type": "object", **parameters}}
    cache_control = tool.get("cache_control") or function.get("cache_control")
    more = {
        "description": function.get("description"),
        "strict": function.get("strict"),
        "cache_control": cache_control,
    }
    return translated | {name: value for name, value in more.items() if value}


def output_format(wanted: Any) -> Body:
    """Return the `output_config` of a format of the output; empty for text."""
    if wanted is None:
        return {}
    if not isinstance(wanted, dict):
        wrong_type("response_format", "an object")
    kind, place = wanted.get("type"), "response_format.type"
    if kind == "json_object":
        untranslatable(place, "use json_schema")
    one_of("text", "json_schema")(place, kind)
    if kind == "text":
        return {}
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(schema, dict):
        wrong_type("response_format.json_schema.schema", "an object")
    if described.get("description"):
        schema = {"description": described["description"], **schema}
    return {"format": {"type": "json_schema", "schema": schema}}


chat_on_messages = ChatOnMessages()
