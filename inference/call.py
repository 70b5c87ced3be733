"""A model call on its way: its caller, its request, what it holds of the limits, what it has used, and its record.

A call leaves exactly one usage record: `settle` emits it for a call with a reservation, `emit` for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

from django.conf import settings

from accounts.key_cache import AuthenticatedKey
from accounts.limit_usage import refusal_error
from accounts.limits import get_limits
from accounts.limits.records import UsageRecord
from accounts.limits.types import (
    Admission,
    Amount,
    Bound,
    FlightClaim,
    InFlight,
    LimitSet,
    LimitsUnavailable,
    OperationClosed,
    Refusal,
    RefusalGroup,
    Reserved,
)
from core.errors import ApiError, DependencyUnavailable, InvalidRequest, ModelNotFound, UpstreamFailed
from core.telemetry.trace import Trace
from inference.cache import answer_key
from inference.catalog import CatalogModel, Route, catalog
from inference.prices import SERVICE_TIERS, Rates
from inference.protocols.base import Body, Payload, WireProtocol
from inference.protocols.events import EventReader
from inference.protocols.translation import Translation
from inference.protocols.translations import translation
from inference.relay import ClientSocket
from inference.single_flight import Flight, Wait, pack_error
from inference.upstream.errors import MISCONFIGURED, AttemptFailed, Deadline
from inference.usage import Usage
from monitoring.metrics import observe_record, span_attributes
from monitoring.payload_log import keeper

#: Values of `cache` in the record of a request that was answered without a call to a provider of its own.
ANSWERED_BEFORE = ("hit", "coalesced", "replay")

#: Characters of a record's `failures` that are kept.
MOST_FAILURES = 500
#: Attempts of a call whose times are recorded.
TIMED_ATTEMPTS = 6


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One request to a model endpoint, from its admission to its record. `ask` adds what is asked."""

    # Who asks, and at which endpoint
    identity: AuthenticatedKey
    trace: Trace
    #: The request rates as counted for the request, and the token rates after its latest reservation.
    admission: Admission
    endpoint: str
    #: Returns the client's socket, to notice a disconnect; None if the call runs to its end even after a disconnect.
    client: Callable[[], ClientSocket] | None = None
    #: Whether the answer may come from the cache, and be stored in it.
    reads_cache: bool = True
    writes_cache: bool = True

    #: The caller's name of the conversation; empty if there is none.
    session: str = ""

    # What is asked: see `ask`
    protocol: WireProtocol = field(init=False)
    model: CatalogModel = field(init=False)
    #: The deployments that the limits of the call allow.
    routes: tuple[Route, ...] = ()
    model_name: str | None = None
    payload: Payload = field(default_factory=dict)
    read: Callable[[Body], Any] = field(init=False)
    #: Headers for the provider, where it speaks the caller's format.
    headers: Mapping[str, str] = field(default_factory=dict)
    is_stream: bool = False
    deadline: Deadline = field(init=False)
    #: The key of the answer in the cache; None if it is not shared.
    cache_key: str | None = None
    #: Returns why the call is to end without an answer (the client has left, the process shuts down), if it is to.
    interruption: Callable[[], Exception | None] | None = None

    #: The flight that this call leads in its process, and its wait for the flight of another call.
    flight: Flight | None = None
    wait: Wait | None = None
    #: The provider's failure, set if the followers of the flight share it.
    provider_error: ApiError | None = None

    # What the limits have granted
    limits: LimitSet = field(init=False)
    bound: Bound | None = None
    reserved: Reserved | None = None
    attempts_reserved: int = 0
    #: The output tokens that the latest reservation grants; 0 without one.
    output_tokens: int = 0
    #: Whether the limits refused another attempt after one that may be billed.
    is_out_of_room: bool = False

    # Where it went, and what it used
    first_route: Route | None = None
    route: Route | None = None
    #: The tokens used, and their cost where the price is known.
    used: Amount = field(default_factory=Amount)
    #: The sum over the attempts whose usage is known; None without one.
    known_usage: Usage | None = None
    #: Whether an attempt was charged at a deployment without a price, so that the cost of the call is unknown.
    is_unpriced: bool = False
    #: The provider's answer, of a stream `{"stream": text}`; `reader` has read the stream.
    body: Body | None = None
    reader: EventReader | None = None
    #: The tokens and the cost (nano-dollars; 0 if unknown) of the answer, without earlier failed attempts.
    answer_tokens: int = 0
    answer_cost: int = 0

    #: The milliseconds of each attempt, of a stream to its first event, and when the current one began.
    attempt_times: list[float] = field(default_factory=list)
    attempt_began: float | None = None

    record: UsageRecord = field(init=False)
    is_recorded: bool = False

    def __post_init__(self) -> None:
        identity = self.identity
        self.limits = identity.limits
        self.record = UsageRecord(
            id=self.trace.id.hex,
            label=self.trace.label,
            admitted_at=self.admission.at,
            account_id=identity.account_id,
            account_name=identity.account_name,
            key_id=identity.key_id,
            key_name=identity.key_name,
            endpoint=self.endpoint,
        )

    def choose(self, protocol: WireProtocol, model: str | None) -> CatalogModel:
        """Choose the model by name (None: the default), and the deployments that the limits allow.

        Raises ModelNotFound if it does not exist, is of another kind, or the caller may not use it.
        """
        found = catalog.default() if model is None else catalog.find(model)
        if found is None or found.kind != protocol.kind or not self.identity.may_use_model(found.public_name):
            raise ModelNotFound(model)
        self.protocol, self.model, self.model_name = protocol, found, model
        self.limits = self.identity.limits_for(found.public_name)
        self.routes = found.routes_within(self.limits)
        self.record.model, self.record.cache = found.public_name, "bypass"
        return found

    def ask(
        self, payload: Payload, *, read: Callable[[Body], Any], shares_answer: bool = True, is_stream: bool = False
    ) -> Self:
        """Add the provider's payload, without `model`, which has been chosen.

        `read` extracts the endpoint's answer from a provider's body that is not streamed. It raises an ApiError if the
        body is unusable for the endpoint; such an answer is billed and not cached. `shares_answer`: the answer may come
        from the cache and be stored in it. Raises InvalidRequest if no deployment's provider can be sent the payload.
        """
        self.payload, self.read, self.is_stream = payload, read, is_stream
        searches = self.protocol.most_searches(payload) if payload.get("tools") else 0
        has_other_price = searches > 0 or payload.get("service_tier") in SERVICE_TIERS
        for route in self.routes:
            if has_other_price or route.is_anthropic is not self.protocol.is_anthropic:
                self._keep_able_routes()
                break
        self.deadline = Deadline(settings.UPSTREAM_STREAM_TIMEOUT if is_stream else settings.UPSTREAM_TIMEOUT)
        if shares_answer and self.identity.cache_enabled and (self.reads_cache or self.writes_cache):
            name, protocol = self.model.public_name, self.protocol
            most_output = protocol.wanted_output(payload, self.identity, self.model)
            self.cache_key = answer_key(
                self.identity.account_id,
                endpoint=self.endpoint,
                model=name,
                payload={
                    "asked": protocol.shaping(payload),
                    "most_output": most_output,
                    "is_stream": is_stream,
                    **({"headers": self.headers} if self.headers else {}),
                },
                generation=(self.identity.cache_generation(name), self.model.cache_generation),
            )
            self.record.cache = "miss" if self.reads_cache else "bypass"
        return self

    def _keep_able_routes(self) -> None:
        """Leave out the deployments whose provider has another format that the payload can't be translated to."""
        able, refusal = [], None
        for route in self.routes:
            try:
                self._refuse_unpriced(route)
                if (found := self.translation(route)) is not None:
                    found.payload(self.payload, model=route.upstream_name)
                able.append(route)
            except InvalidRequest as error:
                refusal = refusal or error
        if refusal is not None:
            if not able:
                raise refusal
            self.routes = tuple(able)

    def _refuse_unpriced(self, route: Route) -> None:
        """Raise InvalidRequest if the payload asks for a service tier or a search that has no price at a deployment."""
        tier, rates = self.payload.get("service_tier"), route.rates
        if tier in SERVICE_TIERS and (rates is None or rates.in_tier(tier) is rates):
            text = f"The model has no price for the service tier '{tier}'."
            raise InvalidRequest(text, param="service_tier", code="unsupported_parameter")
        if (rates is None or rates.search is None) and self.protocol.most_searches(self.payload):
            text = "The model has no price for the provider's web search."
            raise InvalidRequest(text, param="tools", code="unsupported_parameter")

    def rates(self, route: Route, tier: Any) -> Rates | None:
        """Return a deployment's rates for the service tier in its answer, or if that names none, in the payload."""
        rates, tier = route.rates, tier if isinstance(tier, str) else self.payload.get("service_tier")
        if rates is not None and (found := rates.in_tier(tier)) is not rates:
            self.record.service_tier = tier
            return found
        return rates

    def translation(self, route: Route) -> Translation | None:
        """Return the translation to the format of a deployment's provider; None if it speaks the caller's."""
        if route.is_anthropic is self.protocol.is_anthropic:
            return None
        return translation(self.protocol)

    def headers_for(self, route: Route) -> Mapping[str, str]:
        """Return the caller's headers that a deployment's provider gets: none if it speaks another format."""
        return self.headers if route.is_anthropic else {}

    @property
    def is_fallback(self) -> bool:
        """Return whether the answer came from a fallback.

        That is any deployment but the one tried first, or one whose order is higher than the lowest of the routes.
        """
        first, last = self.first_route, self.route
        if first is None or last is None:
            return False
        return last is not first or last.order > min(route.order for route in self.routes)

    @property
    def is_cached(self) -> bool:
        """Return whether the answer came without an upstream call of this call."""
        return self.record.cache in ANSWERED_BEFORE

    def note_attempt(self, route: Route) -> None:
        """Record the deployment that the call is sent to."""
        self.route = route
        self.first_route = self.first_route or route
        self.record.deployment = route.name
        self.record.attempts += 1
        self.attempt_began = self.trace.elapsed_ms

    def end_attempt(self) -> None:
        """Record how long the current attempt took, if there was one."""
        if self.attempt_began is not None:
            self.attempt_times.append(self.trace.elapsed_ms - self.attempt_began)
            self.attempt_began = None

    @property
    def attempt_id(self) -> str:
        """The id of the next attempt, for the provider's limits."""
        return f"{self.trace.id.hex}.{self.record.attempts}"

    @property
    def attempt_tokens(self) -> int:
        """The most tokens that one attempt may use."""
        return self.bound.at(self.output_tokens).tokens if self.bound else 0

    @property
    def is_cut(self) -> bool:
        """Return whether a limit shortened the longest answer, so that this one may be incomplete."""
        return self.bound is not None and self.output_tokens < self.bound.output_tokens

    def outgoing(self, route: Route) -> tuple[WireProtocol, Body, Translation | None]:
        """Return the provider's endpoint, the payload for it, and the translation of its answer, if it needs one.

        The granted output tokens are divided among the answers that the payload asks for.
        """
        protocol, payload, found = self.protocol, self.payload, self.translation(route)
        if found is not None:
            protocol, payload = found.target, found.payload(payload, model=route.upstream_name)
        each = self.output_tokens // self.protocol.answers(self.payload)
        sent = protocol.with_output(payload, each, route.output_parameter)
        return protocol, protocol.as_stream(sent) if self.is_stream else sent, found

    def whole_body(self) -> Body | None:
        """Return the answer, a streamed one as a non-streamed body; None if there is none."""
        if self.reader is not None:
            return self.reader.body()
        if self.body is None or "stream" not in self.body:
            return self.body
        reader = self.protocol.reader(self.payload)
        reader.feed(str(self.body["stream"]).encode())
        return reader.body()

    def reserve(self, bound: Bound) -> InFlight | None:
        """Reserve a slot and the bound; return the identical call in another process that decides instead, if any.

        Raises the error of a refusal, or DependencyUnavailable.
        """
        self.bound = bound
        answer = self._reserve(bound)
        if isinstance(answer, Refusal):
            output = bound.output_tokens if bound.minimum_output is None else bound.minimum_output
            raise refusal_error(answer, bound.at(output))
        return answer if isinstance(answer, InFlight) else None

    def covers_another(self) -> bool:
        """Reserve the bound once more, for an attempt after one that may be billed; False if that is not possible."""
        answer: Reserved | Refusal | InFlight | None = None
        with suppress(DependencyUnavailable, OperationClosed):
            answer = self._reserve(self.bound) if self.bound is not None else None
        self.is_out_of_room = not isinstance(answer, Reserved)
        return not self.is_out_of_room

    def _reserve(self, bound: Bound) -> Reserved | Refusal | InFlight:
        """Ask the limits for the bound. The draft becomes the record if this process dies."""
        attempt = self.attempts_reserved + 1
        draft = replace(self.record, status=500, error_code="interrupted", attempts=attempt)
        flight = None
        if self.flight is not None and self.wait is not None and not self.wait.is_alone and settings.CACHE_URL:
            flight = FlightClaim(self.flight.key, self.wait.since)
        try:
            answer = get_limits().reserve(
                self.limits,
                self.record.id,
                admitted_at=self.admission.at,
                bound=bound,
                draft=draft,
                attempt=attempt,
                flight=flight,
            )
        except LimitsUnavailable as error:
            raise DependencyUnavailable(retry_after=error.retry_after) from error
        if isinstance(answer, Reserved):
            self.attempts_reserved = attempt
            self.reserved, self.output_tokens = answer, answer.output_tokens
            self.admission = self.admission.with_tokens(answer.tokens)
            if self.wait is not None:
                self.wait.follows = False
        return answer

    @property
    def cost(self) -> int | None:
        """The cost of the call in nano-dollars; None if unknown."""
        return None if self.is_unpriced else self.used.cost

    def charge(self, usage: Usage, rates: Rates | None, *, source: str) -> None:
        """Add the usage of an attempt to what was charged before."""
        self.is_unpriced |= rates is None
        cost = rates.cost(usage) if rates is not None else 0
        self.known_usage = usage if self.known_usage is None else self.known_usage + usage
        if self.record.usage_source != "bound":
            self.record.usage_source = source
        self.used += Amount(usage.tokens, cost)
        self.answer_tokens, self.answer_cost = usage.tokens, cost

    def charge_bound(self) -> None:
        """Charge the bound for a failed attempt that may be billed and whose usage is unknown."""
        if self.bound is not None:
            self.used += self.bound.at(self.output_tokens)
            self.is_unpriced |= self.route is not None and self.route.rates is None
            self.record.usage_source = "bound"

    def charge_failure(self, failure: AttemptFailed, route: Route) -> None:
        """Charge a failed attempt and note its cause.

        The charge is its usage, or its bound if the usage is unknown and the attempt may be billed. If the provider
        rejects a parameter that the platform added, the error becomes UpstreamFailed: the caller can't correct it.
        """
        error = failure.error
        if isinstance(error, InvalidRequest) and self.protocol.is_added(error.param, self.payload):
            verdict = replace(MISCONFIGURED, may_be_billed=failure.verdict.may_be_billed)
            failure.error, failure.verdict = UpstreamFailed(), verdict
            failure.cause = f"{failure.cause} about {error.param}"
        self.note_failure(route.name, failure.cause)
        if failure.usage is not None:
            self.charge(failure.usage, self.rates(route, None), source=failure.usage_source)
        elif failure.verdict.may_be_billed:
            self.charge_bound()

    def provider_failed(self, error: ApiError) -> ApiError:
        """Return the provider's failure, and share it with the followers unless this caller's limits had a part in it.

        They had if they shortened the longest answer and the provider rejected the request, or if they did not allow an
        attempt at another deployment. The keys of the followers may have higher limits.
        """
        if not self.is_out_of_room and not (self.is_cut and isinstance(error, InvalidRequest)):
            self.provider_error = error
        return error

    def note_failure(self, deployment: str, cause: str) -> None:
        """Record why an attempt failed, for operators. The cause contains none of the provider's text."""
        self._add_failure(f"{deployment}: {cause}")

    def note(self, sentence: str) -> None:
        """Record another obstacle once, such as a deployment that was skipped."""
        if sentence not in self.record.failures:
            self._add_failure(sentence)

    def _add_failure(self, text: str) -> None:
        self.record.failures = f"{self.record.failures}; {text}".removeprefix("; ")[:MOST_FAILURES]

    def finish(self, *, status: int, error_code: str = "") -> None:
        """Settle the reservation, if there is one, and emit the record."""
        finish = self.settle if self.reserved is not None else self.emit
        finish(status=status, error_code=error_code)

    def settle(self, *, status: int, error_code: str = "") -> None:
        """Release the slot, replace the bound by the usage, and emit the record, in one atomic step of the limits."""
        self._complete(status, error_code)
        with self.trace.stage("limits"):
            get_limits().settle(
                self.limits,
                self.record.id,
                admitted_at=self.admission.at,
                used=replace(self.used, cost=self.cost or 0),
                record=self.record,
                flight_error=pack_error(self.provider_error) if self.provider_error is not None else "",
            )
        self._report()

    def emit(self, *, status: int, error_code: str = "") -> None:
        """Emit the record of a call that reserved nothing; refusals beyond a rate may be counted in a group instead."""
        self._complete(status, error_code)
        with self.trace.stage("limits"):
            get_limits().emit(self.identity.account_id, self.record.id, self.record, group=self._refusal_group())
        self._report()

    def _complete(self, status: int, error_code: str) -> None:
        """Record the outcome. Tokens beyond the known usage belong to attempts that were charged their bound."""
        record, known = self.record, self.known_usage
        record.status, record.error_code = status, error_code
        if known is not None:
            for part in Usage.__slots__:
                setattr(record, part, getattr(known, part))
        else:
            record.output_tokens = min(self.output_tokens, self.used.tokens)
        record.input_tokens = self.used.tokens - record.output_tokens
        record.cost = self.cost
        record.latency_ms = round(self.trace.elapsed_ms, 3)
        attempts = (f"attempt{number}={ms:.1f}" for number, ms in enumerate(self.attempt_times[:TIMED_ATTEMPTS], 1))
        record.stages = " ".join((self.trace.stages_text, *attempts)).strip()

    def _refusal_group(self) -> RefusalGroup | None:
        """Return the group in which this refusal is counted with equal ones; None if it needs a record of its own.

        Refusals are equal if they agree in every field that reports group by.
        """
        record = self.record
        if not 400 <= record.status < 500 or record.cache in ANSWERED_BEFORE:
            return None
        alike = (record.endpoint, record.status, record.error_code, record.cache, record.model)
        return RefusalGroup(f"key:{record.key_id}", ":".join(map(str, alike)))

    def _report(self) -> None:
        """Report the emitted record to metrics and spans, and the content to the payload log if the account has one."""
        self.is_recorded = True
        observe_record(self.record)
        if self.trace.spans is not None:
            self.trace.spans.describe(span_attributes(self.record))
        if self.identity.logs_content and self.payload:
            keeper.keep(
                record_id=self.trace.id,
                account_id=self.identity.account_id,
                prompt={"model": self.model_name, **self.payload},
                answer=self.whole_body,
            )
