"""A provider's own limits: a slot there before each attempt, given back with the tokens that it used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import structlog

from accounts.limits.gates import Entry, get_gates
from accounts.limits.types import Refusal
from core.errors import ApiError, InvalidRequest, UpstreamBusy
from inference.catalog import Route
from inference.upstream.errors import AttemptFailed, Verdict

#: Nothing was sent: another provider may have room, and its breaker has nothing to learn.
FULL = Verdict(may_be_billed=False, goes_elsewhere=True, returns=False, is_down=False)

log = structlog.get_logger(__name__)


class NoRoom(AttemptFailed):
    """A provider's own limit has no room for an attempt; `refusal` says which, and when it has."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(_error(refusal), FULL)
        self.refusal = refusal


def take_slot(route: Route, operation: str, tokens: int) -> Entry:
    """Take a slot of the route's provider, and hold so many tokens there; raises NoRoom.

    A provider without limits of its own grants it without asking anybody.
    """
    if route.provider_limits is None:
        return Entry(tokens, None)
    answer = get_gates().enter(route.provider_limits, operation, tokens)
    if isinstance(answer, Refusal):
        log.info("provider_full", provider=route.provider, limit=str(answer.limit), retry_after=answer.retry_after)
        raise NoRoom(answer)
    return answer


@contextmanager
def slot(route: Route, operation: str, tokens: int) -> Iterator[Entry]:
    """Hold a slot while the block runs, which leaves it with what was used; a failed attempt used all or nothing."""
    entry = take_slot(route, operation, tokens)
    try:
        yield entry
    except AttemptFailed as failure:
        entry.leave(failure.tokens)
        raise
    finally:
        entry.leave()


def none_has_room(refused: list[NoRoom], *, others_after: float | None) -> AttemptFailed:
    """Make what callers are told when no provider has room: when the first of them will, in whole seconds.

    `others_after` are the seconds until a deployment may be asked that was not asked now; None where there is none.
    A call that is larger than all that any of them grants a minute is told so.
    """
    waits = [full.refusal.retry_after for full in refused if not full.refusal.impossible]
    if others_after is not None:
        waits.append(ceil(others_after))
    error = UpstreamBusy(retry_after=min(waits)) if waits else refused[0].error
    return AttemptFailed(error, FULL)


def _error(refusal: Refusal) -> ApiError:
    if refusal.impossible:
        text = "The request and its longest answer are more than the model's provider takes in a minute."
        return InvalidRequest(text, code="bound_exceeds_limit")
    return UpstreamBusy(retry_after=refusal.retry_after)
