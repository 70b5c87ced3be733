"""Reading and parsing of request bodies: from bytes to a JSON object that is safe to handle, or a clear error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest
from gunicorn.http.errors import ParseException
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from accounts.authentication import calling_key
from core.background import yield_to_others
from core.errors import BodyTooLarge, MalformedBody, RequestTimeout, UnsupportedMediaType
from core.json import parse_strictly
from inference.api.errors import is_openai_path

#: Content-Encodings of an uncompressed body.
UNCOMPRESSED = ("", "identity")
#: Most levels of arrays and objects in a body. Tool schemas, the deepest in use, have about twenty.
DEEPEST = 100

#: Most objects and arrays, members of objects, and values in a body: more than any real body has (OpenAI accepts 2,048
#: messages, and 300,000 tokens to embed). Each is handled about ten times, which blocks the worker's other requests.
#: Real large bodies consist of long texts and images, which cost little.
MOST_PARTS = 16_000
MOST_MEMBERS = 60_000
MOST_VALUES = 400_000


class StrictJSONParser(BaseParser):
    """Parses a JSON object (RFC 8259): no NaN, no lone surrogates, within the size limit of the path."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the body as an object; raises MalformedBody and the errors of `read_body`."""
        request: Request = (parser_context or {})["request"]
        return parse_object(read_body(request._request, most_bytes(request)))


def read_body(request: Any, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    A chunked body is read from the server's own stream, which knows its end; Django treats it as empty. Raises
    UnsupportedMediaType for a compressed body, BodyTooLarge, MalformedBody, or RequestTimeout for a body that did not
    arrive by the server's deadline.
    """
    if str(request.META.get("HTTP_CONTENT_ENCODING", "")).strip().lower() not in UNCOMPRESSED:
        raise UnsupportedMediaType(
            "Send the body as it is: no Content-Encoding is decoded.", headers={"Accept-Encoding": "identity"}
        )
    declared = str(request.META.get("CONTENT_LENGTH") or "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise BodyTooLarge(f"The request body is too large: {limit:,} bytes at most are taken.")
    stream = request.environ["wsgi.input"] if is_chunked(request) else request
    try:
        body: bytes = stream.read(limit + 1)
    except OSError as error:
        if isinstance(error.__cause__ or error, TimeoutError):  # Django wraps it
            raise RequestTimeout from error
        raise MalformedBody("The body broke off.") from error
    except ParseException as error:  # gunicorn parses chunks while they are read, and closes the connection
        raise MalformedBody("The body's chunks are malformed.") from error
    if len(body) > limit:
        raise BodyTooLarge(f"The request body is too large: {limit:,} bytes at most are taken.")
    return body


def most_bytes(request: Request) -> int:
    """Return the most bytes of a body: MAX_BODY_BYTES, under /v1 MAX_V1_BODY_BYTES.

    Under /v1, fewer for a key without a limit on tokens, which has no other bound.
    """
    if not is_openai_path(request.path_info):
        return int(settings.MAX_BODY_BYTES)
    key = calling_key(request)
    limits = [subject.limits for subject in key.limits.subjects] if key is not None else []
    is_metered = any(each.tokens_per_minute is not None or each.has_budget for each in limits)
    most = int(settings.MAX_V1_BODY_BYTES)
    return most if is_metered else min(most, int(settings.MAX_UNMETERED_BODY_BYTES))


def is_chunked(request: HttpRequest) -> bool:
    """Return whether a request's body comes in chunks, without a length."""
    encoding = str(request.META.get("HTTP_TRANSFER_ENCODING", ""))
    return isinstance(request, WSGIRequest) and "chunked" in encoding.lower()


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object from UTF-8; raises MalformedBody for anything else.

    Each step takes some milliseconds a MiB, so with a large body other greenlets run between the steps.
    """
    if _has_too_many(body) and _has_too_many(_without_texts(body)):
        raise MalformedBody(
            f"The body has too many parts: {MOST_PARTS:,} objects and arrays are taken, {MOST_MEMBERS:,} members of "
            f"objects, and {MOST_VALUES:,} values."
        )
    yield_to_others(len(body))
    try:
        text = body.decode("utf-8")
        yield_to_others(len(body))
        value = parse_strictly(text)
    except (ValueError, RecursionError):
        raise MalformedBody from None
    yield_to_others(len(body))
    if not isinstance(value, dict):
        raise MalformedBody("The body must be a JSON object.")
    if body.count(b"[") + body.count(b"{") > DEEPEST:
        _refuse_deep(value)
    yield_to_others(len(body))
    if b"\\u" in body:
        _refuse_lone_surrogates(value)
        yield_to_others(len(body))
    return value


def _has_too_many(body: bytes) -> bool:
    parts = body.count(b"{") + body.count(b"[")
    return parts > MOST_PARTS or body.count(b":") > MOST_MEMBERS or body.count(b",") > MOST_VALUES


def _without_texts(body: bytes) -> bytes:
    """Return JSON without its texts, whose braces and commas don't count.

    A body with more texts than allowed values and names is returned unchanged: it has too many parts anyway.
    """
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 4 * MOST_VALUES:
        return body
    return b"".join(body.split(b'"')[::2])


def _refuse_deep(value: Any) -> None:
    """Raise MalformedBody for nesting deeper than DEEPEST, which would overflow the stack of recursive code."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise MalformedBody(f"The body nests deeper than {DEEPEST} levels.")


def _refuse_lone_surrogates(value: dict[str, Any]) -> None:
    """Raise MalformedBody for a lone surrogate such as \\ud800: it is no text, and no store or provider accepts it."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        raise MalformedBody("The body holds a lone surrogate.") from None
