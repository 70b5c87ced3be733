"""How the commands about rollups are told a span of time."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from monitoring.moments import require_order, typed_moment
from monitoring.rollups.periods import hour_of
from monitoring.rollups.sweep import span_of_log

INSTANT = timedelta(microseconds=1)


def add_span_arguments(parser: ArgumentParser) -> None:
    """Take --from and --to."""
    form = "YYYY-MM-DD or YYYY-MM-DDTHH:00, in UTC unless it says otherwise"
    parser.add_argument("--from", dest="begin", type=typed_moment, help=f"{form} (default: where the log begins)")
    parser.add_argument("--to", dest="until", type=typed_moment, help=f"{form}, excluded (default: where the log ends)")


def span_of(options: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first hour and the hour after the last that are meant; raises CommandError if they are reversed."""
    first, last = span_of_log()
    begin, until = options["begin"], options["until"]
    require_order(begin, until)
    return (first if begin is None else hour_of(begin)), (last if until is None else hour_of(until - INSTANT) + 1)
