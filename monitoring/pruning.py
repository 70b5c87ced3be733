"""Deletes many old rows without anybody noticing: in small steps, each a short transaction, with pauses in between.

Rows go in the order of a column that has an index. A step deletes as many as fit into STEP_SECONDS, by what
the steps before took, and is broken off by the database at STEP_LIMIT: then the next one is smaller. Pruning can be
stopped after any step, and begun again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import OperationalError, connection, transaction
from django.db.models import QuerySet

from accounts.keyset import closest_first

STEP_SECONDS = 0.03  # what a step is meant to take
STEP_LIMIT = 0.06  # what its statement may take at most; its commit comes on top
PAUSE_RATIO = 3  # how many times as long as a step the pause after it is: others have the database to themselves
SHORTEST_PAUSE = 0.02  # seconds: longer than a writer of SQLite sleeps between its first tries for the lock
FIRST_ROWS, MOST_ROWS = 100, 5_000
PROGRESS_OPCODES = 1000  # of SQLite's machine, between two looks at the clock


@dataclass(slots=True)
class Pace:
    """How many rows the next step takes."""

    rows: int = FIRST_ROWS

    def learn(self, seconds: float) -> None:
        """Take more or fewer after a step that took so long, never more than twice as many."""
        self._scale(STEP_SECONDS / max(seconds, 1e-6))

    def slow_down(self) -> bool:
        """Take a quarter after a step that was broken off; False if a step can't be smaller."""
        was = self.rows
        self._scale(0.25)
        return self.rows < was

    def _scale(self, factor: float) -> None:
        self.rows = max(1, min(MOST_ROWS, int(self.rows * min(factor, 2.0))))


@dataclass(slots=True)
class Pruned:
    """What has been done so far."""

    rows: int = 0
    steps: int = 0
    longest: float = 0.0  # seconds
    was_stopped: bool = False

    def __str__(self) -> str:
        stopped = ", stopped before the end" if self.was_stopped else ""
        return f"{self.steps:,} steps, the longest {self.longest * 1000:.0f} ms{stopped}"


@dataclass(slots=True)
class Pruning:
    """Deletes the rows of a queryset, in the order of a column.

    `wait` pauses for so many seconds and answers whether to stop.
    """

    doomed: QuerySet[Any]
    column: str
    wait: Callable[[float], bool]
    pace: Pace = field(default_factory=Pace)
    done: Pruned = field(default_factory=Pruned)

    def run(self) -> Pruned:
        """Delete until nothing is left or `wait` says stop; raises the database's error where no step succeeds."""
        for seconds in self._steps():
            if self.wait(max(SHORTEST_PAUSE, seconds * PAUSE_RATIO)):
                self.done.was_stopped = True
                break
        return self.done

    def _steps(self) -> Iterator[float]:
        """Do one step after the other; yield what each took, in seconds."""
        after: Any = None
        while (end := self._end(after)) is not None:
            began = time.perf_counter()
            try:
                rows = self._delete(after, end)
            except OperationalError:
                if not self.pace.slow_down():
                    raise
                yield time.perf_counter() - began
                continue
            after, seconds = end, time.perf_counter() - began
            self.pace.learn(seconds)
            self.done.rows += rows
            self.done.steps += 1
            self.done.longest = max(self.done.longest, seconds)
            yield seconds

    def _beyond(self, after: Any) -> QuerySet[Any]:
        rows = self.doomed.order_by(self.column)
        return rows if after is None else closest_first(rows.filter(**{f"{self.column}__gt": after}))

    def _end(self, after: Any) -> Any:
        """Find the last row of the next step; None where there is none."""
        keys = list(self._beyond(after).values_list(self.column, flat=True)[: self.pace.rows])
        return keys[-1] if keys else None

    def _delete(self, after: Any, end: Any) -> int:
        doomed = closest_first(self._beyond(after).filter(**{f"{self.column}__lte": end})).order_by()
        with transaction.atomic(), _bounded(is_free=self.pace.rows == 1):
            return doomed.delete()[0]


@contextmanager
def _bounded(*, is_free: bool) -> Iterator[None]:
    """Have the database break off what takes longer than STEP_LIMIT. The smallest step is free: it must succeed."""
    if is_free:
        yield
    elif connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # Nor does its commit wait for the disk: a step that a crash undoes is done again.
            cursor.execute(f"SET LOCAL synchronous_commit = off; SET LOCAL statement_timeout = {STEP_LIMIT * 1000:.0f}")
        yield
    else:
        deadline = time.monotonic() + STEP_LIMIT
        connection.connection.set_progress_handler(lambda: time.monotonic() > deadline, PROGRESS_OPCODES)
        try:
            yield
        finally:
            connection.connection.set_progress_handler(None, 0)
