"""A Lua script and the name under which Redis keeps it."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Script:
    """A script's source, and the SHA-1 under which EVALSHA finds it."""

    source: bytes
    sha: bytes


def script(source: bytes) -> Script:
    """Name a script by its source."""
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())
