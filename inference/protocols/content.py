"""The content of messages and items: which parts and tools are accepted, and how their tokens are counted.

Messages may contain parts of a few known types, and images as data or from a public host. All other content is refused:
its tokens can't be bounded (pages of a file, minutes of audio), it is stored at the provider under the one secret that
all accounts share, or the provider would fetch it from a place that the caller may not read.

Only tools that the caller runs are accepted. The provider bills the tools that it runs (searches, code, images, other
servers), and their cost can't be bounded beforehand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from inference.protocols.base import (
    MESSAGE_TOKENS,
    REPLY_TOKENS,
    REQUEST_OVERHEAD,
    Payload,
    count_tokens,
    json_bytes,
)
from inference.protocols.parameters import Check, is_objects, refuse, refuse_misspelt, wrong_type

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
LOOKED_AT = MEDIA | {
    *CONTENT,
    *("type", "role", "summary", "text", "url", "tools", "environment", "execution", "max_uses"),
}
#: Tools whose whole description the caller sends.
FUNCTIONS = ("function", "custom")


def part_of(*texts: str, image: str = "") -> Check:
    """Return a check for a content part: of one of the types of texts or, if there is one, the type of images."""
    kinds = (*texts, image) if image else texts

    def check(name: str, part: Any) -> None:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            known = ", ".join(f"'{each}'" for each in kinds)
            refuse(f"Invalid value for '{name}.type': supported here are {known}.", f"{name}.type", "invalid_value")
        refuse_media(name, part, besides="image_url" if kind == image else "")
        if kind == image:
            if isinstance(part.get("image_url"), dict):
                refuse_media(f"{name}.image_url", part["image_url"])
            check_image_url(f"{name}.image_url", url_of(part))

    return check


def text_or(check_part: Check) -> Check:
    """Return a check for content: a text, or a list of parts that pass a check; it may be absent."""

    def check(name: str, content: Any) -> None:
        if content is None or isinstance(content, str):
            return
        if not isinstance(content, list):
            wrong_type(name, "a string or an array of content parts")
        for number, part in enumerate(content):
            check_part(f"{name}[{number}]", part)

    return check


def refuse_unknown_spelling(name: str, value: dict[str, Any]) -> None:
    """Raise InvalidRequest for a misspelt name that some servers accept as one of the fields checked here."""
    refuse_misspelt(value, LOOKED_AT, at=f"{name}.", fold=str.casefold)


def refuse_media(name: str, value: dict[str, Any], *, besides: str = "") -> None:
    """Raise InvalidRequest for media or references in a field other than `besides`."""
    refuse_unknown_spelling(name, value)
    for field in sorted(MEDIA & value.keys()):
        if field != besides and value[field]:
            text = f"'{name}.{field}' is not supported here: send text, and images as parts of their own."
            refuse(text, f"{name}.{field}", "unsupported_parameter")


def tools_of(*own: str) -> Check:
    """Return a check for tools of these types: the caller runs them, not the provider."""

    def check(name: str, tools: Any) -> None:
        is_objects(name, tools)
        for number, tool in enumerate(tools):
            refuse_unknown_spelling(f"{name}[{number}]", tool)
            kind = tool.get("type")
            if not isinstance(kind, str) or kind not in own:
                place, known = f"{name}[{number}].type", ", ".join(f"'{each}'" for each in own)
                text = f"'{str(kind)[:100]}'. Supported here are tools that the caller runs: {known}."
                refuse(f"Invalid value for '{place}': {text}", place, "invalid_value")

    return check


def url_of(part: dict[str, Any]) -> Any:
    """Return the URL of an image part, which is in an object in chat completions and a text in responses."""
    holder = part.get("image_url")
    return holder.get("url") if isinstance(holder, dict) else holder


def check_image_url(name: str, url: Any) -> None:
    """Raise InvalidRequest unless an image is a data: URL or, if IMAGE_URLS allows it, at a public host."""
    by_url = settings.IMAGE_URLS == "https"
    if not is_data_url(url) and not (by_url and is_public_url(url)):
        kinds = "a data: URL of an image in base64" + (", or an https: URL of a public host" if by_url else "")
        refuse(f"Invalid image in '{name}': expected {kinds}.", name, "invalid_image_url")


def check_public_url(name: str, url: Any) -> None:
    """Raise InvalidRequest unless a URL is at a public host, and IMAGE_URLS allows such URLs."""
    if settings.IMAGE_URLS != "https" or not is_public_url(url):
        refuse(f"Invalid URL in '{name}': send the data instead.", name, "invalid_image_url")


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


def is_image(part: Any) -> bool:
    """Return whether a part is an image that check_image_url may have accepted; any other part is counted by bytes."""
    if not isinstance(part, dict) or part.get("type") not in IMAGE_TYPES:
        return False
    url = url_of(part)
    return is_data_url(url) or is_public_url(url)


def without_images(items: Sequence[Any]) -> tuple[list[Any], int]:
    """Return messages or items without the URLs of their images, and the number of images.

    Everything else in an image part still counts as text.
    """
    shown, images = list(items), 0
    for at, item in enumerate(items):
        for name in CONTENT if isinstance(item, dict) else ():
            value = item.get(name)
            parts = list(value) if isinstance(value, list) else [value]
            found = [number for number, part in enumerate(parts) if is_image(part)]
            for number in found:
                holder = parts[number]["image_url"]
                url = {**holder, "url": ""} if isinstance(holder, dict) else ""
                parts[number] = {**parts[number], "image_url": url}
            if found:
                shown[at] = {**shown[at], name: parts if isinstance(value, list) else parts[0]}
                images += len(found)
    return shown, images


def content_bound(items: Sequence[Any], payload: Payload, *, without: str, around: int) -> int:
    """Return an upper bound of a prompt's tokens: one a byte of its JSON, IMAGE_TOKENS an image, and overhead.

    `without` is the payload's parameter that holds the items, `around` the tokens around them and the tools.
    """
    shown, images = without_images(items)
    rest = {name: value for name, value in payload.items() if name != without}
    return REQUEST_OVERHEAD + around + json_bytes(shown, rest) + IMAGE_TOKENS * images


def content_estimate(items: Sequence[Any], payload: Payload, *, model: str) -> int:
    """Count the tokens of a prompt: its items, the schemas in the payload, and the images."""
    shown, images = without_images(items)
    texts = [
        *texts_in(shown),
        *(
            json.dumps(payload[name], ensure_ascii=False, separators=(",", ":"))
            for name in SCHEMAS
            if payload.get(name)
        ),
    ]
    return count_tokens(texts, model=model) + MESSAGE_TOKENS * len(shown) + REPLY_TOKENS + IMAGE_ESTIMATE * images


def texts_in(value: Any, *, besides: Sequence[str] = ("type", "id")) -> Iterator[str]:
    """Yield every text in a value, under whatever name but `besides`; images must be removed first."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in besides:
                yield from texts_in(item, besides=besides)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item, besides=besides)
