"""How a ledger that a store has lost, or never had, comes back from the database before anything is taken from it."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accounts.connections import ask_promptly
from accounts.limits.bounds import Amount, Bound
from accounts.limits.contract import (
    SHARDS,
    Draft,
    LimitBackend,
    Refusal,
    Reserved,
    Scope,
    Settlement,
    Subject,
    SubjectUsage,
)
from accounts.limits.months import month_of
from accounts.outage import database_outage

Seeder = Callable[[Subject, int], Amount]
"""Gives what a subject has settled in a month (YYYYMM), from the database. It may raise what the database raises."""

BulkSeeder = Callable[[Sequence[Subject], int], Mapping[Subject, Amount]]
"""Gives the same of many subjects, in a number of queries that doesn't grow with theirs."""


@dataclass(frozen=True, slots=True)
class LedgerMissing:
    """A backend's inner answer: these subjects have no ledger for this month (YYYYMM). Missing is not zero."""

    subjects: tuple[Subject, ...]
    month: int


class SeedingBackend(LimitBackend):
    """A backend that keeps ledgers. What it answers LedgerMissing to is asked again when they are seeded.

    The `seeder` is asked once for each subject and month, the `bulk_seeder` once for all that a list shows; of several
    processes that seed, the first wins.
    """

    def __init__(self, *, seeder: Seeder, bulk_seeder: BulkSeeder | None = None, lease_seconds: int) -> None:
        self.seeder = seeder
        self._seeding = [threading.Lock() for _ in range(SHARDS)]
        self.bulk_seeder = bulk_seeder or self._one_by_one
        self.lease_seconds = lease_seconds

    def reserve(
        self, scope: Scope, operation: str, *, admitted_at: int, bound: Bound, draft: Draft, attempt: int = 1
    ) -> Reserved | Refusal:
        """Take one slot and the bound from all subjects, or nothing from any of them."""
        answer: Reserved | Refusal = self._seeded(
            scope, lambda: self._reserve(scope, operation, admitted_at, bound, draft, attempt)
        )
        return answer

    def settle(
        self,
        scope: Scope,
        operation: str,
        *,
        admitted_at: int,
        used: Amount,
        record: Draft | None,
        recorded_at: int | None = None,
    ) -> Settlement:
        """Release the slot, replace the bound by what was used, and emit the record."""
        settlement: Settlement = self._seeded(
            scope, lambda: self._settle(scope, operation, admitted_at, used, record, recorded_at)
        )
        return settlement

    def usage(self, scope: Scope, month: int | None = None) -> tuple[SubjectUsage, ...]:
        """Tell what each subject uses now, and has used in the month."""
        asked = month or month_of(self.now())
        used: tuple[SubjectUsage, ...] = self._seeded(scope, lambda: self._usage(scope, asked))
        return used

    def usages(self, scopes: Sequence[Scope], month: int | None = None) -> list[tuple[SubjectUsage, ...]]:
        """Tell what is used, of many scopes."""
        asked = month or month_of(self.now())
        while True:
            answers = self._usages(scopes, asked)
            found = [answer for answer in answers if not isinstance(answer, LedgerMissing)]
            if len(found) == len(answers):
                return found
            missing = [subject for a in answers if isinstance(a, LedgerMissing) for subject in a.subjects]
            amounts = self.bulk_seeder(missing, asked)
            for scope, answer in zip(scopes, answers, strict=True):
                if isinstance(answer, LedgerMissing):
                    self._seed(scope, asked, {subject: amounts[subject] for subject in answer.subjects})

    def _one_by_one(self, subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
        return {subject: self.seeder(subject, month) for subject in subjects}

    def _seeded(self, scope: Scope, call: Callable[[], Any]) -> Any:
        if isinstance(answer := call(), LedgerMissing):
            # Of many calls that miss a ledger one asks the database: together they would exhaust its connections.
            with self._seeding[scope.shard]:
                while isinstance(answer := call(), LedgerMissing):
                    self._seed(scope, answer.month, self._settled(answer))
        return answer

    def _settled(self, missing: LedgerMissing) -> Mapping[Subject, Amount]:
        def ask() -> Mapping[Subject, Amount]:
            return {subject: self.seeder(subject, missing.month) for subject in missing.subjects}

        return ask_promptly(ask, database_outage, failed="ledger_not_seeded")

    @abstractmethod
    def _reserve(
        self, scope: Scope, operation: str, admitted_at: int, bound: Bound, draft: Draft, attempt: int
    ) -> Reserved | Refusal | LedgerMissing: ...

    @abstractmethod
    def _settle(
        self,
        scope: Scope,
        operation: str,
        admitted_at: int,
        used: Amount,
        record: Draft | None,
        recorded_at: int | None,
    ) -> Settlement | LedgerMissing: ...

    @abstractmethod
    def _usage(self, scope: Scope, month: int) -> tuple[SubjectUsage, ...] | LedgerMissing: ...

    def _usages(self, scopes: Sequence[Scope], month: int) -> list[tuple[SubjectUsage, ...] | LedgerMissing]:
        return [self._usage(scope, month) for scope in scopes]

    @abstractmethod
    def _seed(self, scope: Scope, month: int, amounts: Mapping[Subject, Amount]) -> None: ...
