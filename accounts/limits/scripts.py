"""The Lua scripts, each with the shared prelude in front of it, and the names Redis knows them by."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LUA = Path(__file__).with_name("lua")


@dataclass(frozen=True, slots=True)
class Script:
    """A script's source, and the SHA-1 under which EVALSHA finds it."""

    source: bytes
    sha: bytes


@cache
def load(name: str) -> Script:
    """Read a script of the lua folder by its name, without the ending."""
    return script((LUA / "prelude.lua").read_bytes() + b"\n" + (LUA / f"{name}.lua").read_bytes())


def script(source: bytes) -> Script:
    """Name a script by its source."""
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())
