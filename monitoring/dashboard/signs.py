"""By what the dashboard notices that there is something new: one query and one look at the streams, whatever it shows.

Records alone would not do: while the ingester stands still none comes, and that is when somebody should look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.db import connection
from django.db.models import Count, Max, QuerySet, Value
from django.utils import timezone
from redis.exceptions import RedisError

from monitoring.backlog import ingest_backlog
from monitoring.health import LAG_SECONDS
from monitoring.models import Alert, RequestRecord

#: Selects rows that come and go, and names a column that is higher in each that comes.
Sign = Callable[[], tuple[QuerySet[Any, Any], str]]
_signs: list[Sign] = []


def register_sign(sign: Sign) -> None:
    """Let a room that knows more tell what changes with that; a later one replaces it."""
    _signs[:] = [sign]


def open_alerts_sign() -> tuple[QuerySet[Any, Any], str]:
    """Select the alerts that go on."""
    return Alert.objects.filter(ended_at=None), "pk"


def signs() -> list[str]:
    """List what changes when something happened: the newest record first (None: there is none).

    A record that a clock which was ahead put into the future does not hide those that come after it.
    """
    known = RequestRecord.objects.filter(admitted_at__lte=timezone.now())
    newest = known.order_by("-admitted_at", "-pk").values("pk")[:1]
    others = (each for sign in (open_alerts_sign, *_signs) for each in _number_and_latest(*sign()))
    return [*_values(newest, *others), _backlog_sign()]


def _number_and_latest(rows: QuerySet[Any, Any], column: str) -> Iterator[QuerySet[Any, Any]]:
    together = rows.order_by().annotate(together=Value(1)).values("together")
    for aggregate in (Count("pk"), Max(column)):
        yield together.annotate(sign=aggregate).values("sign")


def _values(*queries: QuerySet[Any, Any]) -> list[str]:
    """Read what each selects, in one query."""
    compiled = [query.query.sql_with_params() for query in queries]
    selected = ", ".join(f"({sql})" for sql, _ in compiled)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {selected}", [value for _, values in compiled for value in values])
        return [str(value) for value in cursor.fetchone()]


def _backlog_sign() -> str:
    """Tell how many records wait, and roughly how long: in steps of what counts as late."""
    try:
        backlog = ingest_backlog()
    except RedisError:
        return "away"
    return f"{backlog.records}.{backlog.seconds // LAG_SECONDS:.0f}"
