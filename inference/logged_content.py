"""Prompt and answer of one call, of an account whose content is logged: put together when the call has its record."""

from __future__ import annotations

from typing import Any

from inference.calls import Caller, ModelCall
from inference.surfaces.base import Body
from inference.surfaces.events import EventReader
from monitoring.content import keeper


class CallContent:
    """What a call asked and was answered; `body` is the provider's, `reader` has followed its stream."""

    def __init__(self, call: ModelCall, caller: Caller) -> None:
        self._call = call
        self._caller = caller
        self.body: Body | None = None
        self.reader: EventReader | None = None

    def keep(self) -> None:
        """Hand it over to be written, after the record; what can't be is dropped."""
        keeper.keep(
            record_id=self._caller.trace.id,
            account_id=self._caller.identity.account_id,
            prompt={"model": self._call.model, **self._call.payload},
            answer=self._answer,
        )

    def _answer(self) -> Any:
        """Return the answer, a stream's as it would have been without one; None where there is none."""
        if self.reader is not None:
            return self.reader.body()
        if self.body is None or "stream" not in self.body:
            return self.body
        reader = self._call.surface.reader(self._call.payload)
        reader.feed(str(self.body["stream"]).encode())
        return reader.body()
