"""How requests end, by their HTTP status: of single records, and as conditions for queries of the log."""

from __future__ import annotations

from django.db.models import Q

from monitoring.models import RequestRecord, Rollup

Outcome = Rollup.Outcome

#: Those that are errors, the caller's or ours.
ERRORS = (Outcome.INVALID, Outcome.LIMITED, Outcome.FAILED)
#: Those whose times are worth telling: a refusal takes next to none, and one row may stand for many.
TIMED = (Outcome.OK, Outcome.FAILED)
#: What selects the records of each.
OUTCOMES = {
    Outcome.OK: Q(status__lt=400),
    Outcome.INVALID: Q(status__gte=400, status__lt=500) & ~Q(status=429),
    Outcome.LIMITED: Q(status=429),
    Outcome.FAILED: Q(status__gte=500),
}

#: What /stats and the dashboard count as found in the cache: answers of it, and those shared in flight.
FOUND = (RequestRecord.Cache.HIT, RequestRecord.Cache.COALESCED)

_OK, _INVALID, _LIMITED, _FAILED = (str(outcome) for outcome in Outcome)  # a call of str for each record would show


def outcome_of(status: int) -> str:
    """Name how a request of an HTTP status ended (see Rollup.Outcome)."""
    if status < 400:
        return _OK
    if status >= 500:
        return _FAILED
    return _LIMITED if status == 429 else _INVALID
