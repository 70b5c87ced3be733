"""The bill of one call: what it holds while it runs, what it used, and the one record that it leaves.

Prompt and answer of one call, of an account whose content is logged: put together when the call has its record.
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

#: What an error may have been recorded as that another request had met first.
ANSWERED_BEFORE = ("hit", "coalesced", "replay")

#: Characters that a record keeps about its failed attempts.
MOST_TOLD = 500


class Bill:
    """Reserves for a call, sums up what its attempts used, and settles it together with its record."""

    def __init__(self, caller: Caller, endpoint: str) -> None:
        self.caller = caller
        self.record: dict[str, Any] = begin_record(
            trace=caller.trace, identity=caller.identity, endpoint=endpoint, admitted_at=caller.admission.at
        )
        self.limits = caller.identity.limits
        #: What was used, at the prices that are known.
        self.used = Amount()
        #: Whether an attempt was charged at a deployment without a price: then nobody knows what the call costs.
        self.is_unpriced = False
        #: The prices of the deployment that is asked now, None where it has none.
        self.rates: Rates | None = Rates()
        #: What the answer itself cost, in nano-dollars (0 where unknown): without the attempts that failed before it.
        self.answer_cost = 0
        #: Prompt and answer, where the account's content is logged.
        self.content: CallContent | None = None
        #: What the attempts used whose usage is known.
        self._usage: Usage | None = None
        self._bound: Bound | None = None
        self._draft_unpriced = False
        self._reserved: Reserved | None = None
        self._attempts_reserved = 0
        #: Whether the limits had no room for another attempt after one that may be billed.
        self.is_out_of_room = False

    def name_model(self, name: str) -> None:
        """Note the model that is called, by its public name: budgets for it alone count too."""
        self.record["model"] = name
        self.limits = self.caller.identity.limits_for(name)

    @property
    def cost(self) -> int | None:
        """What the call costs, in nano-dollars; None where that is unknown."""
        return None if self.is_unpriced else self.used.cost

    @property
    def is_charged(self) -> bool:
        """Say whether anything was charged for the attempts until now."""
        return "usage_source" in self.record

    @property
    def output_tokens(self) -> int:
        """The most output tokens that were granted."""
        return self._reserved.output_tokens if self._reserved else 0

    @property
    def attempt_tokens(self) -> int:
        """The most tokens that one attempt may use."""
        return self._bound.at(self.output_tokens).tokens if self._bound else 0

    @property
    def has_reserved(self) -> bool:
        """Say whether there is something to settle."""
        return self._reserved is not None

    @property
    def is_cut(self) -> bool:
        """Say whether a limit had no room for the longest answer, so that this one may end before it is complete."""
        return self._bound is not None and self.output_tokens < self._bound.output_tokens

    def reserve(self, bound: Bound, *, unpriced: bool = False) -> None:
        """Take a slot and the bound; raises what a refusal means, or DependencyUnavailable.

        `unpriced`: no deployment that may be asked has a price.
        """
        self._bound, self._draft_unpriced = bound, unpriced
        answer = self._reserve()
        if isinstance(answer, Refusal):
            raise refusal_error(answer)
        self._hold(answer)

    def covers_another(self) -> bool:
        """Take the bound once more, for an attempt after one that may be billed; False if a limit has no room."""
        answer: Reserved | Refusal | None = None
        with suppress(DependencyUnavailable, OperationClosed):
            answer = self._reserve()
        self.is_out_of_room = not isinstance(answer, Reserved)
        if isinstance(answer, Reserved):
            self._hold(answer)
        return not self.is_out_of_room

    def _hold(self, reserved: Reserved) -> None:
        """Note what is held, and what it leaves of the rates, which the answer's headers tell."""
        self._reserved = reserved
        self.caller.token_windows[:] = reserved.tokens

    def charge_bound(self) -> None:
        """Charge an attempt that failed and may be billed: nobody knows how much, so all that it could be."""
        if self._bound is not None:
            self.used += self._bound.at(self.output_tokens)
            self.is_unpriced |= self.rates is None
            self.record["usage_source"] = "bound"

    def charge(self, usage: Usage, rates: Rates | None, *, source: str) -> None:
        """Charge what an attempt used, on top of those before it."""
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
        """Write down why an attempt failed: for operators, in words without any of the provider's."""
        told = self.record.get("failures", "")
        self.record["failures"] = f"{told}; {deployment}: {cause}".removeprefix("; ")[:MOST_TOLD]

    def note(self, sentence: str) -> None:
        """Write down, once, what else stood in the way, such as a deployment that was not asked."""
        told = self.record.get("failures", "")
        if sentence not in told:
            self.record["failures"] = f"{told}; {sentence}".removeprefix("; ")[:MOST_TOLD]

    def answered(self, body: Body) -> None:
        """Note a provider's answer, for the content where that is logged."""
        if self.content is not None:
            self.content.body = body

    def followed(self, reader: EventReader | None) -> None:
        """Note who has followed the provider's stream."""
        if self.content is not None:
            self.content.reader = reader

    def settle(self, *, status: int, error_code: str = "", partial: bool = False) -> None:
        """Give the slot back, replace the bound by what was used, and emit the record: one step of the limits."""
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
        """Emit the record of a call that reserved nothing; refusals beyond a rate are counted instead."""
        self._complete(status=status, error_code=error_code)
        caller = self.caller
        with caller.trace.stage("limits"):
            get_limits().emit(caller.identity.account_id, caller.trace.id.hex, self.record, tally=self._tally())
        self._finish()

    def _finish(self) -> None:
        """Tell those who look on, now that the record is on its way."""
        trace = self.caller.trace
        trace.is_recorded = True
        observe_record(self.record)
        if trace.spans is not None:
            trace.spans.describe(self.record)
        if self.content is not None:
            self.content.keep()

    def _tally(self) -> Tally | None:
        """Say with which others this may be counted: refusals, alike in all by which reports tell requests apart."""
        record = self.record
        if not 400 <= record["status"] < 500 or record.get("cache", "") in ANSWERED_BEFORE:
            return None
        alike = (record["endpoint"], record["status"], record["error_code"], record.get("cache"), record.get("model"))
        return Tally(f"key:{record['key_id']}", ":".join(str(part or "") for part in alike))

    def _complete(self, *, status: int, error_code: str) -> None:
        """Write down how it ended. Tokens beyond the usage are those of attempts that were charged their bound."""
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
        """Ask the limits. The draft is what the record will say if this process dies."""
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
