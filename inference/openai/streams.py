"""An error in the middle of a stream, as OpenAI's clients understand it."""

from __future__ import annotations

import json
from collections.abc import Callable

from accounts.exceptions import ApiError
from inference.event_stream import server_sent
from inference.openai.errors import openai_error_body
from inference.surfaces.base import Surface
from inference.surfaces.responses import response_surface


def error_event(surface: Surface) -> Callable[[ApiError], bytes]:
    """Return what writes an error event: of responses a named one, of the others a chunk that is an error."""

    def write(error: ApiError) -> bytes:
        body = openai_error_body(error)
        if surface is response_surface:
            told = body["error"]
            return server_sent(
                "error", {"type": "error", "code": told["code"], "message": told["message"], "param": told["param"]}
            )
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"

    return write
