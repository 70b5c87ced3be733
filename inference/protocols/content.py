"""What a message may hold: parts of a few known types, images by their data or from a public host.

All else is refused. Its tokens could not be bounded (pages of a file, minutes of sound), or it lies at the provider
under the one secret that all accounts share, or the provider would fetch it from where the caller may not look.

The tools that a request may hold: those that the caller runs.

What the provider runs (searches, code, images, other servers), it bills as well, and nobody can bound that beforehand.

What the input of a response may be made of: messages, reasoning, and calls of the caller's tools with their outputs.

All else is refused: what the provider ran, and what would be looked up there by its id.
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

#: The most that an image can be, in tokens: OpenAI's dearest reckoning of one at high detail is below it.
IMAGE_TOKENS = 50_000
#: What one is reckoned as where nobody says: OpenAI's reckoning of a large one at high detail (85 + 6 tiles of 170).
IMAGE_ESTIMATE = 1105
#: What a model reads beside what was said: what it may call, and the form of its answer.
SCHEMAS = ("tools", "functions", "response_format", "text")
DATA_URL = re.compile(r"data:image/(?:png|jpe?g|webp|gif|bmp|heic|heif|avif);base64,", re.IGNORECASE)
#: A host as public names are written. A last label that begins with a digit makes an address of it (URL standard).
PUBLIC_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]\.?\Z", re.IGNORECASE)
#: What no public name ends in (RFC 6761, 6762, 7686, 8375 and 9476, and what networks at home and at work use).
PRIVATE_SUFFIXES = (
    "localhost", "local", "internal", "intranet", "private", "lan", "home", "corp", "arpa", "test", "invalid",
    "example", "onion", "alt", "svc", "consul",
)  # fmt: skip
PRINTABLE = re.compile(r"[\x21-\x5b\x5d-\x7e]+\Z")
LONGEST_URL = 8192
#: Where servers look for media or references, besides the parts that are known here.
MEDIA = frozenset(
    (
        "audio", "audio_url", "documents", "file", "file_data", "file_id", "file_url", "files", "image",
        "image_embeds", "image_url", "images", "input_audio", "video", "video_url", "videos",
    )
)  # fmt: skip
#: What an image part is called: in chat completions, in responses, and as the output of a computer.
IMAGE_TYPES = ("image_url", "input_image", "computer_screenshot")
#: The fields that hold parts: of a message, and of what a tool gave back (a computer's is one part by itself).
CONTENT = ("content", "output")
#: Names that are looked at here. Servers in Go and .NET take `Content` for `content`.
LOOKED_AT = MEDIA | {*CONTENT, "type", "role", "summary", "text", "url", "tools", "environment", "execution"}


@dataclass(frozen=True, slots=True)
class PartTypes:
    """The parts that an endpoint's messages may hold: which of them are texts, and which is an image."""

    texts: frozenset[str]
    image: str

    def check(self, content: Any, *, param: str) -> None:
        """Raise InvalidRequest for content that is neither a text nor a list of these parts."""
        if content is None or isinstance(content, str):
            return
        if not isinstance(content, list):
            text = f"Invalid type for '{param}': expected a string or an array of content parts."
            raise InvalidRequest(text, param=param, code="invalid_type")
        for number, part in enumerate(content):
            self.check_part(part, param=f"{param}[{number}]")

    def check_part(self, part: Any, *, param: str) -> None:
        """Raise InvalidRequest for what is none of these parts, or holds what it must not."""
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
    """Raise InvalidRequest for media or references beside the content parts that are checked."""
    refuse_misspelt(value, param=param)
    for name in sorted(MEDIA & value.keys()):
        if name != besides and value[name]:
            text = f"'{param}.{name}' is not supported here: send text, and images as parts of their own."
            raise InvalidRequest(text, param=f"{param}.{name}", code="unsupported_parameter")


def refuse_misspelt(value: dict[str, Any], *, param: str) -> None:
    """Raise InvalidRequest for a name that some servers take for one that is looked at here."""
    for name in value:
        if name not in LOOKED_AT and name.casefold() in LOOKED_AT:
            text = f"Unknown parameter: '{param}.{name[:100]}'. Did you mean '{name.casefold()}'?"
            raise InvalidRequest(text, param=f"{param}.{name[:100]}", code="unknown_parameter")


def url_of(part: dict[str, Any]) -> Any:
    """Return the URL of an image part: in an object in chat completions, by itself in responses."""
    holder = part.get("image_url")
    return holder.get("url") if isinstance(holder, dict) else holder


def check_image_url(url: Any, *, param: str) -> None:
    """Raise InvalidRequest for an image that is neither `data:` nor, where IMAGE_URLS allows them, at a public host."""
    if is_data_url(url) or (settings.IMAGE_URLS == "https" and is_public_url(url)):
        return
    kinds = "a data: URL of an image in base64" + (
        ", or an https: URL of a public host" if settings.IMAGE_URLS == "https" else ""
    )
    raise InvalidRequest(f"Invalid image in '{param}': expected {kinds}.", param=param, code="invalid_image_url")


def is_data_url(url: Any) -> bool:
    """Say whether a value holds an image itself."""
    return isinstance(url, str) and DATA_URL.match(url) is not None


def is_public_url(url: Any) -> bool:
    """Say whether a value is an https: URL whose host is a public name, as all readers of URLs understand it.

    The name is not resolved: it is the provider that fetches, from its own network.
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
    return sum(map(_is_image, _parts_in(messages)))


def without_images(messages: list[Any]) -> list[Any]:
    """Return messages whose images, which are reckoned by number, have no URL any more.

    Only a URL goes, of an image in a list of content; whatever else stands around it counts as text.
    """
    return [
        {name: _without_urls(value) if name in CONTENT else value for name, value in message.items()}
        if isinstance(message, dict)
        else message
        for message in messages
    ]


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a structure of messages; leave out the images first."""
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
    """Yield the JSON of what a model reads beside the messages."""
    for name in SCHEMAS:
        if payload.get(name):
            yield json.dumps(payload[name], ensure_ascii=False, separators=(",", ":"))


def _parts_in(messages: list[Any]) -> Iterator[Any]:
    for message in messages:
        for name in CONTENT if isinstance(message, dict) else ():
            value = message.get(name)
            yield from value if isinstance(value, list) else [value]


def _without_urls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_url(part) if _is_image(part) else part for part in value]
    return _without_url(value) if _is_image(value) else value


def _without_url(part: dict[str, Any]) -> dict[str, Any]:
    holder = part["image_url"]
    return {**part, "image_url": {**holder, "url": ""} if isinstance(holder, dict) else ""}


def _is_image(part: Any) -> bool:
    """Say whether a part is an image that check_image_url may have passed: of anything else the bytes count."""
    if not isinstance(part, dict) or part.get("type") not in IMAGE_TYPES:
        return False
    url = url_of(part)
    return is_data_url(url) or is_public_url(url)


#: Tools that the caller describes whole.
FUNCTIONS = ("function", "custom")
#: Tools of responses that the caller runs, but whose description the provider writes into the prompt.
BUILT_IN = ("local_shell", "shell", "apply_patch", "tool_search", "computer", "computer_use_preview")
RESPONSE_TOOLS = (*FUNCTIONS, "namespace", *BUILT_IN)
#: The most tokens that a provider's description of one can be: the longest known, of a computer, is below 1,500.
BUILT_IN_TOKENS = 5_000


def refuse_foreign_tools(tools: Any, *, own: Collection[str], param: str = "tools") -> None:
    """Raise InvalidRequest for a list of tools with one that is none of `own`, or that the provider would run."""
    if tools is None:
        return
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest(
            f"Invalid type for '{param}': expected an array of objects.", param=param, code="invalid_type"
        )
    for number, tool in enumerate(tools):
        _check_tool(tool, own=own, param=f"{param}[{number}]")


def refuse_foreign_environment(environment: Any, *, param: str) -> None:
    """Raise InvalidRequest for a shell's environment other than a local one: a container is the provider's."""
    kind = environment.get("type") if isinstance(environment, dict) else None
    if kind != "local":
        text = f"Invalid value for '{param}.type': 'local' is supported here, which the caller runs."
        raise InvalidRequest(text, param=f"{param}.type", code="invalid_value")
    refuse_misspelt(environment, param=param)


def refuse_foreign_execution(execution: Any, *, param: str) -> None:
    """Raise InvalidRequest for a search of tools that is run by another than the client."""
    if execution != "client":
        text = f"Invalid value for '{param}': 'client' is supported here, so that the caller runs the search."
        raise InvalidRequest(text, param=param, code="invalid_value")


def tools_in(tools: Any) -> Iterator[Body]:
    """Yield the tools of a list that was checked, and those inside of namespaces."""
    for tool in tools or ():
        yield tool
        if tool.get("type") == "namespace":
            yield from tool.get("tools") or ()


def tool_overhead(tool: Body) -> int:
    """Return the most tokens that a provider's template adds around a tool, or writes for it."""
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
