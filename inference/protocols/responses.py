"""The protocol of POST /responses.

The input may contain messages, reasoning, calls of the caller's tools with their outputs, and web searches. Output of
the provider's other tools and references to stored items are refused. A stream's last event holds the whole response.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from inference.catalog import CatalogModel
from inference.protocols.base import (
    PART_OVERHEAD,
    Body,
    Payload,
    WireProtocol,
    count_tokens,
    response_usage,
    searches_in,
)
from inference.protocols.content import (
    FUNCTIONS,
    content_bound,
    content_estimate,
    part_of,
    refuse_media,
    refuse_unknown_spelling,
    text_or,
    texts_in,
    tools_of,
)
from inference.protocols.events import END_OF_EVENT, EventReader, server_sent
from inference.protocols.parameters import (
    ANSWER_NAMES,
    KEPT,
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
    others,
    refuse,
    unsupported,
)
from inference.usage import Usage, is_count

#: Fields of an output item that the model did not write.
LABELS = ("type", "id", "role", "status", "call_id", "encrypted_content")
#: Characters of encrypted reasoning a token: base64 of about 4.5 characters of text.
ENCRYPTED = 6

#: Tools that the caller runs and whose description the provider adds to the prompt.
BUILT_IN = ("local_shell", "shell", "apply_patch", "tool_search", "computer", "computer_use_preview")
#: Most tokens of such a description; the longest known, of a computer, has fewer than 1,500.
BUILT_IN_TOKENS = 5_000
#: Fields of an update in the middle of a conversation. Other settings must be parameters, which are checked.
UPDATED = frozenset({"type", "id", "reasoning", "text"})

#: The web search that the provider runs, by the types of the tool.
WEB_SEARCH = ("web_search", "web_search_2025_08_26")
#: Most calls of the provider's tools that a request may allow.
MOST_CALLS = 100

is_tools = tools_of(*FUNCTIONS, "namespace", *BUILT_IN, *WEB_SEARCH)
is_own_tools = tools_of(*FUNCTIONS, "namespace", *BUILT_IN)
is_function_tools = tools_of(*FUNCTIONS)


def check_tools(name: str, tools: Any, accepted: Check = is_tools) -> None:
    """Accept tools that the caller runs: functions, also in namespaces, local shells, searches by the client.

    Web search, which the provider runs, is accepted beside the input, not in its items.
    """
    accepted(name, tools)
    for at, tool in enumerate(tools):
        if tool["type"] == "namespace" and tool.get("tools") is not None:
            is_function_tools(f"{name}[{at}].tools", tool["tools"])
        elif tool["type"] == "shell":
            check_environment(f"{name}[{at}].environment", tool.get("environment"))
        elif tool["type"] == "tool_search":
            check_execution(f"{name}[{at}].execution", tool.get("execution"))


def check_environment(name: str, environment: Any) -> None:
    """Accept a shell's environment that is local: containers run at the provider."""
    if not isinstance(environment, dict) or environment.get("type") != "local":
        text = f"Invalid value for '{name}.type': 'local' is supported here, which the caller runs."
        refuse(text, f"{name}.type", "invalid_value")
    refuse_unknown_spelling(name, environment)


def check_execution(name: str, execution: Any) -> None:
    """Accept a tool search that the client runs."""
    if execution != "client":
        text = f"Invalid value for '{name}': 'client' is supported here, so that the caller runs the search."
        refuse(text, name, "invalid_value")


def check_captures(name: str, value: Any) -> None:
    """Accept the output of commands: objects of texts that are no content parts."""
    is_objects(name, value)
    for at, each in enumerate(value):
        refuse_media(f"{name}[{at}]", each)
        if "type" in each:
            refuse(f"Unknown parameter: '{name}[{at}].type'.", f"{name}[{at}].type", "unknown_parameter")


def check_output(name: str, value: Any) -> None:
    """Accept a text, which may be absent."""
    if value is not None:
        is_string(name, value)


#: Parts of messages and tool outputs, and of reasoning (sent whole, not by its id).
PARTS = text_or(part_of("input_text", "output_text", "refusal", image="input_image"))
REASONING = text_or(part_of("reasoning_text", "summary_text"))
#: The accepted items, with a check for each field that may hold content. `check_item` has the checks for all items.
ITEMS: Mapping[str, Mapping[str, Check]] = {
    "message": {"content": PARTS},
    "agent_message": {"content": text_or(part_of("encrypted_content", "input_text"))},
    "reasoning": {"content": REASONING, "summary": REASONING},
    "function_call": {},
    "function_call_output": {"output": PARTS},
    "custom_tool_call": {},
    "custom_tool_call_output": {"output": PARTS},
    "additional_tools": {},
    "tool_search_call": {},
    "tool_search_output": {},
    "local_shell_call": {},
    "local_shell_call_output": {"output": check_output},
    "shell_call": {},
    "shell_call_output": {"output": check_captures},
    "apply_patch_call": {},
    "apply_patch_call_output": {"output": check_output},
    "computer_call": {},
    "computer_call_output": {"output": part_of(image="computer_screenshot")},
    "configuration_update": {},
    "web_search_call": {},
}
#: Fields of any item, checked where they are given.
ITEM_FIELDS: Mapping[str, Check] = {
    "tools": partial(check_tools, accepted=is_own_tools),
    "environment": check_environment,
    "execution": check_execution,
}


def check_item(name: str, item: Body) -> None:
    """Accept an item whose type is in ITEMS, with content that is accepted.

    An item without a type is a message if it has a role, and otherwise a reference to an item stored at the provider.
    """
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if not isinstance(kind, str) or kind not in ITEMS:
        given, names = str(kind)[:100], ", ".join(f"'{each}'" for each in ITEMS)
        text = f"Invalid value for '{name}.type': '{given}'. Supported here are {names}."
        refuse(text, f"{name}.type", "invalid_value")
    if kind == "reasoning" and not (item.get("encrypted_content") or item.get("content")):
        text = "Nothing is stored at the provider: ask for reasoning.encrypted_content, and send it along."
        refuse(text, name, "unsupported_parameter")
    if kind == "configuration_update" and (unknown := next((each for each in item if each not in UPDATED), None)):
        at = f"{name}.{unknown[:100]}"
        text = f"Unsupported parameter: '{at}'. Only reasoning and text can be updated in the input."
        refuse(text, at, "unsupported_parameter")
    for field, check in ITEMS[kind].items():
        check(f"{name}.{field}", item.get(field))
    refuse_media(name, item)
    for field, check in ITEM_FIELDS.items():
        if item.get(field) is not None:
            check(f"{name}.{field}", item[field])


def check_input(name: str, value: Any) -> None:
    """Accept a text, or a list of at least one item."""
    if not isinstance(value, str):
        is_list_of_objects(name, value)
        for at, item in enumerate(value):
            check_item(f"{name}[{at}]", item)


class ResponseProtocol(WireProtocol):
    """Responses, without anything that the provider would store."""

    path = "/responses"
    prompt_parameter = "input"
    output_names = ("max_output_tokens",)
    least_output = 16
    refused: Mapping[str, Check] = {
        **REFUSED,
        **others(OUTPUT_NAMES, "max_output_tokens"),
        **dict.fromkeys(ANSWER_NAMES, unsupported("a response is one answer.")),
        **dict.fromkeys(("previous_response_id", "conversation", "prompt"), unsupported(KEPT)),
        "background": unsupported(KEPT, off=False),
    }
    checks: Mapping[str, Check] = {
        **refused,
        **SAMPLING,
        "instructions": is_string,
        "max_output_tokens": number(1, MOST_OUTPUT),
        "max_tool_calls": number(1, MOST_CALLS),
        "tools": check_tools,
        "input": check_input,
    }

    def check(self, payload: Payload) -> None:
        """Require max_tool_calls with a web search, whose cost has no bound without it."""
        super().check(payload)
        if payload.get("max_tool_calls") is None and searches_web(payload):
            text = "Missing required parameter: 'max_tool_calls'. It bounds what the tool 'web_search' costs."
            refuse(text, "max_tool_calls", MISSING)

    def most_prompt(self, payload: Payload, model: CatalogModel) -> int:
        """Return the whole context if there is a web search in the input, whose results nobody has counted."""
        most = super().most_prompt(payload, model)
        searched = any(isinstance(item, dict) and item.get("type") == "web_search_call" for item in _items(payload))
        return max(most, model.context_size) if searched else most

    def most_searches(self, payload: Payload) -> int:
        """Return the most calls of the provider's tools, if web search is one."""
        return payload["max_tool_calls"] if searches_web(payload) else 0

    def searches(self, body: Body) -> int:
        """Count the searches in the output."""
        return searches_in(body.get("output"))

    def reported(self, body: Body) -> Usage | None:
        """Add the searches."""
        return response_usage(body)

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON, the most of each image and built-in tool, and overhead."""
        items, tools = _items(payload), _tools(payload)
        tools += [inner for tool in tools if tool.get("type") == "namespace" for inner in tool.get("tools") or ()]
        built_in = sum(tool.get("type") in BUILT_IN for tool in tools)
        around = PART_OVERHEAD * (len(items) + len(tools)) + BUILT_IN_TOKENS * built_in
        return content_bound(items, payload, without="input", around=around)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum, and forbid the provider to store anything."""
        return {**payload, "max_output_tokens": tokens, "store": False}

    def count(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the input, the schemas, the images and the output, encrypted reasoning included."""
        items = [{**item, "tools": None} if isinstance(item, dict) else item for item in _items(payload)]
        asked = {**payload, "tools": _tools(payload)}
        prompt = content_estimate([*items, payload.get("instructions")], asked, model=model)
        output = [item for item in body.get("output") or [] if isinstance(item, dict)]
        hidden = sum(len(str(item.get("encrypted_content") or "")) for item in output) // ENCRYPTED
        return Usage(prompt, 0, count_tokens(texts_in(output, besides=LABELS), model=model) + hidden)

    def is_complete(self, body: Body) -> bool:
        """Return whether there is an output and the response has not failed."""
        return isinstance(body.get("output"), list) and body.get("status") != "failed"

    def is_finished(self, body: Body) -> bool:
        """Return whether the response is completed, or ended at its maximum of output tokens."""
        details = body.get("incomplete_details")
        is_cut = isinstance(details, dict) and details.get("reason") == "max_output_tokens"
        return body.get("status") == "completed" or (body.get("status") == "incomplete" and is_cut)

    def is_cacheable(self, payload: Payload) -> bool:
        """Return whether the temperature is 0 and the request has no tools, also in its input."""
        return super().is_cacheable(payload) and not _tools(payload)

    def opens_stream(self, event: Body) -> bool:
        """Return whether the event belongs to a response and is not its failure."""
        kind = event.get("type")
        return isinstance(kind, str) and kind.startswith("response.") and kind != "response.failed"

    def reader(self, payload: Payload) -> ResponseReader:
        """Return a reader of the events of a response."""
        return ResponseReader()

    def error_event(self, payload: Payload, model: str, reader: EventReader, error: Body) -> bytes:
        """Return the event that ends a response as failed: the object received so far, under the next sequence number.

        If no event was sent yet, `response.created` comes first, because clients rely on it. The next number is the
        number of events if the provider's have none.
        """
        events, beginning, items = list(reader.events()), b"", {}
        numbers = [event["sequence_number"] for event in events if is_count(event.get("sequence_number"))]
        number = max(numbers) + 1 if numbers else len(events)
        received = [event["response"] for event in events if isinstance(event.get("response"), dict)]
        if not received:
            received = [new_response(payload, model)]
            fields = {"type": "response.created", "sequence_number": 0, "response": received[0]}
            beginning, number = server_sent("response.created", fields), 1
        for event in events:
            if event.get("type") == "response.output_item.done" and is_count(event.get("output_index")):
                items[event["output_index"]] = event.get("item")
        whole = {
            **received[-1],
            "output": [items[index] for index in sorted(items)],
            **(reader.error.response if reader.error is not None else {}),
            "status": "failed",
            "error": {name: error["error"][name] for name in ("code", "message", "param")},
        }
        failed = {"type": "response.failed", "sequence_number": number, "response": whole}
        return beginning + server_sent("response.failed", failed)


response_protocol = ResponseProtocol()


class ResponseReader(EventReader):
    """Reads the events of a response, the last of which holds the whole response.

    Some gateways (vLLM's and LiteLLM's) also send `[DONE]`, unlike OpenAI; it is not forwarded.
    """

    signs = (
        b'"response.completed"',
        b'"response.incomplete"',
        b'"response.failed"',
        b'"error"',
        b"event: error",
        b"event:error",
    )
    start = b"event:"

    def __init__(self) -> None:
        super().__init__()
        self._whole: Body = {}

    def read(self, event: bytes, body: Body) -> bytes:
        """Note the end and the usage in it."""
        if body.get("type") in ("response.completed", "response.incomplete"):
            self.is_done = True
            response = body.get("response")
            self._whole = response if isinstance(response, dict) else {}
            self.usage = response_protocol.reported(self._whole)
            self.service_tier = self._whole.get("service_tier")
        return event + END_OF_EVENT

    def read_done(self, event: bytes) -> bytes:
        """Forward nothing: the end is another event."""
        return b""

    def has_generated(self) -> bool:
        """Return whether any output was received."""
        return bool(_output_in(self.events()))

    def body(self) -> Body:
        """Return the output items, the text pieces of unfinished ones, and the status of the response."""
        ended: Body = {name: self._whole[name] for name in ("status", "incomplete_details") if name in self._whole}
        return {"output": _output_in(self.events()), **ended}


def _output_in(events: Iterator[Body]) -> list[Body]:
    """Return the output items in the events of a response. A tool call may come in one piece, without deltas."""
    whole: dict[str, Body] = {}
    pieces: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        place, kind, item = str(event.get("output_index")), str(event.get("type")), event.get("item")
        if kind == "response.output_item.done" and isinstance(item, dict):
            whole[place] = item
        elif "delta" in kind:
            pieces[place].append(str(event.get("delta") or ""))
    texts = {place: "".join(each) for place, each in pieces.items() if place not in whole}
    return [*whole.values(), *({"content": text} for text in texts.values() if text)]


def _items(payload: Payload) -> list[Any]:
    """Return the items of the input; a text is one."""
    value = payload.get("input")
    return value if isinstance(value, list) else [value if value is not None else ""]


def _tools(payload: Payload) -> list[Body]:
    """Return all tools of a request: those beside its input, and those in the items of its input."""
    items = (item for item in _items(payload) if isinstance(item, dict))
    return [tool for holder in (payload, *items) for tool in holder.get("tools") or ()]


def searches_web(payload: Payload) -> bool:
    """Return whether the provider may search the web for the model."""
    return any(tool.get("type") in WEB_SEARCH for tool in payload.get("tools") or ())


def new_response(payload: Payload, model: str) -> Body:
    """Build the object of a response that has just begun, from the request."""
    defaults: dict[str, Any] = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "store": False,
        **{name: default if payload.get(name) is None else payload[name] for name, default in defaults.items()},
    }
