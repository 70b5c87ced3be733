"""The protocol of Anthropic's POST /messages (https://docs.anthropic.com/en/api/messages)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.json import to_json
from inference.catalog import CatalogModel
from inference.protocols.base import (
    PART_OVERHEAD,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    WireProtocol,
    count_tokens,
    json_bytes,
)
from inference.protocols.content import (
    IMAGE_ESTIMATE,
    IMAGE_TOKENS,
    check_public_url,
    content_estimate,
    part_of,
    refuse_media,
    refuse_unknown_spelling,
    text_or,
    texts_in,
)
from inference.protocols.events import END_OF_EVENT, EventReader
from inference.protocols.parameters import (
    ANSWER_NAMES,
    MISSING,
    MOST_OUTPUT,
    OUTPUT_NAMES,
    REFUSED,
    SAMPLING,
    Check,
    is_list_of_objects,
    is_objects,
    is_string,
    number,
    of_type,
    one_of,
    others,
    refuse,
    unsupported,
    wrong_type,
)
from inference.usage import NOTHING, Usage, merged_usage, parse_usage

#: Content blocks that are accepted. The others are of other tools that the provider runs, or files stored there.
BLOCKS = (
    "text", "image", "document", "search_result", "tool_use", "tool_result", "tool_reference", "thinking",
    "redacted_thinking", "server_tool_use", "web_search_tool_result", "web_search_result",
    "web_search_tool_result_error",
)  # fmt: skip
#: Blocks whose tokens nobody has counted: PDFs, and encrypted results of a search.
UNCOUNTED = ("document", "web_search_tool_result")
#: The web search that the provider runs. Later versions also run code, as often as the model likes.
WEB_SEARCH = "web_search_20250305"
#: Most web searches that a request may allow.
MOST_SEARCHES = 100
#: Types of tools that the caller runs and that the provider describes to the model: their names without the date.
CLIENT_TOOLS = ("bash", "text_editor", "computer", "memory")
#: Most tokens of such a description; Anthropic documents at most 735, and the image size of a computer's.
CLIENT_TOOL_TOKENS = 5_000
#: Edits that only leave out parts of the prompt. A compaction writes text, which is billed.
EDITS = ("clear_tool_uses", "clear_thinking")
#: Sources of images and documents, and the media types of those in base64.
SOURCES = {"image": ("base64", "url"), "document": ("base64", "url", "text", "content")}
MEDIA_TYPES = {
    "image": ("image/jpeg", "image/png", "image/gif", "image/webp"),
    "document": ("application/pdf",),
}
#: Estimated tokens of a PDF whose pages nobody has counted.
PDF_ESTIMATE = 3_000
#: The least budget of thinking that Anthropic accepts.
LEAST_THINKING = 1024
#: Reasons of a complete answer. Others: `refusal`, `pause_turn`.
FINISHED = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded")
#: Fields of a block that the model did not write.
LABELS = ("type", "id", "signature", "tool_use_id", "media_type", "encrypted_content", "citations")


def check_source(name: str, kind: str, source: Any) -> None:
    """Accept the source of an image or a document: data, a public URL, or text."""
    if not isinstance(source, dict):
        wrong_type(name, "an object")
    refuse_unknown_spelling(name, source)
    given, place = source.get("type"), f"{name}.type"
    if given not in SOURCES[kind]:
        known = ", ".join(f"'{each}'" for each in SOURCES[kind])
        refuse(f"Invalid value for '{place}': supported here are {known}.", place, "invalid_value")
    if given == "base64":
        one_of(*MEDIA_TYPES[kind])(f"{name}.media_type", source.get("media_type"))
        is_string(f"{name}.data", source.get("data"))
    elif given == "url":
        check_public_url(f"{name}.url", source.get("url"))
    elif given == "content":
        text_or(check_block)(f"{name}.content", source.get("content"))


def check_block(name: str, block: Any) -> None:
    """Accept a content block of a known type, and the blocks in it."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in BLOCKS:
        known = ", ".join(f"'{each}'" for each in BLOCKS)
        refuse(f"Invalid value for '{name}.type': supported here are {known}.", f"{name}.type", "invalid_value")
    refuse_media(name, block)
    if kind in SOURCES:
        check_source(f"{name}.source", kind, block.get("source"))
    content = block.get("content")
    if kind == "server_tool_use":
        one_of("web_search")(f"{name}.name", block.get("name"))
    elif kind == "web_search_tool_result" and isinstance(content, dict):
        content = [content]  # an error
    text_or(check_block)(f"{name}.content", content)


def check_messages(name: str, messages: Any) -> None:
    """Accept messages whose content can be bounded."""
    is_list_of_objects(name, messages)
    for at, message in enumerate(messages):
        text_or(check_block)(f"{name}[{at}].content", message.get("content"))
        refuse_media(f"{name}[{at}]", message)


def check_tools(name: str, tools: Any) -> None:
    """Accept tools that the caller runs."""
    is_objects(name, tools)
    for at, tool in enumerate(tools):
        refuse_unknown_spelling(f"{name}[{at}]", tool)
        kind = tool.get("type", "custom")
        if kind == WEB_SEARCH:
            check_uses(f"{name}[{at}].max_uses", tool.get("max_uses"))
        elif kind != "custom" and client_tool(kind) is None:
            place, known = f"{name}[{at}].type", ", ".join(f"'{each}_...'" for each in CLIENT_TOOLS)
            text = f"'{str(kind)[:100]}'. Supported here are '{WEB_SEARCH}' and tools that the caller runs: 'custom'"
            refuse(f"Invalid value for '{place}': {text}, {known}.", place, "invalid_value")


def check_uses(name: str, value: Any) -> None:
    """Require the most web searches, without which their cost has no bound."""
    if value is None:
        refuse(f"Missing required parameter: '{name}'. It bounds what the searches cost.", name, MISSING)
    number(1, MOST_SEARCHES)(name, value)


def client_tool(kind: Any) -> str | None:
    """Return the name of a tool's type without its date, if the caller runs such tools; None otherwise."""
    name = kind.rpartition("_")[0] if isinstance(kind, str) else ""
    return name if name in CLIENT_TOOLS else None


def check_edits(name: str, value: Any) -> None:
    """Accept edits of the prompt that only leave out parts of it."""
    of_type(dict, "an object")(name, value)
    edits = value.get("edits")
    is_objects(f"{name}.edits", edits or [])
    for at, edit in enumerate(edits or []):
        kind, place = edit.get("type"), f"{name}.edits[{at}].type"
        if not isinstance(kind, str) or kind.rpartition("_")[0] not in EDITS:
            text = f"Unsupported edit in '{place}': text that the provider writes for it is billed as well."
            refuse(text, place, "unsupported_parameter")
    if unknown := next((each for each in value if each != "edits"), None):
        place = f"{name}.{unknown[:100]}"
        refuse(f"Unknown parameter: '{place}'.", place, "unknown_parameter")


class MessagesProtocol(WireProtocol):
    """Messages. The maximum of output tokens is required."""

    path = "/messages"
    prompt_parameter = "messages"
    is_anthropic = True
    output_names = ("max_tokens",)
    refused: Mapping[str, Check] = {
        **{name: check for name, check in REFUSED.items() if name != "context_management"},
        **others(OUTPUT_NAMES, "max_tokens"),
        **dict.fromkeys(ANSWER_NAMES, unsupported("a message is one answer.")),
        "functions": unsupported("use tools.", off=[]),
    }
    checks: Mapping[str, Check] = {
        **refused,
        **SAMPLING,
        "temperature": number(0, 1, kind="decimal"),
        "service_tier": one_of("auto", "standard_only"),
        "max_tokens": number(1, MOST_OUTPUT),
        "system": text_or(part_of("text")),
        "thinking": of_type(dict, "an object"),
        "tools": check_tools,
        "context_management": check_edits,
        "messages": check_messages,
    }

    def check(self, payload: Payload) -> None:
        """Require max_tokens too."""
        super().check(payload)
        if payload.get("max_tokens") is None:
            refuse("Missing required parameter: 'max_tokens'.", "max_tokens", MISSING)

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON, the most of each image and provider's tool, and overhead.

        UNCOUNTED blocks are not counted: `bound` sets aside the whole context for them.
        """
        shown, kinds = without_data(payload["messages"])
        tools = payload.get("tools") or []
        described = sum(client_tool(tool.get("type")) is not None for tool in tools)
        around = PART_OVERHEAD * (len(kinds) + len(tools)) + CLIENT_TOOL_TOKENS * described
        rest = {name: value for name, value in payload.items() if name != "messages"}
        return REQUEST_OVERHEAD + around + json_bytes(shown, rest) + IMAGE_TOKENS * kinds.count("image")

    def most_prompt(self, payload: Payload, model: CatalogModel) -> int:
        """Return the whole context if there is a block whose tokens nobody has counted."""
        most, kinds = super().most_prompt(payload, model), without_data(payload["messages"])[1]
        return max(most, model.context_size) if any(kind in kinds for kind in UNCOUNTED) else most

    def most_searches(self, payload: Payload) -> int:
        """Return the sum of the tools' `max_uses`."""
        return sum(tool["max_uses"] for tool in payload.get("tools") or () if tool.get("type") == WEB_SEARCH)

    def searches(self, body: Body) -> int:
        """Count the searches that the model began."""
        begun = {"type": "server_tool_use", "name": "web_search"}
        return sum(isinstance(block, dict) and begun.items() <= block.items() for block in blocks_of(body))

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set max_tokens. If it was reduced, the budget of thinking, which must be lower, is reduced as well.

        Thinking without a signature is left out: it is of a model at another provider, and Anthropic refuses it.
        """
        thinking, body = payload.get("thinking"), {**payload, "max_tokens": tokens}
        if any(is_unsigned(block) for message in payload["messages"] for block in blocks_of(message)):
            messages = [{**each, "content": _signed(each["content"])} for each in payload["messages"]]
            body["messages"] = [message for message in messages if message["content"] != []]
        if isinstance(thinking, dict) and "budget_tokens" in thinking and payload.get("max_tokens") != tokens:
            if tokens <= LEAST_THINKING:
                body["thinking"] = {"type": "disabled"}
            elif not isinstance(thinking["budget_tokens"], int) or thinking["budget_tokens"] >= tokens:
                body["thinking"] = {**thinking, "budget_tokens": tokens - 1}
        return body

    def count(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the messages, the system prompt, the tools, the images and the answer."""
        output = count_tokens(texts_in(body.get("content"), besides=LABELS), model=model)
        return Usage(count_input(payload, model=model), 0, output)

    def is_complete(self, body: Body) -> bool:
        """Return whether there is a content of blocks."""
        content = body.get("content")
        return isinstance(content, list) and all(isinstance(block, dict) for block in content)

    def is_finished(self, body: Body) -> bool:
        """Return whether the answer ended by itself, at its maximum, or with a call of a tool."""
        return body.get("stop_reason") in FINISHED

    def opens_stream(self, event: Body) -> bool:
        """Return whether the event begins a message; a ping may come first."""
        return event.get("type") in ("message_start", "ping")

    def reader(self, payload: Payload) -> MessageReader:
        """Return a reader of the events of a message."""
        return MessageReader()

    def error_event(self, payload: Payload, model: str, reader: EventReader, error: Body) -> bytes:
        """Return the event of an error, which is in Anthropic's shape."""
        return b"event: error\ndata: " + to_json(error) + END_OF_EVENT


class MessageReader(EventReader):
    """Reads the events of a message: the usage is in its first event and in its last but one."""

    signs = (b'"message_start"', b'"message_delta"', b'"message_stop"', b'"error"', b"event: error", b"event:error")
    start = b"event:"

    def __init__(self) -> None:
        super().__init__()
        self._reported: Body = {}

    def read(self, event: bytes, body: Body) -> bytes:
        """Note the usage and the end. The usage of the first event does not cover the output."""
        kind = body.get("type")
        if kind in ("message_start", "message_delta"):
            holder = body.get("message") if kind == "message_start" else body
            self._reported = merged_usage(self._reported, holder.get("usage") if isinstance(holder, dict) else None)
            found, self._usage_is_early = parse_usage(self._reported), kind == "message_start"
            self.usage = None if self._usage_is_early and found == NOTHING else found  # a translation knows none yet
        self.is_done = kind == "message_stop"
        return event + END_OF_EVENT

    def read_done(self, event: bytes) -> bytes:
        """Forward nothing: the end is another event."""
        return b""

    def billed_usage(self, estimate: Callable[[Body], Usage]) -> tuple[Usage, str]:
        """Return the usage of the stream and its source.

        The provider's input is final from the first event on, unless it searches.
        """
        billed, source = super().billed_usage(estimate)
        if self.usage is not None and self.usage.input_tokens and not billed.web_searches:
            billed = billed.with_totals(self.usage.input_tokens, billed.output_tokens)
        return billed, source

    def has_generated(self) -> bool:
        """Return whether any output was received."""
        return any(True for _ in texts_in(self.body()["content"], besides=LABELS))

    def body(self) -> Body:
        """Return the message received so far."""
        return message_of(list(self.events()))


def message_of(events: Sequence[Body]) -> Body:
    """Return the message whose events these are; the input of an unfinished call of a tool is its text."""
    message: Body = {"content": []}
    blocks: dict[Any, Body] = {}
    pieces: defaultdict[Any, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    usage: Body = {}
    for event in events:
        kind, at, delta = event.get("type"), event.get("index"), event.get("delta")
        if kind == "message_start" and isinstance(event.get("message"), dict):
            message = {**event["message"], "content": []}
            usage = merged_usage(usage, message.get("usage"))
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            blocks[at] = dict(event["content_block"])
        elif kind == "content_block_delta" and isinstance(delta, dict):
            for name in ("text", "thinking", "signature", "partial_json"):
                if isinstance(delta.get(name), str):
                    pieces[at][name].append(delta[name])
            if "citation" in delta:
                holder = blocks.setdefault(at, {})
                holder["citations"] = [*(holder.get("citations") or ()), delta["citation"]]
        elif kind == "message_delta":
            message |= delta if isinstance(delta, dict) else {}
            usage = merged_usage(usage, event.get("usage"))
    for at, texts in pieces.items():
        block = blocks.setdefault(at, {})
        for name, text in ((name, "".join(each)) for name, each in texts.items()):
            if name == "partial_json":
                block["input"] = _parsed(text)
            else:
                block[name] = f"{block.get(name) or ''}{text}"
    return {**message, "content": list(blocks.values()), **({"usage": usage} if usage else {})}


def without_data(items: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Return messages or blocks without the data of images and PDFs, and the types of all of them, inner ones included.

    The type "document" is that of PDFs alone.
    """
    kinds: list[str] = []

    def shown(block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        block = dict(block)
        kind, source = str(block.get("type")), block.get("source")
        if isinstance(source, dict):
            if source.get("type") in ("base64", "url"):
                block["source"] = {**source, "data": ""}
            else:
                kind = "text"
                block["source"] = shown(source)
        kinds.append(kind)
        if isinstance(block.get("content"), list):
            block["content"] = [shown(inner) for inner in block["content"]]
        return block

    return [shown(item) for item in items], kinds


def blocks_of(message: Body) -> Sequence[Any]:
    """Return the blocks of a message; none if its content is a text."""
    content = message.get("content")
    return content if isinstance(content, list) else ()


def is_unsigned(block: Any) -> bool:
    """Return whether a block is thinking that has no signature."""
    return isinstance(block, dict) and block.get("type") == "thinking" and not block.get("signature")


def _signed(content: Any) -> Any:
    return [block for block in content if not is_unsigned(block)] if isinstance(content, list) else content


def count_input(payload: Payload, *, model: str) -> int:
    """Count a prompt's tokens with a tokenizer; images and PDFs are estimated."""
    shown, kinds = without_data(payload["messages"])
    media = IMAGE_ESTIMATE * kinds.count("image") + PDF_ESTIMATE * kinds.count("document")
    return content_estimate([*shown, payload.get("system")], payload, model=model) + media


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return text


messages_protocol = MessagesProtocol()
