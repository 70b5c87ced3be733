"""OpenAI's SDK, imported when a provider is asked for the first time in a process.

To import it takes half a second and 26 MB, which every command would pay for that never asks one. The server does it
before its first request comes (aiapi.worker).
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
    """Make the SDK's description of a request, without its checks."""
    from openai._models import FinalRequestOptions

    return FinalRequestOptions.construct(**values)
