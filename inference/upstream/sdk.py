"""Lazy import of OpenAI's SDK, at a process's first call to a provider.

The import takes half a second and 26 MB, which commands that call no provider need not pay. The server imports it
before its first request (aiapi.worker).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai._models import FinalRequestOptions


@cache
def sdk() -> Any:
    """Return the module `openai`."""
    import openai

    return openai


def request_options(**values: Any) -> FinalRequestOptions:
    """Return the SDK's description of a request, without its checks."""
    from openai._models import FinalRequestOptions

    return FinalRequestOptions.construct(**values)
