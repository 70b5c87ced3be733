"""The books of a platform, read past it: what callers were answered, the log, the rollups, the ledgers, the bill.

Each is compared with the log by SQL and sums that know nothing of the code that writes them.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from threading import Event, Thread
from typing import Any

import redis

from inference.fake_provider import FakeCall, FakeUpstream
from tests.ledgers import Ledger, counted_refusals, rows, waiting_records
from tests.servers import Service
from tests.traffic import REFUSED, Outcome

#: Where a record's tokens are not what the provider billed, and need not be.
UNSURE = ("bound", "estimated")
MINUTE = 60.0

#: What the log of an account adds up to, by the columns of the finest rollups; money in nano-dollars.
LOG_SUMS = """
SELECT floor(extract(epoch FROM admitted_at) / 900)::int * 15, key_id, endpoint, model,
       CASE WHEN status < 400 THEN 'ok' WHEN status >= 500 THEN 'failed'
            WHEN status = 429 THEN 'limited' ELSE 'invalid' END,
       sum(count)::int, sum(count) FILTER (WHERE cache = 'hit'), sum(count) FILTER (WHERE cache = 'coalesced'),
       sum(count) FILTER (WHERE cache = 'miss'), sum(input_tokens), sum(output_tokens),
       sum(cost * 1000000000), sum(saved_cost * 1000000000)
FROM monitoring_requestrecord WHERE account_id = %s GROUP BY 1, 2, 3, 4, 5
"""
ROLLUPS = """
SELECT start, key_id, endpoint, model, outcome,
       requests, hits, coalesced, misses, input_tokens, output_tokens, cost, saved_cost
FROM monitoring_rollup WHERE account_id = %s AND grain = 'kq'
"""
LOG = """
SELECT label, key_id, status, count, usage_source, input_tokens + output_tokens,
       (coalesce(cost, 0) * 1000000000)::bigint, extract(epoch FROM admitted_at)::float,
       to_char(admitted_at AT TIME ZONE 'UTC', 'YYYYMM')
FROM monitoring_requestrecord WHERE account_id = %s
"""


@dataclass(frozen=True)
class LogRow:
    """A record of the log; cost in nano-dollars, time of admission in seconds since the epoch."""

    label: str
    key: int
    status: int
    count: int
    usage_source: str
    tokens: int
    cost: int
    admitted_at: float
    month: str


@dataclass
class Books:
    """The books of one account, its keys by name, and all that was asked with them."""

    service: Service
    store: Any
    fake: FakeUpstream
    account: int
    keys: dict[str, int]
    outcomes: Sequence[Outcome]
    #: The most that was seen to count against a budget of tokens, by the name of the key.
    peaks: dict[str, int] = field(default_factory=dict)

    def log(self) -> list[LogRow]:
        """List the records."""
        return [LogRow(*row) for row in rows(self.service, LOG, self.account)]

    def wrong(self, *, lost: int = 0) -> list[str]:
        """Name what does not agree with the log, where so many records may have been lost with the store."""
        log = self.log()
        return [
            *self._on_its_way(),
            *self._answers(log, lost),
            *self._rollups(),
            *self._ledgers(log),
            *self._bill(log, lost),
        ]

    def _on_its_way(self) -> Iterator[str]:
        if self.fake.totals()["running"]:
            yield "calls run"
        if waiting := waiting_records(self.store) + counted_refusals(self.store):
            yield f"{waiting} records wait"

    def _answers(self, log: list[LogRow], lost: int) -> Iterator[str]:
        logged = {row.label: row for row in log}
        if len(logged) < len(log):
            yield "a label is in the log twice"
        if unknown := logged.keys() - {each.label for each in self.outcomes}:
            yield f"nobody asked {unknown}"
        answered = [each for each in self.outcomes if each.status == HTTPStatus.OK and not each.failure]
        missing = [each for each in answered if each.label not in logged]
        if len(missing) > lost:
            yield f"{len(missing)} answers are not in the log, {lost} of which are lost"
        for each in answered:
            if each.label in logged and logged[each.label].status != HTTPStatus.OK:
                yield f"{each} is logged as {logged[each.label]}"
        refused = sum(each.status == REFUSED for each in self.outcomes)
        counted = sum(row.count for row in log if row.status == REFUSED)
        unsure = sum(bool(each.failure) for each in self.outcomes)
        if not refused - lost <= counted <= refused + unsure:
            yield f"{refused} were refused, and {counted} are in the log"

    def _rollups(self) -> Iterator[str]:
        summed, kept = (
            {row[:5]: tuple(int(amount or 0) for amount in row[5:]) for row in rows(self.service, query, self.account)}
            for query in (LOG_SUMS, ROLLUPS)
        )
        if summed != kept:
            yield f"the log adds up to {summed}, the rollups say {kept}"

    def _ledgers(self, log: list[LogRow]) -> Iterator[str]:
        for month in sorted({row.month for row in log}):
            for subject, key in [(f"account:{self.account}", 0), *((f"key:{key}", key) for key in self.keys.values())]:
                own = [row for row in log if row.month == month and key in (0, row.key)]
                used = {"st": sum(row.tokens for row in own), "sc": sum(row.cost for row in own), "rt": 0, "rc": 0}
                ledger = Ledger(self.store, self.account, subject, month=month)
                if ledger.exists and (found := ledger.read()) != used:
                    yield f"the ledger of {subject} in {month} is {found}, the log says {used}"

    def _bill(self, log: list[LogRow], lost: int) -> Iterator[str]:
        """Compare by question: several who ask the same may have been answered by one call."""
        questions = {each.label: each.question for each in self.outcomes}
        charged: dict[str, list[LogRow]] = defaultdict(list)
        for row in log:
            charged[questions[row.label]].append(row)
        unrecorded = 0
        for question, calls in self.bill().items():
            billed = sum(call.prompt_tokens + call.completion_tokens for call in calls)
            recorded = charged.pop(question, [])
            tokens = sum(row.tokens for row in recorded)
            if any(row.usage_source in UNSURE for row in recorded):
                if tokens < billed:
                    yield f"{question} was billed {billed}, and {tokens} recorded"
            elif tokens != billed:
                unrecorded += 1
                if tokens > billed or unrecorded > lost:
                    yield f"{question} was billed {billed}, and {tokens} recorded: {recorded} {calls}"
        for question, recorded in charged.items():
            if sum(row.tokens for row in recorded if row.usage_source not in UNSURE):
                yield f"{question} is recorded, and was not billed"

    def bill(self) -> dict[str, list[FakeCall]]:
        """Return the provider's calls, by question."""
        found: dict[str, list[FakeCall]] = defaultdict(list)
        asked = [each for each in self.fake.requests if each.method == "POST"]
        for request, call in zip(asked, self.fake.billed, strict=True):
            found[request.body["messages"][-1]["content"]].append(call)
        return found

    def most_in_a_minute(self, key: str) -> int:
        """Return how many calls of a key were admitted in any 60 seconds."""
        times = sorted(row.admitted_at for row in self.log() if row.key == self.keys[key] and row.status != REFUSED)
        return max((sum(begin <= time < begin + MINUTE for time in times) for begin in times), default=0)

    def most_at_once(self, plain: str) -> int:
        """Return how many calls of a key ran at once at the provider."""
        questions = {each.question for each in self.outcomes if each.manner.key == plain}
        calls = [call for question, calls in self.bill().items() if question in questions for call in calls]
        return max((sum(_overlaps(other, call) for other in calls) for call in calls), default=0)

    def months(self) -> set[str]:
        """Return the months in which calls were admitted."""
        return {row.month for row in self.log()}

    def by_source(self) -> Counter[str]:
        """Count the records by where their usage is from."""
        return Counter(row.usage_source for row in self.log())

    @contextmanager
    def watched(self, *names: str) -> Iterator[None]:
        """Look again and again what counts against the month of these keys."""
        over = Event()

        def watch() -> None:
            while not over.wait(0.01):
                with suppress(redis.RedisError):
                    month = f"{datetime.fromtimestamp(self.store.time()[0], UTC):%Y%m}"
                    for name in names:
                        ledger = Ledger(self.store, self.account, f"key:{self.keys[name]}", month=month)
                        self.peaks[name] = max(ledger.total.tokens, self.peaks.get(name, 0))

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _overlaps(other: FakeCall, call: FakeCall) -> bool:
    """Look whether another call, or this one, ran when this one began."""
    return other.started_at <= call.started_at < (other.ended_at or time.monotonic())
