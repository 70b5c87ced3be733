"""What the input of a response may be made of: messages, reasoning, and calls of the caller's tools with their outputs.

All else is refused: what the provider ran, and what would be looked up there by its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from accounts.exceptions import InvalidRequest
from inference.surfaces.base import Body, Payload
from inference.surfaces.content import PartTypes, refuse_media
from inference.surfaces.tools import (
    RESPONSE_TOOLS,
    refuse_foreign_environment,
    refuse_foreign_execution,
    refuse_foreign_tools,
)


class FieldCheck(Protocol):
    """A check of an item's field, None where it has none; raises InvalidRequest."""

    def __call__(self, value: Any, /, *, param: str) -> None:
        """Check the value that the input holds at `param`."""


def _check_text(value: Any, *, param: str) -> None:
    """Accept a text."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"Invalid type for '{param}': expected a string.", param=param, code="invalid_type")


def _check_captures(value: Any, *, param: str) -> None:
    """Accept what commands wrote: objects of texts, none of which is a content part."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InvalidRequest(
            f"Invalid type for '{param}': expected an array of objects.", param=param, code="invalid_type"
        )
    for number, each in enumerate(value):
        refuse_media(each, param=f"{param}[{number}]")
        if "type" in each:
            at = f"{param}[{number}].type"
            raise InvalidRequest(f"Unknown parameter: '{at}'.", param=at, code="unknown_parameter")


#: Parts of messages, of what tools gave back, and of reasoning, which comes whole and not by its id.
_PARTS = PartTypes(texts=frozenset({"input_text", "output_text", "refusal"}), image="input_image")
_AGENT_PARTS = PartTypes(texts=frozenset({"input_text", "encrypted_content"}), image="")
_REASONING = PartTypes(texts=frozenset({"reasoning_text", "summary_text"}), image="")
_SCREENSHOT = PartTypes(texts=frozenset(), image="computer_screenshot")
#: The items, and how each of their fields is checked that may hold content. Those of all items are in `_check_item`.
ITEMS: Mapping[str, Mapping[str, FieldCheck]] = {
    "message": {"content": _PARTS.check},
    "agent_message": {"content": _AGENT_PARTS.check},
    "reasoning": {"content": _REASONING.check, "summary": _REASONING.check},
    "function_call": {},
    "function_call_output": {"output": _PARTS.check},
    "custom_tool_call": {},
    "custom_tool_call_output": {"output": _PARTS.check},
    "additional_tools": {},
    "tool_search_call": {},
    "tool_search_output": {},
    "local_shell_call": {},
    "local_shell_call_output": {"output": _check_text},
    "shell_call": {},
    "shell_call_output": {"output": _check_captures},
    "apply_patch_call": {},
    "apply_patch_call_output": {"output": _check_text},
    "computer_call": {},
    "computer_call_output": {"output": _SCREENSHOT.check_part},
    "configuration_update": {},
}
#: All that may be updated in the middle of a conversation: the other settings are checked as parameters.
_UPDATED = frozenset({"type", "id", "reasoning", "text"})


def refuse_items(payload: Payload) -> None:
    """Raise InvalidRequest for what an input may hold and nobody can bound, or that lies at the provider."""
    refuse_foreign_tools(payload.get("tools"), own=RESPONSE_TOOLS)
    items = payload.get("input")
    for number, item in enumerate(items if isinstance(items, list) else ()):
        _check_item(item, param=f"input[{number}]")


def _check_item(item: Body, *, param: str) -> None:
    """Raise InvalidRequest for an item that is none of ITEMS, or for what it must not hold.

    Without a type it is a message, or, without a role too, a reference to what the provider keeps.
    """
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if not isinstance(kind, str) or kind not in ITEMS:
        given, names = str(kind)[:100], ", ".join(f"'{name}'" for name in ITEMS)
        text = f"Invalid value for '{param}.type': '{given}'. Supported here are {names}."
        raise InvalidRequest(text, param=f"{param}.type", code="invalid_value")
    if kind == "reasoning" and not (item.get("encrypted_content") or item.get("content")):
        text = "Nothing is kept at the provider: ask for reasoning.encrypted_content, and send it along."
        raise InvalidRequest(text, param=param, code="unsupported_parameter")
    if kind == "configuration_update":
        _refuse_other_updates(item, param=param)
    for name, check in ITEMS[kind].items():
        check(item.get(name), param=f"{param}.{name}")
    refuse_media(item, param=param)
    refuse_foreign_tools(item.get("tools"), own=RESPONSE_TOOLS, param=f"{param}.tools")
    if item.get("environment") is not None:
        refuse_foreign_environment(item["environment"], param=f"{param}.environment")
    if item.get("execution") is not None:
        refuse_foreign_execution(item["execution"], param=f"{param}.execution")


def _refuse_other_updates(item: Body, *, param: str) -> None:
    for name in item:
        if name not in _UPDATED:
            at = f"{param}.{name[:100]}"
            text = f"Unsupported parameter: '{at}'. Only reasoning and text can be updated in the input."
            raise InvalidRequest(text, param=at, code="unsupported_parameter")
