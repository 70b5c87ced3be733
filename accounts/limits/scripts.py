"""The Lua scripts, each with the shared prelude in front of it, and the names Redis knows them by."""

from functools import cache
from pathlib import Path

from core.redis.scripts import Script, script

LUA = Path(__file__).with_name("lua")


@cache
def load(name: str) -> Script:
    """Read a script of the lua folder by its name, without the ending."""
    return script((LUA / "prelude.lua").read_bytes() + b"\n" + (LUA / f"{name}.lua").read_bytes())
