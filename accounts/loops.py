"""Background loops outlive what goes wrong in one of their steps: the next one is for others too."""

from __future__ import annotations

from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


def outlived(step: Callable[[], object], *, event: str) -> bool:
    """Do one step of a loop; answer whether it went well. What it raises is logged by its class, without its text."""
    try:
        step()
    except Exception as error:  # noqa: BLE001  (a loop that ends is worse than any of them)
        log.error(event, cause=type(error).__name__)
        return False
    return True
