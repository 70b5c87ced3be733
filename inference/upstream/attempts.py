"""What a failed call to a provider means: to the caller, to the bill, and for what may be tried next."""

from __future__ import annotations

import time
from dataclasses import dataclass

from accounts.exceptions import ApiError
from inference.surfaces.base import Usage


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may follow a failure.

    `may_be_billed`: the provider may have worked on the call. `goes_elsewhere`: another deployment may be asked.
    `returns`: the same one may be asked again after a pause. `is_down`: the provider itself failed, as its breaker
    counts it; `is_unreached`: no connection could be made, which puts its address aside; `is_empty`: the operator's
    credit there is used up. `retry_after`: seconds that the provider asked for.
    """

    may_be_billed: bool
    goes_elsewhere: bool
    returns: bool
    is_down: bool
    is_unreached: bool = False
    is_empty: bool = False
    retry_after: float = 0.0


#: A provider said no to this very request: so would any other.
REJECTED = Verdict(may_be_billed=False, goes_elsewhere=False, returns=False, is_down=False)


class AttemptFailed(Exception):
    """One call to one deployment failed: the caller's error, and what may follow.

    `usage` is what it used, where the provider says so (`usage_source` "provider") or what came was counted.
    """

    def __init__(
        self,
        error: ApiError,
        verdict: Verdict,
        *,
        cause: str = "",
        usage: Usage | None = None,
        usage_source: str = "provider",
    ) -> None:
        super().__init__(error.detail)
        self.error = error
        self.verdict = verdict
        self.usage = usage
        self.usage_source = usage_source
        #: What happened, for operators, in words without any of the provider's.
        self.cause = cause or error.error_code

    @property
    def tokens(self) -> int | None:
        """The tokens that it used; None where nobody knows."""
        if self.usage is not None:
            return self.usage.input_tokens + self.usage.output_tokens
        return None if self.verdict.may_be_billed else 0


class Deadline:
    """A moment until which a call has to be done, however many attempts it takes."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least a millisecond: a timeout of 0 would mean none to some libraries."""
        return max(0.001, self.ends - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Say whether the time is up."""
        return time.monotonic() >= self.ends
