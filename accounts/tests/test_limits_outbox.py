"""Records that the database did not take at first: kept, written later, charged once; and who sees to that."""

from __future__ import annotations

import pytest

from accounts.limits import leases
from accounts.limits.bounds import Amount
from accounts.limits.contract import SECOND, LimitBackend, Reserved, Scope
from accounts.limits.leases import LeaseKeeper
from accounts.limits.memory import IDLE, MemoryBackend
from accounts.limits.outbox import Outbox
from accounts.limits.records import Record
from accounts.tests.limits_fixtures import Clock, Database, a_bound, a_scope, an_operation

DRAFT = {"endpoint": "/chat"}


class Shelf:
    """A database: rows of records by id, the highest revision winning, and open rows; away when told to be."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.open: dict[str, Record] = {}
        self.is_away = False

    def store(self, record: Record) -> None:
        self._require()
        if record["revision"] > self.rows.get(record["id"], {"revision": 0})["revision"]:
            self.rows[record["id"]] = record

    def opened(self, operation: str, account_id: int, record: Record) -> None:
        self._require()
        self.open[operation] = record

    def closed(self, operation: str) -> None:
        self._require()
        self.open.pop(operation, None)

    def restart(self) -> None:
        """Do what the next start does with the open rows."""
        for record in self.open.values():
            self.store(record)
        self.open.clear()

    def _require(self) -> None:
        if self.is_away:
            raise OSError("the database is away")

    def tokens(self) -> int:
        return sum(row["input_tokens"] + row["output_tokens"] for row in self.rows.values())


class Embedded:
    """A memory backend on a shelf."""

    def __init__(self) -> None:
        self.clock, self.shelf = Clock(), Shelf()
        database = Database(knows=lambda subject, month: Amount(self.shelf.tokens(), 0))
        self.limits = MemoryBackend(
            seeder=database, sink=self.shelf.store, journal=self.shelf, clock=self.clock, lease_seconds=20
        )
        self.scope = a_scope()

    def open(self, scope: Scope | None = None) -> str:
        operation = an_operation()
        granted = self.limits.reserve(
            scope or self.scope, operation, admitted_at=self.clock.now, bound=a_bound(), draft=DRAFT
        )
        assert isinstance(granted, Reserved)
        return operation

    def settle(self, operation: str, tokens: int = 30) -> None:
        record = {**DRAFT, "input_tokens": tokens, "output_tokens": 0, "cost": 0, "usage_source": "provider"}
        used = Amount(tokens, 0)
        self.limits.settle(self.scope, operation, admitted_at=self.clock.now, used=used, record=record)

    def settled(self) -> int:
        return self.limits.usage(self.scope)[0].settled.tokens


@pytest.fixture
def embedded() -> Embedded:
    return Embedded()


class TestWaiting:
    def test_it_answers_a_call_whose_record_cannot_be_stored_and_stores_it_later(self, embedded: Embedded) -> None:
        operation = embedded.open()
        embedded.shelf.is_away = True
        embedded.settle(operation)
        assert (embedded.settled(), embedded.shelf.rows) == (30, {})
        embedded.limits.tend()
        embedded.shelf.is_away = False
        embedded.limits.tend()
        assert embedded.shelf.rows[operation]["usage_source"] == "provider"
        assert (embedded.settled(), embedded.shelf.tokens(), embedded.shelf.open) == (30, 30, {})

    def test_it_charges_the_bound_when_the_process_dies_before(self, embedded: Embedded) -> None:
        operation = embedded.open()
        embedded.shelf.is_away = True
        embedded.settle(operation)
        embedded.shelf.is_away = False
        embedded.shelf.restart()
        assert embedded.shelf.rows[operation]["usage_source"] == "bound"
        assert embedded.shelf.tokens() == 100

    def test_it_charges_once_when_only_the_journal_failed(self, embedded: Embedded) -> None:
        operation = embedded.open()
        left = embedded.shelf.open[operation]
        embedded.settle(operation)
        embedded.shelf.open[operation] = left
        embedded.shelf.restart()
        assert embedded.shelf.tokens() == 30

    def test_it_keeps_the_charge_of_a_lease_that_ran_out_meanwhile(self, embedded: Embedded) -> None:
        operation = embedded.open()
        embedded.clock.step(21)
        embedded.shelf.is_away = True
        embedded.limits.tend()
        embedded.shelf.is_away = False
        embedded.limits.tend()
        assert embedded.shelf.rows[operation]["usage_source"] == "bound"
        embedded.settle(operation)
        assert (embedded.settled(), embedded.shelf.tokens()) == (30, 30)

    def test_it_lets_the_final_record_replace_one_that_waits(self, embedded: Embedded) -> None:
        operation = embedded.open()
        embedded.clock.step(21)
        embedded.shelf.is_away = True
        embedded.limits.tend()
        embedded.settle(operation)
        embedded.shelf.is_away = False
        embedded.limits.tend()
        assert (embedded.shelf.tokens(), embedded.shelf.open) == (30, {})

    def test_it_bothers_no_other_caller_with_it(self, embedded: Embedded) -> None:
        embedded.open()
        embedded.clock.step(21)
        embedded.limits._outbox._sink = lambda record: (_ for _ in ()).throw(OSError("full"))
        assert embedded.open()

    def test_it_forgets_no_ledger_while_records_wait(self, embedded: Embedded) -> None:
        operation = embedded.open()
        embedded.shelf.is_away = True
        embedded.settle(operation)
        embedded.clock.step(2 * IDLE / SECOND)
        embedded.limits.admit(a_scope(), an_operation())
        assert embedded.settled() == 30

    def test_it_tells_a_caller_whose_hit_cannot_be_recorded(self, embedded: Embedded) -> None:
        embedded.shelf.is_away = True
        with pytest.raises(OSError, match="away"):
            embedded.limits.emit(embedded.scope.account_id, an_operation(), DRAFT)


def test_it_drops_the_oldest_when_too_much_waits() -> None:
    shelf = Shelf()
    shelf.is_away = True
    outbox = Outbox(shelf.store, shelf, capacity=2)
    for number in range(3):
        outbox.send({"id": f"op{number}", "revision": 2})
    shelf.is_away = False
    assert outbox.flush()
    assert sorted(shelf.rows) == ["op1", "op2"]


class TestKeeper:
    @pytest.fixture
    def limits(self, embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> LimitBackend:
        monkeypatch.setattr(leases, "get_limits", lambda: embedded.limits)
        return embedded.limits

    def test_it_renews_what_has_been_open_for_long(self, embedded: Embedded, limits: LimitBackend) -> None:
        seconds = [0.0]
        keeper: LeaseKeeper[int] = LeaseKeeper(clock=lambda: seconds[0], renew=leases._renew, tend=leases._tend)
        operation = embedded.open()
        with keeper.held(embedded.scope.account_id, operation):
            assert keeper.renew_due(7) == 0
            seconds[0] = 7.0
            embedded.clock.step(19)
            assert keeper.renew_due(7) == 1
            embedded.clock.step(19)
            limits.tend()
            assert limits.usage(embedded.scope)[0].slots == 1
        assert keeper.renew_due(0) == 0

    @pytest.mark.django_db
    def test_it_frees_the_slot_of_what_died_in_this_process(self, embedded: Embedded, limits: LimitBackend) -> None:
        operation = embedded.open()
        embedded.clock.step(21)
        leases._tend()
        assert limits.usage(embedded.scope)[0].slots == 0
        assert embedded.shelf.rows[operation]["usage_source"] == "bound"
