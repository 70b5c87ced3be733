"""Checks of the content of requests: the parts of messages, the tools, and the input items of responses.

Messages may contain parts of a few known types, and images as data or from a public host. All other content is refused:
its tokens can't be bounded (pages of a file, minutes of audio), it is stored at the provider under the one secret that
all accounts share, or the provider would fetch it from a place that the caller may not read.

Only tools that the caller runs are accepted. The provider bills the tools that it runs (searches, code, images, other
servers), and their cost can't be bounded beforehand.

The input of a response may contain messages, reasoning, and calls of the caller's tools with their outputs. Output of
the provider's tools and references to stored items are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from django.conf import settings

from core.errors import InvalidRequest
from inference.protocols.base import PART_OVERHEAD, Body, Payload

#: Most tokens of an image: above OpenAI's highest count of one at high detail.
IMAGE_TOKENS = 50_000
#: Estimated tokens of an image: OpenAI's count of a large one at high detail (85 + 6 tiles of 170).
IMAGE_ESTIMATE = 1105
#: Parameters that the model reads besides the messages: its tools, and the form of its answer.
SCHEMAS = ("tools", "functions", "response_format", "text")
DATA_URL = re.compile(r"data:image/(?:png|jpe?g|webp|gif|bmp|heic|heif|avif);base64,", re.IGNORECASE)
#: A public host name. A name whose last label begins with a digit is an IP address (URL standard).
PUBLIC_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]\.?\Z", re.IGNORECASE)
#: Last labels of names that are not public (RFC 6761, 6762, 7686, 8375 and 9476, and names used in private networks).
PRIVATE_SUFFIXES = (
    "localhost", "local", "internal", "intranet", "private", "lan", "home", "corp", "arpa", "test", "invalid",
    "example", "onion", "alt", "svc", "consul",
)  # fmt: skip
PRINTABLE = re.compile(r"[\x21-\x5b\x5d-\x7e]+\Z")
LONGEST_URL = 8192
#: Fields that servers read media or references from, besides the known content parts.
MEDIA = frozenset(
    (
        "audio", "audio_url", "documents", "file", "file_data", "file_id", "file_url", "files", "image",
        "image_embeds", "image_url", "images", "input_audio", "video", "video_url", "videos",
    )
)  # fmt: skip
#: Types of image parts: in chat completions, in responses, and in a computer's output.
IMAGE_TYPES = ("image_url", "input_image", "computer_screenshot")
#: Fields that hold parts: of a message, and of a tool's output (a computer's output is a single part).
CONTENT = ("content", "output")
#: Names of fields checked here. Servers in Go and .NET read `Content` as `content`.
LOOKED_AT = MEDIA | {*CONTENT, "type", "role", "summary", "text", "url", "tools", "environment", "execution"}


@dataclass(frozen=True, slots=True)
class PartTypes:
    """The types of content parts that an endpoint accepts: those of texts, and that of images (empty: none)."""

    texts: frozenset[str]
    image: str

    def check(self, content: Any, *, param: str) -> None:
        """Raise InvalidRequest for content that is neither a text nor a list of accepted parts."""
        if content is None or isinstance(content, str):
            return
        if not isinstance(content, list):
            text = f"Invalid type for '{param}': expected a string or an array of content parts."
            raise InvalidRequest(text, param=param, code="invalid_type")
        for number, part in enumerate(content):
            self.check_part(part, param=f"{param}[{number}]")

    def check_part(self, part: Any, *, param: str) -> None:
        """Raise InvalidRequest for a part of another type, or with content that is not accepted."""
        kind = part.get("type") if isinstance(part, dict) else None
        kinds = (*sorted(self.texts), self.image) if self.image else (*sorted(self.texts),)
        if kind not in kinds:
            names = ", ".join(f"'{name}'" for name in kinds)
            text = f"Invalid value for '{param}.type': supported here are {names}."
            raise InvalidRequest(text, param=f"{param}.type", code="invalid_value")
        refuse_media(part, besides="image_url" if kind == self.image else "", param=param)
        if kind == self.image:
            if isinstance(part.get("image_url"), dict):
                refuse_media(part["image_url"], param=f"{param}.image_url")
            check_image_url(url_of(part), param=f"{param}.image_url")


def refuse_media(value: dict[str, Any], *, param: str, besides: str = "") -> None:
    """Raise InvalidRequest for media or references in a field other than `besides`."""
    refuse_misspelt(value, param=param)
    for name in sorted(MEDIA & value.keys()):
        if name != besides and value[name]:
            text = f"'{param}.{name}' is not supported here: send text, and images as parts of their own."
            raise InvalidRequest(text, param=f"{param}.{name}", code="unsupported_parameter")


def refuse_misspelt(value: dict[str, Any], *, param: str) -> None:
    """Raise InvalidRequest for a misspelt name that some servers accept as one of the fields checked here."""
    for name in value:
        if name not in LOOKED_AT and name.casefold() in LOOKED_AT:
            text = f"Unknown parameter: '{param}.{name[:100]}'. Did you mean '{name.casefold()}'?"
            raise InvalidRequest(text, param=f"{param}.{name[:100]}", code="unknown_parameter")


def url_of(part: dict[str, Any]) -> Any:
    """Return the URL of an image part, which is in an object in chat completions and a text in responses."""
    holder = part.get("image_url")
    return holder.get("url") if isinstance(holder, dict) else holder


def check_image_url(url: Any, *, param: str) -> None:
    """Raise InvalidRequest unless an image is a data: URL or, if IMAGE_URLS allows it, at a public host."""
    if is_data_url(url) or (settings.IMAGE_URLS == "https" and is_public_url(url)):
        return
    kinds = "a data: URL of an image in base64" + (
        ", or an https: URL of a public host" if settings.IMAGE_URLS == "https" else ""
    )
    raise InvalidRequest(f"Invalid image in '{param}': expected {kinds}.", param=param, code="invalid_image_url")


def is_data_url(url: Any) -> bool:
    """Return whether a value is a data: URL of an image."""
    return isinstance(url, str) and DATA_URL.match(url) is not None


def is_public_url(url: Any) -> bool:
    """Return whether a value is an https: URL whose host is a public name for every URL parser.

    The name is not resolved: the provider fetches the URL, from its own network.
    """
    if not isinstance(url, str) or len(url) > LONGEST_URL or not PRINTABLE.match(url):
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme != "https" or "@" in parts.netloc or port not in (None, 443):
        return False
    return bool(PUBLIC_HOST.match(host)) and host.rstrip(".").rpartition(".")[2].lower() not in PRIVATE_SUFFIXES


def image_count(messages: Any) -> int:
    """Count the images in messages, or in the items of a response's input."""
    values = (message.get(name) for message in messages if isinstance(message, dict) for name in CONTENT)
    return sum(_is_image(part) for value in values for part in (value if isinstance(value, list) else [value]))


def without_images(messages: list[Any]) -> list[Any]:
    """Return messages without the URLs of their images, which are counted by number instead.

    Everything else in an image part still counts as text.
    """
    shown = []
    for message in messages:
        fields = {name: message[name] for name in CONTENT if name in message} if isinstance(message, dict) else {}
        for name, value in fields.items():
            fields[name] = list(map(_without_url, value)) if isinstance(value, list) else _without_url(value)
        shown.append({**message, **fields} if fields else message)
    return shown


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in messages; images must be removed first."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in ("type", "id"):
                yield from texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)


def schema_texts(payload: Mapping[str, Any]) -> Iterator[str]:
    """Yield the JSON of the parameters that the model reads besides the messages."""
    for name in SCHEMAS:
        if payload.get(name):
            yield json.dumps(payload[name], ensure_ascii=False, separators=(",", ":"))


def _without_url(part: Any) -> Any:
    if not _is_image(part):
        return part
    holder = part["image_url"]
    return {**part, "image_url": {**holder, "url": ""} if isinstance(holder, dict) else ""}


def _is_image(part: Any) -> bool:
    """Return whether a part is an image that check_image_url may have accepted; any other part is counted by bytes."""
    if not isinstance(part, dict) or part.get("type") not in IMAGE_TYPES:
        return False
    url = url_of(part)
    return is_data_url(url) or is_public_url(url)


#: Tools whose whole description the caller sends.
FUNCTIONS = ("function", "custom")
#: Tools of responses that the caller runs and whose description the provider adds to the prompt.
BUILT_IN = ("local_shell", "shell", "apply_patch", "tool_search", "computer", "computer_use_preview")
RESPONSE_TOOLS = (*FUNCTIONS, "namespace", *BUILT_IN)
#: Most tokens of such a description; the longest known, of a computer, has fewer than 1,500.
BUILT_IN_TOKENS = 5_000


def refuse_foreign_tools(tools: Any, *, own: Collection[str], param: str = "tools") -> None:
    """Raise InvalidRequest for a tool whose type is not in `own`, or that the provider would run."""
    if tools is None:
        return
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest(
            f"Invalid type for '{param}': expected an array of objects.", param=param, code="invalid_type"
        )
    for number, tool in enumerate(tools):
        _check_tool(tool, own=own, param=f"{param}[{number}]")


def refuse_foreign_environment(environment: Any, *, param: str) -> None:
    """Raise InvalidRequest for a shell's environment that is not local: containers run at the provider."""
    kind = environment.get("type") if isinstance(environment, dict) else None
    if kind != "local":
        text = f"Invalid value for '{param}.type': 'local' is supported here, which the caller runs."
        raise InvalidRequest(text, param=f"{param}.type", code="invalid_value")
    refuse_misspelt(environment, param=param)


def refuse_foreign_execution(execution: Any, *, param: str) -> None:
    """Raise InvalidRequest for a tool search that the client does not run."""
    if execution != "client":
        text = f"Invalid value for '{param}': 'client' is supported here, so that the caller runs the search."
        raise InvalidRequest(text, param=param, code="invalid_value")


def tools_in(tools: Any) -> Iterator[Body]:
    """Yield the tools of a checked list, and those inside its namespaces."""
    for tool in tools or ():
        yield tool
        if tool.get("type") == "namespace":
            yield from tool.get("tools") or ()


def tool_overhead(tool: Body) -> int:
    """Return the most tokens that a provider adds for a tool: its template's, and its own description."""
    return PART_OVERHEAD + (BUILT_IN_TOKENS if tool.get("type") in BUILT_IN else 0)


def _check_tool(tool: Body, *, own: Collection[str], param: str) -> None:
    refuse_misspelt(tool, param=param)
    kind = tool.get("type")
    if not isinstance(kind, str) or kind not in own:
        given, names = str(kind)[:100], ", ".join(f"'{name}'" for name in own)
        text = f"Invalid value for '{param}.type': '{given}'. Supported here are tools that the caller runs: {names}."
        raise InvalidRequest(text, param=f"{param}.type", code="invalid_value")
    if kind == "namespace":
        refuse_foreign_tools(tool.get("tools"), own=FUNCTIONS, param=f"{param}.tools")
    elif kind == "shell":
        refuse_foreign_environment(tool.get("environment"), param=f"{param}.environment")
    elif kind == "tool_search":
        refuse_foreign_execution(tool.get("execution"), param=f"{param}.execution")


class FieldCheck(Protocol):
    """A check of an item's field, whose value is None if absent; raises InvalidRequest."""

    def __call__(self, value: Any, /, *, param: str) -> None:
        """Check the value at `param` of the request."""


def _check_text(value: Any, *, param: str) -> None:
    """Accept a text."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"Invalid type for '{param}': expected a string.", param=param, code="invalid_type")


def _check_captures(value: Any, *, param: str) -> None:
    """Accept the output of commands: objects of texts that are no content parts."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InvalidRequest(
            f"Invalid type for '{param}': expected an array of objects.", param=param, code="invalid_type"
        )
    for number, each in enumerate(value):
        refuse_media(each, param=f"{param}[{number}]")
        if "type" in each:
            at = f"{param}[{number}].type"
            raise InvalidRequest(f"Unknown parameter: '{at}'.", param=at, code="unknown_parameter")


#: Parts of messages and tool outputs, of agents' messages, of reasoning (sent whole, not by its id), and of computers.
_PARTS = PartTypes(texts=frozenset({"input_text", "output_text", "refusal"}), image="input_image")
_AGENT_PARTS = PartTypes(texts=frozenset({"input_text", "encrypted_content"}), image="")
_REASONING = PartTypes(texts=frozenset({"reasoning_text", "summary_text"}), image="")
_SCREENSHOT = PartTypes(texts=frozenset(), image="computer_screenshot")
#: The accepted items, with a check for each field that may hold content. `_check_item` has the checks for all items.
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
#: Fields of an update in the middle of a conversation. Other settings must be parameters, which are checked.
_UPDATED = frozenset({"type", "id", "reasoning", "text"})


def refuse_items(payload: Payload) -> None:
    """Raise InvalidRequest for an input whose tokens can't be bounded, or that is stored at the provider."""
    refuse_foreign_tools(payload.get("tools"), own=RESPONSE_TOOLS)
    items = payload.get("input")
    for number, item in enumerate(items if isinstance(items, list) else ()):
        _check_item(item, param=f"input[{number}]")


def _check_item(item: Body, *, param: str) -> None:
    """Raise InvalidRequest for an item whose type is not in ITEMS, or with content that is not accepted.

    An item without a type is a message if it has a role, and otherwise a reference to an item stored at the provider.
    """
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if not isinstance(kind, str) or kind not in ITEMS:
        given, names = str(kind)[:100], ", ".join(f"'{name}'" for name in ITEMS)
        text = f"Invalid value for '{param}.type': '{given}'. Supported here are {names}."
        raise InvalidRequest(text, param=f"{param}.type", code="invalid_value")
    if kind == "reasoning" and not (item.get("encrypted_content") or item.get("content")):
        text = "Nothing is stored at the provider: ask for reasoning.encrypted_content, and send it along."
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
