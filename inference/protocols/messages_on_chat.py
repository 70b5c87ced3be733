"""Anthropic's messages on a provider that has OpenAI's chat completions.

Refused by name is what has no counterpart and would change the answer. Left out is what only concerns Anthropic's own
service: marks of the prompt cache, metadata, the clearing of old results. Reasoning of earlier turns is left out too,
since chat completions take none back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from core.json import to_json
from inference.protocols.base import Body, Payload
from inference.protocols.chat import chat_protocol
from inference.protocols.chat_as_message import MessageWriter, as_message
from inference.protocols.events import EventBuffer
from inference.protocols.parameters import refuse
from inference.protocols.translation import Translation, untranslatable

#: Between texts that become one.
PARAGRAPH = "\n\n"
#: In a tool's result, for an image of it.
IMAGE_BELOW = "(The image is in the next message.)"
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
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


class MessagesOnChat(Translation):
    """POST /v1/messages on a provider's chat completions."""

    target = chat_protocol
    fields = {
        "cache_control": "left out: providers with this format cache prompts by themselves",
        "context_management": "left out: it only saves input tokens",
        "diagnostics": "left out: only about Anthropic's prompt cache",
        "max_tokens": "the maximum of output tokens, under the deployment's name for it",
        "messages": "`messages`: images as `image_url`, tool calls as `tool_calls`, tool results as messages of the "
        "role `tool` (their images in the user message after them), documents of text and search results as text. "
        "Thinking is left out, since chat completions take no reasoning back, and so are the citations of earlier "
        "answers. PDFs, documents with citations, and an assistant's message at the end are refused",
        "metadata": "left out: only for Anthropic's own checks for abuse",
        "output_config": "`format`: `response_format`, strict; `effort`: `reasoning_effort`, where `max` is `xhigh`",
        "output_format": "`response_format`, strict",
        "service_tier": "left out",
        "stop_sequences": "`stop`; the answer's `stop_reason` is `end_turn` even if one of them ended it",
        "system": "the first message, of the role `system`",
        "temperature": "`temperature`",
        "thinking": "left out: the model decides how long it reasons; `output_config.effort` is passed on",
        "tool_choice": "`tool_choice`: `any` is `required`; `disable_parallel_tool_use`: `parallel_tool_calls`",
        "tools": "`tools` of the type `function`; Anthropic's own types (bash, text editor, computer, memory) are "
        "refused, as are `input_examples`. `defer_loading` is left out: the model gets all tools at once",
        "top_p": "`top_p`",
    }

    def is_neutral(self, name: str, value: object) -> bool:
        """Return whether a value is null, false or an empty list."""
        return value is None or value is False or value == []

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
        return {
            "messages": messages,
            **{name: given[name] for name in ("temperature", "top_p") if name in given},
            **{name: value for name, value in renamed.items() if value is not None},
        }

    def body(self, payload: Payload, body: Body) -> Body:
        """Return a chat completion as a message."""
        return as_message(body)

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
