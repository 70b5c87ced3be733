"""The ledgers in Redis against the records: what is wrong is told, what is on its way is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db.models import F
from django.utils import timezone
from redis.exceptions import ConnectionError as RedisConnectionError

from accounts import services
from accounts.key_cache import build_authenticated_key, model_budgets_of
from accounts.limits.failover import FailoverBackend
from accounts.limits.ledgers import LedgerStore
from accounts.limits.records import UsageRecord
from accounts.limits.redis import prefix_of
from accounts.limits.types import Amount, LimitSet
from accounts.models import ApiKey, AuditEntry
from accounts.services import BudgetFor
from accounts.tests.factories import ACTOR, Cast, IssuedKey
from core.times import month_of, month_start
from monitoring import reconciliation
from monitoring.ingester import Ingester
from monitoring.models import RequestRecord, Rollup
from monitoring.reconciliation import LOOKS, ledger_differences, ledgers_mend, unwritten
from monitoring.recorder import write_record
from monitoring.rollups.periods import DAY
from monitoring.tests.samples import a_draft, an_operation, now_micros, open_call, recorded, scope_of
from monitoring.tests.test_ingester import CrashingClient

pytestmark = pytest.mark.django_db
MODEL = "gpt-3.5-turbo"


def used(limits: FailoverBackend, issued: IssuedKey, tokens: int) -> None:
    """Have a key use so many tokens, at 3 nano-dollars each; the record of that goes to the stream."""
    operation = open_call(limits, issued)
    settle(limits, issued, operation, a_draft(issued, input_tokens=tokens, output_tokens=0, cost=tokens * 3))


def settle(limits: FailoverBackend, issued: IssuedKey, operation: str, draft: UsageRecord) -> None:
    """Settle a call as its draft says."""
    amount = Amount(draft.input_tokens + draft.output_tokens, draft.cost or 0)
    limits.settle(scope_of(issued), operation, admitted_at=draft.admitted_at, used=amount, record=draft)


def ledger_name(issued: IssuedKey, subject: str) -> str:
    """Return the key in Redis of a ledger of the present month."""
    return f"{prefix_of(scope_of(issued).shard)}{subject}:m:{month_of(now_micros())}"


def told() -> list[str]:
    """Compare the present month, without pauses, and return what is told."""
    return [str(each) for each in ledger_differences([month_of(now_micros())], pause=lambda _: None)]


@pytest.fixture
def key(cast: Cast) -> str:
    """Return the owner's key as a subject."""
    return f"key:{cast.owner.key.pk}"


class TestRightLedgers:
    def test_it_finds_nothing_where_the_records_are_in_the_database(
        self, cast: Cast, redis_limits: FailoverBackend
    ) -> None:
        for issued in (cast.owner, cast.colleague, cast.stranger):
            used(redis_limits, issued, 30)
        Ingester().run_once()
        assert RequestRecord.objects.count() == 3
        assert told() == []

    def test_it_counts_what_is_still_in_the_stream(self, cast: Cast, redis_limits: FailoverBackend) -> None:
        used(redis_limits, cast.owner, 30)
        Ingester().run_once()
        used(redis_limits, cast.owner, 7)
        assert told() == []

    def test_it_counts_once_what_is_in_both(self, cast: Cast, redis_limits: FailoverBackend, store: Any) -> None:
        used(redis_limits, cast.owner, 30)
        with suppress(RedisConnectionError):
            Ingester(CrashingClient(store)).run_once()
        assert RequestRecord.objects.count() == 1
        assert told() == []

    def test_it_leaves_open_calls_out(self, cast: Cast, redis_limits: FailoverBackend) -> None:
        used(redis_limits, cast.owner, 30)
        open_call(redis_limits, cast.owner)
        assert told() == []

    def test_it_counts_the_bound_that_a_dead_call_was_charged(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any
    ) -> None:
        operation = open_call(redis_limits, cast.owner)
        scope = scope_of(cast.owner)
        store.zadd(f"{prefix_of(scope.shard)}l", {operation: 1})
        assert redis_limits.reap(scope.shard) == 1
        assert told() == []
        Ingester().run_once()
        assert told() == []
        settle(redis_limits, cast.owner, operation, a_draft(cast.owner))  # late: its record replaces the other
        assert told() == []
        Ingester().run_once()
        assert told() == []
        assert RequestRecord.objects.get().usage_source == "provider"

    def test_it_knows_that_successors_share_a_ledger(self, cast: Cast, redis_limits: FailoverBackend, key: str) -> None:
        ApiKey.objects.filter(pk=cast.colleague.key.pk).update(lineage_id=cast.owner.key.pk)
        cast.colleague.key.refresh_from_db()
        used(redis_limits, cast.owner, 30)
        Ingester().run_once()
        used(redis_limits, cast.colleague, 7)
        assert told() == []

    def test_it_reads_no_ledger_that_there_is_not(self, cast: Cast, redis_limits: FailoverBackend, store: Any) -> None:
        recorded(cast.owner)
        assert told() == []
        assert store.keys("*:m:*") == []

    def test_it_leaves_out_what_is_no_record(self, cast: Cast, redis_limits: FailoverBackend, store: Any) -> None:
        used(redis_limits, cast.owner, 30)
        stream = f"{prefix_of(scope_of(cast.owner).shard)}records"
        for nonsense in ({"nonsense": "x"}, {"o": "x", "x": "0", "r": "{}"}, {"o": "x", "x": "0", "r": "[]"}):
            store.xadd(stream, nonsense)
        assert told() == []

    def test_it_is_not_misled_by_calls_that_end_while_it_looks(
        self, cast: Cast, redis_limits: FailoverBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        used(redis_limits, cast.owner, 30)
        monkeypatch.setattr(LedgerStore, "waiting", meanwhile(lambda: used(redis_limits, cast.owner, 7)))
        monkeypatch.setattr(reconciliation, "unwritten", after(unwritten, lambda: used(redis_limits, cast.owner, 5)))
        assert told() == []

    def test_it_waits_for_what_is_charged_late(self, cast: Cast, redis_limits: FailoverBackend) -> None:
        used(redis_limits, cast.owner, 30)
        operation, draft = open_call(redis_limits, cast.owner), a_draft(cast.owner)
        write_record(replace(draft, id=operation))  # as while Redis is away
        pauses: list[float] = []

        def charge_in_the_last(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == LOOKS - 1:
                redis_limits.settle(
                    scope_of(cast.owner),
                    operation,
                    admitted_at=draft.admitted_at,
                    used=Amount(30, 25_000),
                    record=None,
                )

        assert list(ledger_differences([month_of(now_micros())], pause=charge_in_the_last)) == []
        assert len(pauses) == LOOKS - 1


def meanwhile(act: Callable[[], object]) -> Callable[..., Any]:
    """Read a stream, and act before the database is read."""
    read = LedgerStore.waiting

    def waiting(self: LedgerStore, shard: int) -> Iterator[Any]:
        yield from list(read(self, shard))
        act()

    return waiting


def after(call: Callable[..., Any], act: Callable[[], object]) -> Callable[..., Any]:
    """Read the database, and act before the ledgers are read again."""

    def called(*arguments: Any) -> Any:
        answer = call(*arguments)
        act()
        return answer

    return called


class TestWrongLedgers:
    def test_it_tells_of_a_ledger_that_was_changed_by_hand(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, key: str
    ) -> None:
        used(redis_limits, cast.owner, 30)
        used(redis_limits, cast.stranger, 30)
        store.hincrby(ledger_name(cast.owner, key), "st", 1_000)
        store.hincrby(ledger_name(cast.owner, key), "sc", -90)
        name = f"{cast.owner.key.account.name}/{cast.owner.key.name}"
        (line,) = told()
        whose, _, what = line.partition(" was ")
        assert whose == f"ledger of {month_of(now_micros())}: key {name} ({key})"
        assert what == "charged 1,000 tokens too much, was charged $0.000000090 too little"

    def test_it_tells_of_an_accounts_ledger(self, cast: Cast, redis_limits: FailoverBackend, store: Any) -> None:
        used(redis_limits, cast.owner, 30)
        Ingester().run_once()
        account = f"account:{cast.owner.key.account_id}"
        store.hset(ledger_name(cast.owner, account), "st", 29)
        (line,) = told()
        assert line.endswith(f"account {cast.owner.key.account.name} ({account}) was charged 1 tokens too little")

    def test_it_tells_of_a_record_that_was_lost(self, cast: Cast, redis_limits: FailoverBackend, store: Any) -> None:
        used(redis_limits, cast.owner, 30)
        store.delete(f"{prefix_of(scope_of(cast.owner).shard)}records")
        assert [line.partition(" was ")[2] for line in told()] == [
            "charged 30 tokens too much, was charged $0.000000090 too much"
        ] * 2

    def test_it_tells_of_a_reservation_that_nobody_holds(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, key: str
    ) -> None:
        operation = open_call(redis_limits, cast.owner, tokens=100)
        assert told() == []
        store.hincrby(ledger_name(cast.owner, key), "rt", 50)
        (line,) = told()
        assert line.endswith("has reserved 50 tokens too much")
        store.delete(f"{prefix_of(scope_of(cast.owner).shard)}o:{operation}")
        assert len(told()) == 2

    def test_it_tells_of_a_ledger_in_use_how_far_it_is_off_at_least(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        used(redis_limits, cast.owner, 30)
        store.hincrby(ledger_name(cast.owner, key), "st", 1_000)
        monkeypatch.setattr(LedgerStore, "waiting", meanwhile(lambda: used(redis_limits, cast.owner, 7)))
        (line,) = told()
        assert line.endswith("was charged at least 1,000 tokens too much")

    def test_it_looks_at_the_month_of_admission(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, key: str
    ) -> None:
        used(redis_limits, cast.owner, 30)
        present = month_of(now_micros())
        before = month_start(present) - 1
        redis_limits.usage(scope_of(cast.owner), month_of(before))
        draft = a_draft(cast.owner, admitted_at=before)
        redis_limits.emit(cast.owner.key.account_id, an_operation(), draft)  # a record of what was not charged
        assert told() == []
        (line, _) = map(str, ledger_differences([month_of(before)], pause=lambda _: None))
        assert line.startswith(f"ledger of {month_of(before)}: ")
        assert "30 tokens too little" in line

    def test_it_gives_up_where_the_ingester_is_too_far_behind(
        self, cast: Cast, redis_limits: FailoverBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reconciliation, "MOST", 2)
        for _ in range(3):
            used(redis_limits, cast.owner, 1)
        with pytest.raises(reconciliation.TooManyWaiting):
            told()


@pytest.fixture
def _models(db: None) -> None:
    """Let there be a model that budgets can be for."""
    apps.get_model("inference", "Model").objects.create(public_name=MODEL)


@pytest.mark.usefixtures("_models")
class TestModelBudgets:
    def test_it_compares_the_budgets_of_a_key_and_an_account_for_a_model(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any
    ) -> None:
        scope = self.budgets(cast)
        self.use(redis_limits, cast, scope, 30)
        Ingester().run_once()
        self.use(redis_limits, cast, scope, 7)
        used(redis_limits, cast.colleague, 0)
        assert told() == []
        for subject in scope.subjects[2:]:
            store.hincrby(ledger_name(cast.owner, subject.name), "st", 5)
        lines = told()
        assert len(lines) == 2
        assert all(line.endswith("was charged 5 tokens too much") for line in lines)
        assert all(f" for model {MODEL} (" in line for line in lines)

    def test_it_forgives_what_was_on_its_way_when_a_budget_was_made(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any
    ) -> None:
        used(redis_limits, cast.owner, 40)  # not ingested yet
        scope = self.budgets(cast)
        self.use(redis_limits, cast, scope, 7)
        Ingester().run_once()
        assert told() == []
        Rollup.objects.filter(grain="kq").update(start=F("start") - DAY)
        lines = told()
        assert len(lines) == 2
        assert all("was charged 40 tokens too little" in line for line in lines)

    def budgets(self, cast: Cast) -> LimitSet:
        """Give the owner and its account a budget for the model, and return what a call of it counts against."""
        for owner in (cast.owner.key, cast.owner.key.account):
            services.model_budget_set(owner=owner, budget=BudgetFor(MODEL, 10_000, None), actor=ACTOR)
        key = cast.owner.key
        return build_authenticated_key(key, timezone.now(), model_budgets_of(key)).limits_for(MODEL)

    def use(self, limits: FailoverBackend, cast: Cast, scope: LimitSet, tokens: int) -> None:
        """Use so many tokens of the model."""
        draft = a_draft(cast.owner, input_tokens=tokens, output_tokens=0, cost=tokens * 3)
        amount = Amount(tokens, tokens * 3)
        limits.settle(scope, an_operation(), admitted_at=draft.admitted_at, used=amount, record=draft)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reconciliation, "PAUSE", 0.0)

    def test_it_says_that_they_agree(
        self, cast: Cast, redis_limits: FailoverBackend, capsys: pytest.CaptureFixture[str]
    ) -> None:
        used(redis_limits, cast.owner, 30)
        call_command("check_rollups")
        assert capsys.readouterr().out.splitlines() == [
            "The rollups agree with the log.",
            "The ledgers agree with the records.",
        ]

    def test_it_tells_by_its_status_that_a_ledger_is_wrong(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, capsys: pytest.CaptureFixture[str], key: str
    ) -> None:
        used(redis_limits, cast.owner, 30)
        store.hincrby(ledger_name(cast.owner, key), "st", 1_000)
        with pytest.raises(SystemExit) as ended:
            call_command("check_rollups", "--days=2")
        assert ended.value.code == 1
        out, err = capsys.readouterr()
        assert out == "The rollups agree with the log.\n"
        assert "was charged 1,000 tokens too much" in err
        assert "1 ledgers disagree with the records" in err

    def test_it_mends_ledgers_if_it_is_told_to(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, capsys: pytest.CaptureFixture[str], key: str
    ) -> None:
        open_call(redis_limits, cast.owner, tokens=100)
        used(redis_limits, cast.owner, 30)
        name = ledger_name(cast.owner, key)
        right = store.hgetall(name)
        store.hset(name, mapping={"st": 5, "sc": 10**9, "rt": 0, "rc": 7})
        call_command("check_rollups", "--mend-ledgers")
        assert store.hgetall(name) == right
        assert "Corrected 1 ledgers." in capsys.readouterr().out
        assert "was charged 25 tokens too little" in AuditEntry.objects.get(action="corrected").after["difference"]

    def test_it_mends_nothing_by_rollups_that_are_wrong(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, key: str
    ) -> None:
        used(redis_limits, cast.owner, 30)
        Ingester().run_once()
        Rollup.objects.update(input_tokens=5)
        before = store.hgetall(ledger_name(cast.owner, key))
        with pytest.raises(SystemExit):
            call_command("check_rollups", "--mend-ledgers")
        assert store.hgetall(ledger_name(cast.owner, key)) == before

    def test_it_leaves_a_ledger_in_use_for_another_time(
        self, cast: Cast, redis_limits: FailoverBackend, store: Any, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        used(redis_limits, cast.owner, 30)
        store.hincrby(ledger_name(cast.owner, key), "st", 1_000)
        monkeypatch.setattr(LedgerStore, "waiting", meanwhile(lambda: used(redis_limits, cast.owner, 7)))
        assert ledgers_mend(ledger_differences([month_of(now_micros())])) == []
        assert not AuditEntry.objects.filter(action="corrected").exists()

    @pytest.mark.parametrize("cause", [RedisConnectionError("gone"), reconciliation.TooManyWaiting()])
    def test_it_fails_where_it_could_not_compare(
        self,
        cast: Cast,
        redis_limits: FailoverBackend,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        cause: Exception,
    ) -> None:
        used(redis_limits, cast.owner, 30)

        def fail(self: LedgerStore, shard: int) -> Any:
            raise cause

        monkeypatch.setattr(LedgerStore, "waiting", fail)
        with pytest.raises(SystemExit):
            call_command("check_rollups")
        assert "the ledgers could not be compared" in capsys.readouterr().err
