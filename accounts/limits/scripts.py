"""Load the Lua scripts of the limits, each with the shared prelude prepended."""

from functools import cache
from pathlib import Path

from core.redis.scripts import Script, script

LUA = Path(__file__).with_name("lua")


@cache
def load(name: str) -> Script:
    """Load a script of the lua folder by its name without the suffix."""
    return script((LUA / "prelude.lua").read_bytes() + b"\n" + (LUA / f"{name}.lua").read_bytes())
