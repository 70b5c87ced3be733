"""How a ledger that a store has lost, or never had, comes back from the database before anything is taken from it."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accounts.limits.bounds import Amount, Bound
from accounts.limits.contract import (
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

Seeder = Callable[[Subject, int], Amount]
"""Gives what a subject has settled in a month (YYYYMM), from the database. It may raise what the database raises."""


@dataclass(frozen=True, slots=True)
class LedgerMissing:
    """A backend's inner answer: these subjects have no ledger for this month (YYYYMM). Missing is not zero."""

    subjects: tuple[Subject, ...]
    month: int


class SeedingBackend(LimitBackend):
    """A backend that keeps ledgers. What it answers LedgerMissing to is asked again when they are seeded.

    The `seeder` is asked once for each subject and month; of several processes that seed, the first wins.
    """

    def __init__(self, *, seeder: Seeder, lease_seconds: int) -> None:
        self.seeder = seeder
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

    def _seeded(self, scope: Scope, call: Callable[[], Any]) -> Any:
        while isinstance(answer := call(), LedgerMissing):
            amounts = {subject: self.seeder(subject, answer.month) for subject in answer.subjects}
            self._seed(scope, answer.month, amounts)
        return answer

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

    @abstractmethod
    def _seed(self, scope: Scope, month: int, amounts: Mapping[Subject, Amount]) -> None: ...
