"""What only the memory backend has: a sink, a journal, and the duty to keep its memory bounded."""

import pytest

from accounts.limits.bounds import Amount
from accounts.limits.contract import MINUTE, SHARDS, Refusal, Reserved, Scope
from accounts.limits.memory import IDLE, MemoryBackend
from accounts.limits.memory_operations import CHARGED_TTL, MARK_TTL
from accounts.limits.records import Record
from accounts.tests.limits_fixtures import NOVEMBER, Clock, Database, a_bound, a_scope, an_operation

DRAFT = {"endpoint": "/chat"}


class Notebook:
    """A journal and a sink that note the order of what happens, and fail on demand."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.open: dict[str, Record] = {}
        self.fails = False

    def opened(self, operation: str, account_id: int, record: Record) -> None:
        if self.fails:
            raise OSError("no space left")
        self.events.append("opened")
        self.open[operation] = record

    def closed(self, operation: str) -> None:
        self.events.append("closed")
        self.open.pop(operation)

    def sink(self, record: Record) -> None:
        self.events.append("record")


class Embedded:
    """A memory backend with a notebook."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.database = Database()
        self.notebook = Notebook()
        self.limits = MemoryBackend(
            seeder=self.database, sink=self.notebook.sink, journal=self.notebook, clock=self.clock
        )

    def reserve(self, scope: Scope, operation: str, attempt: int = 1) -> Reserved | Refusal:
        return self.limits.reserve(
            scope, operation, admitted_at=self.clock.now, bound=a_bound(), draft=DRAFT, attempt=attempt
        )

    def settle(self, scope: Scope, operation: str) -> None:
        self.limits.settle(scope, operation, admitted_at=self.clock.now, used=Amount(1, 1), record=DRAFT)


@pytest.fixture
def embedded() -> Embedded:
    return Embedded()


class TestJournal:
    def test_it_writes_down_what_a_crash_would_charge(self, embedded: Embedded) -> None:
        embedded.reserve(a_scope(), "op")
        assert embedded.notebook.open["op"] == {
            **DRAFT,
            "id": "op",
            "revision": 1,
            "overrun": False,
            "usage_source": "bound",
            "input_tokens": 10,
            "output_tokens": 90,
            "cost": 100_000,
        }

    def test_it_closes_an_entry_only_after_the_record(self, embedded: Embedded) -> None:
        scope = a_scope()
        embedded.reserve(scope, "op")
        embedded.settle(scope, "op")
        assert embedded.notebook.events == ["opened", "record", "closed"]

    def test_it_closes_the_entry_of_an_expired_lease(self, embedded: Embedded) -> None:
        scope = a_scope()
        embedded.reserve(scope, "op")
        embedded.clock.step(20)
        embedded.limits.reap(scope.shard)
        assert embedded.notebook.events == ["opened", "record", "closed"]

    def test_it_writes_down_a_bound_that_grew(self, embedded: Embedded) -> None:
        scope = a_scope()
        embedded.reserve(scope, "op")
        embedded.reserve(scope, "op", attempt=2)
        assert embedded.notebook.open["op"]["cost"] == 200_000

    def test_it_undoes_a_reservation_that_cannot_be_written_down(self, embedded: Embedded) -> None:
        scope = a_scope(concurrent_requests=1)
        embedded.notebook.fails = True
        with pytest.raises(OSError, match="no space left"):
            embedded.reserve(scope, "op")
        used = embedded.limits.usage(scope)[0]
        assert (used.slots, used.reserved, used.settled) == (0, Amount(), Amount())
        embedded.notebook.fails = False
        assert isinstance(embedded.reserve(scope, "another"), Reserved)


class TestMemory:
    def test_it_forgets_idle_subjects_and_seeds_them_again(self, embedded: Embedded) -> None:
        scope = a_scope(monthly_tokens=100)
        embedded.reserve(scope, "op")
        embedded.settle(scope, "op")
        embedded.database.ledgers[scope.subjects[0].name, NOVEMBER] = Amount(1, 1)
        embedded.clock.now += IDLE
        embedded.limits.admit(a_scope(), an_operation())
        assert scope.subjects[0].name not in embedded.limits._subjects
        assert embedded.limits.usage(scope)[0].settled == Amount(1, 1)

    def test_it_keeps_idle_subjects_that_hold_something(self, embedded: Embedded) -> None:
        scope = a_scope()
        embedded.reserve(scope, "op")
        embedded.clock.now += IDLE
        embedded.limits.admit(a_scope(), an_operation())
        assert embedded.limits.usage(scope)[0].slots == 1

    def test_it_forgets_operations(self, embedded: Embedded) -> None:
        limits = embedded.limits
        for number in range(100):
            scope = a_scope(requests_per_minute=5)
            limits.admit(scope, f"{number}")
            embedded.reserve(scope, f"{number}")
            if number % 2:
                embedded.settle(scope, f"{number}")
            embedded.clock.step(1)
        embedded.clock.step(20)
        for shard in range(SHARDS):
            limits.reap(shard)
        embedded.clock.now += max(MARK_TTL, CHARGED_TTL, IDLE) + MINUTE
        for _ in range(2):
            limits.admit(a_scope(), an_operation())
        book = limits._operations
        assert (len(book._operations), len(book._admitted)) == (0, 2)
        assert not any(book._closed.values())
        assert len(limits._subjects) == 4

    def test_it_keeps_ledgers_of_a_few_months_only(self, embedded: Embedded) -> None:
        scope = a_scope()
        for month in (202607, 202608, 202609, 202610, NOVEMBER):
            embedded.limits.usage(scope, month)
        assert len(embedded.limits._subjects[scope.subjects[0].name].ledgers) == 3
