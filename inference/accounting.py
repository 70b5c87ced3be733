"""The bill of one call: its reservation, what its attempts used, and its one usage record.

Also holds the prompt and the answer for the payload log, if the account has one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from accounts.limit_usage import refusal_error
from accounts.limits import get_limits
from accounts.limits.types import Amount, Bound, OperationClosed, Refusal, Reserved, Tally, Unavailable
from core.errors import DependencyUnavailable
from core.telemetry.metrics import observe_record
from inference.calls import Caller, ModelCall
from inference.catalog import Rates
from inference.protocols.base import Body, Usage
from inference.protocols.events import EventReader
from monitoring.payload_log import keeper
from monitoring.records import begin_record

#: Values of `cache` in the record of an error that another request met first.
ANSWERED_BEFORE = ("hit", "coalesced", "replay")

#: Characters of a record's `failures` that are kept.
MOST_TOLD = 500


class Bill:
    """Reserves for a call, adds up the usage of its attempts, and settles it together with its record."""

    def __init__(self, caller: Caller, endpoint: str) -> None:
        self.caller = caller
        self.record: dict[str, Any] = begin_record(
            trace=caller.trace, identity=caller.identity, endpoint=endpoint, admitted_at=caller.admission.at
        )
        self.limits = caller.identity.limits
        #: The tokens used, and their cost where the price is known.
        self.used = Amount()
        #: Whether an attempt was charged at a deployment without a price, so that the cost of the call is unknown.
        self.is_unpriced = False
        #: The prices of the current deployment; None if it has none.
        self.rates: Rates | None = Rates()
        #: The cost of the answer without earlier failed attempts, in nano-dollars; 0 if unknown.
        self.answer_cost = 0
        #: Prompt and answer; None unless the account logs payloads.
        self.content: CallContent | None = None
        #: The sum over the attempts whose usage is known.
        self._usage: Usage | None = None
        self._bound: Bound | None = None
        self._draft_unpriced = False
        self._reserved: Reserved | None = None
        self._attempts_reserved = 0
        #: Whether the limits refused another attempt after one that may be billed.
        self.is_out_of_room = False

    def name_model(self, name: str) -> None:
        """Note the model's public name, and add the model's own budgets to the limits."""
        self.record["model"] = name
        self.limits = self.caller.identity.limits_for(name)

    @property
    def cost(self) -> int | None:
        """The cost of the call in nano-dollars; None if unknown."""
        return None if self.is_unpriced else self.used.cost

    @property
    def is_charged(self) -> bool:
        """Return whether an attempt has been charged."""
        return "usage_source" in self.record

    @property
    def output_tokens(self) -> int:
        """The output tokens that the reservation grants; 0 without one."""
        return self._reserved.output_tokens if self._reserved else 0

    @property
    def attempt_tokens(self) -> int:
        """The most tokens that one attempt may use."""
        return self._bound.at(self.output_tokens).tokens if self._bound else 0

    @property
    def has_reserved(self) -> bool:
        """Return whether there is a reservation to settle."""
        return self._reserved is not None

    @property
    def is_cut(self) -> bool:
        """Return whether a limit shortened the longest answer, so that this one may be incomplete."""
        return self._bound is not None and self.output_tokens < self._bound.output_tokens

    def reserve(self, bound: Bound, *, unpriced: bool = False) -> None:
        """Reserve a slot and the bound; raises the error of a refusal, or DependencyUnavailable.

        `unpriced`: none of the deployments has a price.
        """
        self._bound, self._draft_unpriced = bound, unpriced
        answer = self._reserve()
        if isinstance(answer, Refusal):
            raise refusal_error(answer)
        self._hold(answer)

    def covers_another(self) -> bool:
        """Reserve the bound once more, for an attempt after one that may be billed; False if that is not possible."""
        answer: Reserved | Refusal | None = None
        with suppress(DependencyUnavailable, OperationClosed):
            answer = self._reserve()
        self.is_out_of_room = not isinstance(answer, Reserved)
        if isinstance(answer, Reserved):
            self._hold(answer)
        return not self.is_out_of_room

    def _hold(self, reserved: Reserved) -> None:
        """Note the reservation, and the token windows after it for the answer's headers."""
        self._reserved = reserved
        self.caller.token_windows[:] = reserved.tokens

    def charge_bound(self) -> None:
        """Charge the bound for a failed attempt that may be billed and whose usage is unknown."""
        if self._bound is not None:
            self.used += self._bound.at(self.output_tokens)
            self.is_unpriced |= self.rates is None
            self.record["usage_source"] = "bound"

    def charge(self, usage: Usage, rates: Rates | None, *, source: str) -> None:
        """Add the usage of an attempt to what was charged before."""
        self.is_unpriced |= rates is None
        cost = (rates or Rates()).cost(
            input_tokens=usage.input_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens
        )
        had_bound = self.record.get("usage_source") == "bound"
        self._usage = usage if self._usage is None else self._usage + usage
        self.record.update(cached_tokens=self._usage.cached_tokens, usage_source="bound" if had_bound else source)
        self.used += Amount(usage.input_tokens + usage.output_tokens, cost)
        self.answer_cost = cost

    def note_failure(self, deployment: str, cause: str) -> None:
        """Record why an attempt failed, for operators. The cause contains none of the provider's text."""
        failures = self.record.get("failures", "")
        self.record["failures"] = f"{failures}; {deployment}: {cause}".removeprefix("; ")[:MOST_TOLD]

    def note(self, sentence: str) -> None:
        """Record another obstacle once, such as a deployment that was skipped."""
        failures = self.record.get("failures", "")
        if sentence not in failures:
            self.record["failures"] = f"{failures}; {sentence}".removeprefix("; ")[:MOST_TOLD]

    def answered(self, body: Body) -> None:
        """Keep a provider's answer for the payload log, if the account has one."""
        if self.content is not None:
            self.content.body = body

    def followed(self, reader: EventReader | None) -> None:
        """Keep the reader of a provider's stream for the payload log, if the account has one."""
        if self.content is not None:
            self.content.reader = reader

    def settle(self, *, status: int, error_code: str = "", partial: bool = False) -> None:
        """Release the slot, replace the bound by the usage, and emit the record, in one atomic step of the limits."""
        self._complete(status=status, error_code=error_code)
        if partial:
            self.record["partial"] = True
        caller = self.caller
        with caller.trace.stage("limits"):
            get_limits().settle(
                self.limits,
                caller.trace.id.hex,
                admitted_at=caller.admission.at,
                used=replace(self.used, cost=self.cost or 0),
                record=self.record,
            )
        self._finish()

    def emit(self, *, status: int, error_code: str = "") -> None:
        """Emit the record of a call that reserved nothing; refusals beyond a rate are counted in a tally instead."""
        self._complete(status=status, error_code=error_code)
        caller = self.caller
        with caller.trace.stage("limits"):
            get_limits().emit(caller.identity.account_id, caller.trace.id.hex, self.record, tally=self._tally())
        self._finish()

    def _finish(self) -> None:
        """Report the emitted record to metrics, spans and the payload log."""
        trace = self.caller.trace
        trace.is_recorded = True
        observe_record(self.record)
        if trace.spans is not None:
            trace.spans.describe(self.record)
        if self.content is not None:
            self.content.keep()

    def _tally(self) -> Tally | None:
        """Return the tally that counts this refusal with equal ones; None if it needs a record of its own.

        Refusals are equal if they agree in every field that reports group by.
        """
        record = self.record
        if not 400 <= record["status"] < 500 or record.get("cache", "") in ANSWERED_BEFORE:
            return None
        alike = (record["endpoint"], record["status"], record["error_code"], record.get("cache"), record.get("model"))
        return Tally(f"key:{record['key_id']}", ":".join(str(part or "") for part in alike))

    def _complete(self, *, status: int, error_code: str) -> None:
        """Record the outcome. Tokens beyond the known usage belong to attempts that were charged their bound."""
        output = self._usage.output_tokens if self._usage else min(self.output_tokens, self.used.tokens)
        self.record.update(
            status=status,
            error_code=error_code,
            input_tokens=self.used.tokens - output,
            output_tokens=output,
            cost=self.cost or 0,
            **({"unpriced": True} if self.is_unpriced else {}),
            latency_ms=round(self.caller.trace.elapsed_ms, 3),
            stages=self.caller.trace.stages_text,
        )

    def _reserve(self) -> Reserved | Refusal:
        """Ask the limits for the bound. The draft becomes the record if this process dies."""
        assert self._bound is not None  # noqa: S101  (reserve comes first)
        caller = self.caller
        self._attempts_reserved += 1
        draft = {**self.record, "status": 500, "error_code": "interrupted", "attempts": self._attempts_reserved}
        if self._draft_unpriced:
            draft["unpriced"] = True
        try:
            return get_limits().reserve(
                self.limits,
                caller.trace.id.hex,
                admitted_at=caller.admission.at,
                bound=self._bound,
                draft=draft,
                attempt=self._attempts_reserved,
            )
        except Unavailable as error:
            raise DependencyUnavailable(retry_after=error.retry_after) from error


class CallContent:
    """The prompt and the answer of a call: `body` is the provider's answer, or `reader` has read its stream."""

    def __init__(self, call: ModelCall, caller: Caller) -> None:
        self._call = call
        self._caller = caller
        self.body: Body | None = None
        self.reader: EventReader | None = None

    def keep(self) -> None:
        """Queue the content for the payload log, after the record; it is dropped if it can't be written."""
        keeper.keep(
            record_id=self._caller.trace.id,
            account_id=self._caller.identity.account_id,
            prompt={"model": self._call.model, **self._call.payload},
            answer=self._answer,
        )

    def _answer(self) -> Any:
        """Return the answer, a streamed one as a non-streamed body; None if there is none."""
        if self.reader is not None:
            return self.reader.body()
        if self.body is None or "stream" not in self.body:
            return self.body
        reader = self._call.protocol.reader(self._call.payload)
        reader.feed(str(self.body["stream"]).encode())
        return reader.body()
