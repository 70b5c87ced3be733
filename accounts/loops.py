"""Background loops run once in each process, and outlive what goes wrong in a step: the next one is for others too."""

from __future__ import annotations

import os
import threading
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


class ProcessThread:
    """A thread that is started once in each process: a fork takes no threads along."""

    def __init__(self, run: Callable[[], None], *, name: str) -> None:
        self._run = run
        self._name = name
        self._lock = threading.Lock()
        self._pid = 0

    def start(self) -> bool:
        """Start it unless it runs here already; answer whether it was started now."""
        if self._pid == os.getpid():
            return False
        with self._lock:
            if self._pid == os.getpid():
                return False
            self._pid = os.getpid()
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return True
