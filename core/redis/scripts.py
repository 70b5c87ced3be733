"""Lua scripts and their SHA-1 digests, by which Redis caches them."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Script:
    """A script's source, and its SHA-1 for EVALSHA (hex digits)."""

    source: bytes
    sha: bytes


def script(source: bytes) -> Script:
    """Return a script with its digest."""
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())
