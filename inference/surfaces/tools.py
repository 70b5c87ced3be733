"""The tools that a request may hold: those that the caller runs.

What the provider runs (searches, code, images, other servers), it bills as well, and nobody can bound that beforehand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from accounts.exceptions import InvalidRequest
from inference.surfaces.base import PART_OVERHEAD, Body
from inference.surfaces.content import refuse_misspelt

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
