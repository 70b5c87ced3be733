"""The ledgers in Redis against the records: what is wrong is told, what is on its way is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db.models import F
from django.utils import timezone
from redis.exceptions import ConnectionError as RedisConnectionError

from accounts import services
from accounts.key_cache import build_authenticated_key, model_budgets_of
from accounts.limits.backend import LimitBackend
from accounts.limits.ledgers import LedgerStore
from accounts.limits.records import UsageRecord
from accounts.limits.scripts import prefix_of
from accounts.limits.types import Amount, LimitSet
from accounts.models import ApiKey, AuditEntry
from accounts.services import BudgetFor
from accounts.tests.factories import ACTOR, Cast, IssuedKey
from core.times import month_of, month_start
from monitoring import reconciliation
from monitoring.ingester import Ingester
from monitoring.models import RequestRecord, Rollup
from monitoring.reconciliation import LOOKS, LedgerDifference, ledger_differences, ledgers_fix, unwritten
from monitoring.recorder import write_record
from monitoring.rollups.periods import DAY
from monitoring.tests.samples import a_draft, an_operation, now_micros, open_call, recorded, scope_of
from monitoring.tests.test_ingester import CrashingClient

pytestmark = pytest.mark.django_db
MODEL = "gpt-3.5-turbo"


@dataclass
class Ledgers:
    """The limits, their store, and calls of keys: `owner` is the one that tests look at."""

    limits: LimitBackend
    store: Any
    owner: IssuedKey

    def __post_init__(self) -> None:
        self.key, self.account = f"key:{self.owner.key.pk}", f"account:{self.owner.key.account_id}"
        self.prefix = prefix_of(scope_of(self.owner).shard)

    def use(self, tokens: int, issued: IssuedKey | None = None, scope: LimitSet | None = None) -> None:
        """Have a key use so many tokens, at 3 nano-dollars each; the record of that goes to the stream."""
        issued = issued or self.owner
        draft = a_draft(issued, input_tokens=tokens, output_tokens=0, cost=tokens * 3)
        self.settle(open_call(self.limits, issued) if scope is None else an_operation(), draft, scope, issued)

    def settle(
        self, operation: str, draft: UsageRecord, scope: LimitSet | None = None, issued: IssuedKey | None = None
    ) -> None:
        """Settle a call as its draft says."""
        amount = Amount(draft.input_tokens + draft.output_tokens, draft.cost or 0)
        scope = scope or scope_of(issued or self.owner)
        self.limits.settle(scope, operation, admitted_at=draft.admitted_at, used=amount, record=draft)

    def name(self, subject: str) -> str:
        """Return the key in Redis of a ledger of the present month."""
        return f"{self.prefix}{subject}:m:{month_of(now_micros())}"


@pytest.fixture
def ledgers(cast: Cast, redis_limits: LimitBackend, store: Any) -> Ledgers:
    """Return the limits on an empty store, and acme's owner."""
    return Ledgers(redis_limits, store, cast.owner)


def differences(month: int = 0, pause: Callable[[float], object] = lambda _: None) -> list[LedgerDifference]:
    """Compare a month (the present one), without pauses."""
    return list(ledger_differences([month or month_of(now_micros())], pause=pause))


def told(month: int = 0) -> list[str]:
    """Compare a month, and return what is told."""
    return [str(each) for each in differences(month)]


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act each time that a stream was read, before the database is."""
    read = LedgerStore.waiting

    def waiting(self: LedgerStore, shard: int) -> Iterator[Any]:
        yield from list(read(self, shard))
        act()

    monkeypatch.setattr(LedgerStore, "waiting", waiting)


class TestRightLedgers:
    def test_it_counts_once_what_is_in_the_database_in_the_stream_or_in_both(
        self, ledgers: Ledgers, cast: Cast
    ) -> None:
        for issued in (cast.owner, cast.colleague, cast.stranger):
            ledgers.use(30, issued)
        Ingester().run_once()
        assert told() == []
        ledgers.use(7)
        assert told() == []
        with suppress(RedisConnectionError):
            Ingester(CrashingClient(ledgers.store)).run_once()
        assert RequestRecord.objects.count() == 4
        open_call(ledgers.limits, cast.owner)
        for nonsense in ({"nonsense": "x"}, {"o": "x", "x": "0", "r": "{}"}, {"o": "x", "x": "0", "r": "[]"}):
            ledgers.store.xadd(f"{ledgers.prefix}records", nonsense)
        assert told() == []

    def test_it_counts_the_bound_that_a_dead_call_was_charged(self, ledgers: Ledgers) -> None:
        operation, shard = open_call(ledgers.limits, ledgers.owner), scope_of(ledgers.owner).shard
        ledgers.store.zadd(f"{ledgers.prefix}l", {operation: 1})
        assert ledgers.limits.reap(shard) == 1
        assert told() == []
        Ingester().run_once()
        assert told() == []
        ledgers.settle(operation, a_draft(ledgers.owner))  # late: its record replaces the other
        assert told() == []
        Ingester().run_once()
        assert told() == []
        assert RequestRecord.objects.get().usage_source == "provider"

    def test_it_knows_that_successors_share_a_ledger(self, ledgers: Ledgers, cast: Cast) -> None:
        ApiKey.objects.filter(pk=cast.colleague.key.pk).update(lineage_id=cast.owner.key.pk)
        cast.colleague.key.refresh_from_db()
        ledgers.use(30)
        Ingester().run_once()
        ledgers.use(7, cast.colleague)
        assert told() == []

    def test_it_reads_no_ledger_that_there_is_not(self, ledgers: Ledgers) -> None:
        recorded(ledgers.owner)
        assert told() == []
        assert ledgers.store.keys("*:m:*") == []

    def test_it_is_not_misled_by_calls_that_end_while_it_looks(
        self, ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def then_use(uses: Any) -> Any:
            found = unwritten(uses)
            ledgers.use(5)
            return found

        ledgers.use(30)
        meanwhile(monkeypatch, lambda: ledgers.use(7))
        monkeypatch.setattr(reconciliation, "unwritten", then_use)
        assert told() == []

    def test_it_waits_for_what_is_charged_late(self, ledgers: Ledgers) -> None:
        ledgers.use(30)
        operation, draft = open_call(ledgers.limits, ledgers.owner), a_draft(ledgers.owner)
        write_record(replace(draft, id=operation))  # as while Redis is down
        pauses: list[float] = []

        def charge_in_the_last(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == LOOKS - 1:
                ledgers.limits.settle(
                    scope_of(ledgers.owner),
                    operation,
                    admitted_at=draft.admitted_at,
                    used=Amount(30, 25_000),
                    record=None,
                )

        assert differences(pause=charge_in_the_last) == []
        assert len(pauses) == LOOKS - 1


class TestWrongLedgers:
    def test_it_tells_of_a_ledger_that_was_changed_by_hand(self, ledgers: Ledgers, cast: Cast) -> None:
        for issued in (cast.owner, cast.stranger):
            ledgers.use(30, issued)
        Ingester().run_once()
        ledgers.store.hincrby(ledgers.name(ledgers.key), "st", 1_000)
        ledgers.store.hincrby(ledgers.name(ledgers.key), "sc", -90)
        ledgers.store.hset(ledgers.name(ledgers.account), "st", 29)
        month, owner = month_of(now_micros()), cast.owner.key
        wrong = "was charged 1,000 tokens too much, was charged $0.000000090 too little"
        assert sorted(told()) == [
            f"ledger of {month}: account {owner.account.name} ({ledgers.account}) was charged 1 tokens too little",
            f"ledger of {month}: key {owner.account.name}/{owner.name} ({ledgers.key}) {wrong}",
        ]

    def test_it_tells_of_a_record_that_was_lost(self, ledgers: Ledgers) -> None:
        ledgers.use(30)
        ledgers.store.delete(f"{ledgers.prefix}records")
        wrong = "charged 30 tokens too much, was charged $0.000000090 too much"
        assert [line.partition(" was ")[2] for line in told()] == [wrong] * 2

    def test_it_tells_of_a_reservation_that_nobody_holds(self, ledgers: Ledgers) -> None:
        operation = open_call(ledgers.limits, ledgers.owner, tokens=100)
        assert told() == []
        ledgers.store.hincrby(ledgers.name(ledgers.key), "rt", 50)
        (line,) = told()
        assert line.endswith("has reserved 50 tokens too much")
        ledgers.store.delete(f"{ledgers.prefix}o:{operation}")
        assert len(told()) == 2

    def test_it_tells_of_a_ledger_in_use_how_far_it_is_off_at_least(
        self, ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledgers.use(30)
        ledgers.store.hincrby(ledgers.name(ledgers.key), "st", 1_000)
        meanwhile(monkeypatch, lambda: ledgers.use(7))
        (found,) = differences()
        assert str(found).endswith("was charged at least 1,000 tokens too much")
        assert ledgers_fix([found]) == [], "a ledger in use is corrected another time"
        assert not AuditEntry.objects.filter(action="corrected").exists()

    def test_it_looks_at_the_month_of_admission(self, ledgers: Ledgers) -> None:
        ledgers.use(30)
        before = month_start(month_of(now_micros())) - 1
        ledgers.limits.usage(scope_of(ledgers.owner), month_of(before))
        draft = a_draft(ledgers.owner, admitted_at=before)
        ledgers.limits.emit(ledgers.owner.key.account_id, an_operation(), draft)  # a record of what was not charged
        assert told() == []
        (line, _) = told(month_of(before))
        assert line.startswith(f"ledger of {month_of(before)}: ")
        assert "30 tokens too little" in line


class TestModelBudgets:
    @pytest.fixture
    def give(self, ledgers: Ledgers) -> Callable[[], LimitSet]:
        """Return what gives the owner and its account a budget for a model, and returns what a call counts against."""
        apps.get_model("inference", "Model").objects.create(public_name=MODEL)
        key = ledgers.owner.key

        def give() -> LimitSet:
            for owner in (key, key.account):
                services.model_budget_set(owner=owner, budget=BudgetFor(MODEL, 10_000, None), actor=ACTOR)
            return build_authenticated_key(key, timezone.now(), model_budgets_of(key)).limits_for(MODEL)

        return give

    def test_it_compares_the_budgets_of_a_key_and_an_account_for_a_model(
        self, ledgers: Ledgers, cast: Cast, give: Callable[[], LimitSet]
    ) -> None:
        scope = give()
        ledgers.use(30, scope=scope)
        Ingester().run_once()
        ledgers.use(7, scope=scope)
        ledgers.use(0, cast.colleague)
        assert told() == []
        for subject in scope.subjects[2:]:
            ledgers.store.hincrby(ledgers.name(subject.name), "st", 5)
        lines = told()
        assert len(lines) == 2
        assert all(line.endswith("was charged 5 tokens too much") for line in lines)
        assert all(f" for model {MODEL} (" in line for line in lines)

    def test_it_forgives_what_was_on_its_way_when_a_budget_was_made(
        self, ledgers: Ledgers, give: Callable[[], LimitSet]
    ) -> None:
        ledgers.use(40)  # not ingested yet
        ledgers.use(7, scope=give())
        Ingester().run_once()
        assert told() == []
        Rollup.objects.filter(grain="kq").update(start=F("start") - DAY)
        lines = told()
        assert len(lines) == 2
        assert all("was charged 40 tokens too little" in line for line in lines)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reconciliation, "PAUSE", 0.0)

    def test_it_tells_by_its_status_that_a_ledger_is_wrong(
        self, ledgers: Ledgers, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ledgers.use(30)
        call_command("check_rollups")
        right = "The rollups agree with the log.\n"
        assert capsys.readouterr().out == f"{right}The ledgers agree with the records.\n"
        ledgers.store.hincrby(ledgers.name(ledgers.key), "st", 1_000)
        with pytest.raises(SystemExit) as ended:
            call_command("check_rollups", "--days=2")
        assert ended.value.code == 1
        out, err = capsys.readouterr()
        assert out == right
        assert "was charged 1,000 tokens too much" in err
        assert "1 ledgers disagree with the records" in err

    def test_it_fixes_ledgers_if_it_is_told_to_and_the_rollups_are_right(
        self, ledgers: Ledgers, capsys: pytest.CaptureFixture[str]
    ) -> None:
        open_call(ledgers.limits, ledgers.owner, tokens=100)
        ledgers.use(30)
        name = ledgers.name(ledgers.key)
        right = ledgers.store.hgetall(name)
        ledgers.store.hset(name, mapping={"st": 5, "sc": 10**9, "rt": 0, "rc": 7})
        call_command("check_rollups", "--fix-ledgers")
        assert ledgers.store.hgetall(name) == right
        assert "Corrected 1 ledgers." in capsys.readouterr().out
        assert "was charged 25 tokens too little" in AuditEntry.objects.get(action="corrected").after["difference"]
        Ingester().run_once()
        Rollup.objects.update(input_tokens=5)
        with pytest.raises(SystemExit):
            call_command("check_rollups", "--mend-ledgers")
        assert ledgers.store.hgetall(name) == right

    @pytest.mark.parametrize("cause", ["store down", "too many waiting"])
    def test_it_fails_where_it_could_not_compare(
        self, ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cause: str
    ) -> None:
        def fail(self: LedgerStore, shard: int) -> Any:
            raise RedisConnectionError("gone")

        for _ in range(3):
            ledgers.use(30)
        monkeypatch.setattr(reconciliation, "MOST", 2)
        if cause == "store down":
            monkeypatch.setattr(LedgerStore, "waiting", fail)
        with pytest.raises(SystemExit):
            call_command("check_rollups")
        assert "the ledgers could not be compared" in capsys.readouterr().err
