"""Looks names up, each once at a time, beside those who wait for it.

A name server that is silent holds whoever asks it for a long time, and nobody can break that off. Under gevent ten
threads do that for the whole process: calls to one provider whose name is not answered would take all of them.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from core.network import addresses_of, parse_address


class Lookups:
    """The names that a process looks up now."""

    def __init__(self) -> None:
        self._open: dict[str, Future[list[str]]] = {}
        self._lock = threading.Lock()

    def addresses_of(self, name: str, seconds: float) -> list[str]:
        """List the addresses of a name within so many seconds. Raises OSError (TimeoutError) or UnicodeError."""
        if parse_address(name):
            return addresses_of(name)
        with self._lock:
            asked = self._open.get(name)
            begins = asked is None
            if asked is None:
                asked = self._open[name] = Future()
        if begins:
            threading.Thread(target=self._look_up, args=[name, asked], name="look-up", daemon=True).start()
        return list(asked.result(seconds))

    def _look_up(self, name: str, asked: Future[list[str]]) -> None:
        try:
            asked.set_result(addresses_of(name))
        except Exception as error:  # noqa: BLE001  (it is for those who wait)
            asked.set_exception(error)
        finally:
            with self._lock:
                del self._open[name]


lookups = Lookups()
