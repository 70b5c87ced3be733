"""How the fake provider behaves: its settings, and how they are changed while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .faults import parse_fault

DEFAULT_MODELS = ("gpt-3.5-turbo", "gpt-4o-mini", "text-embedding-3-small")
#: Stands as `owned_by` of each model in its list: by that a caller may know a provider that bills nothing.
OWNER = "fake"


@dataclass(frozen=True, slots=True)
class FakeSettings:
    """The behaviour of a fake provider; times in milliseconds."""

    latency_ms: float = 0.0
    """From the request to the first byte of the answer's head."""
    first_token_ms: float = 0.0
    """From the head of a stream to its first event."""
    chunk_interval_ms: float = 0.0
    """Between two events of a stream; 0 sends them all at once."""
    slow_interval_ms: float = 200.0
    """Between two pieces of an answer under the fault `slow`."""
    tokens: int | None = None
    """Tokens (words) in an answer; None answers with what the input suggests."""
    cached_ratio: float = 0.0
    """Share of the prompt's tokens that is reported, and billed, as cached input."""
    faults: Mapping[str, float] = field(default_factory=dict)
    """Chance of each fault, 0 to 1, over calls to a model."""
    models_fault: str | None = None
    """Fault of every GET /v1/models; the faults above leave that endpoint alone."""
    retry_after: float = 1.0
    """Seconds in the Retry-After header of http_429."""
    api_key: str | None = None
    """Key that a caller must send; None takes everyone."""
    models: tuple[str, ...] = ()
    """Models that exist; empty lists a few well-known ones and takes any name."""

    def __post_init__(self) -> None:
        for name in ("latency_ms", "first_token_ms", "chunk_interval_ms", "slow_interval_ms", "retry_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if not 0 <= self.cached_ratio <= 1:
            raise ValueError("cached_ratio must lie between 0 and 1")
        for kind, rate in self.faults.items():
            parse_fault(f"{kind}:{rate}")
        if self.models_fault is not None:
            parse_fault(self.models_fault)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names that GET /v1/models lists."""
        return self.models or DEFAULT_MODELS

    def changed(self, changes: Mapping[str, Any]) -> "FakeSettings":
        """Return a copy with `changes`; raises ValueError for a name that is no setting or a value out of bounds."""
        unknown = set(changes) - {each.name for each in fields(self)}
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
        if "models" in changes:
            changes = {**changes, "models": tuple(changes["models"])}
        return replace(self, **changes)
