"""DNS look-ups with a timeout, each name once at a time, in threads of their own.

A look-up at a silent name server blocks for a long time and can't be cancelled. Under gevent, ten threads make all
look-ups of a process: calls to one provider whose name server is silent would occupy all of them.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from core.network import addresses_of, parse_address


class Lookups:
    """The look-ups of a process in progress."""

    def __init__(self) -> None:
        self._open: dict[str, Future[list[str]]] = {}
        self._lock = threading.Lock()

    def addresses_of(self, name: str, seconds: float) -> list[str]:
        """Return the addresses of a name within `seconds`; raises OSError (TimeoutError) or UnicodeError."""
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
        except Exception as error:  # noqa: BLE001  (passed to the waiting calls)
            asked.set_exception(error)
        finally:
            with self._lock:
                del self._open[name]


lookups = Lookups()
