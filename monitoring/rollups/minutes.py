"""The last hours by the minute, of all accounts together: what a dashboard looks at while something happens."""

from __future__ import annotations

from datetime import datetime

from monitoring.rollups.figures import Figures
from monitoring.rollups.periods import minute_of, moment_of_minute
from monitoring.rollups.selectors import Scope, collect
from monitoring.rollups.tallies import MINUTE_GRAIN


def usage_by_minute(
    *, begin: datetime, end: datetime, before: tuple[datetime, datetime], scope: Scope
) -> tuple[dict[tuple[datetime, str], Figures], dict[str, Figures]]:
    """Add up a span by minute and model, and the span `before` by model; both begin and end with whole minutes.

    The scope names no account and no key.
    """
    minutes, earlier = collect(
        lambda _: [
            {(MINUTE_GRAIN, minute): minute for minute in range(minute_of(begin), minute_of(end))},
            dict.fromkeys((MINUTE_GRAIN, minute) for minute in range(*map(minute_of, before))),
        ],
        scope,
        by="model",
    )
    by_minute = {(moment_of_minute(minute), str(model)): each for (minute, model), each in minutes.items() if minute}
    return by_minute, {str(model): each for (_, model), each in earlier.items()}
