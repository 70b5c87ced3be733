"""What a message may hold: parts of a few known types, images by their data or from a public host.

All else is refused. Its tokens could not be bounded (pages of a file, minutes of sound), or it lies at the provider
under the one secret that all accounts share, or the provider would fetch it from where the caller may not look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from accounts.exceptions import InvalidRequest

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
