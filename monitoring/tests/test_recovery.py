"""What a crash of the embedded mode leaves: open reservations as rows, charged at their bound by the next start."""

from __future__ import annotations

from uuid import UUID

import pytest

from accounts.journal import DatabaseJournal, recover_reservations
from accounts.limits.bounds import Amount
from accounts.limits.contract import Limits, Subject
from accounts.limits.memory import MemoryBackend
from accounts.limits.months import month_of
from accounts.models import OpenReservation
from accounts.tests.factories import Cast
from monitoring.ledger import month_settled
from monitoring.models import RequestRecord
from monitoring.recorder import write_record
from monitoring.tests.samples import a_draft, now_micros, open_call, scope_of

pytestmark = pytest.mark.django_db


def a_process() -> MemoryBackend:
    """Return the limits of a process that has just started."""
    return MemoryBackend(seeder=month_settled, sink=write_record, journal=DatabaseJournal())


def settle(limits: MemoryBackend, cast: Cast, operation: str, used: Amount) -> None:
    """Settle a call of the owner as the pipeline does."""
    record = a_draft(cast.owner, input_tokens=used.tokens, output_tokens=0, cost=used.cost)
    limits.settle(scope_of(cast.owner), operation, admitted_at=record["admitted_at"], used=used, record=record)


def test_it_keeps_a_row_while_a_call_is_open(cast: Cast) -> None:
    limits = a_process()
    operation = open_call(limits, cast.owner)
    assert OpenReservation.objects.get().operation == operation
    settle(limits, cast, operation, Amount(30, 5))
    assert not OpenReservation.objects.exists()
    assert RequestRecord.objects.get().usage_source == "provider"


def test_it_charges_the_bound_of_what_was_open(cast: Cast) -> None:
    operation = open_call(a_process(), cast.owner, tokens=100)
    assert not RequestRecord.objects.exists()
    assert recover_reservations(write_record) == 1
    row = RequestRecord.objects.get(pk=UUID(operation))
    assert (row.usage_source, row.status, row.error_code) == ("bound", 500, "interrupted")
    assert row.input_tokens + row.output_tokens == 100
    (key, account) = a_process().usage(scope_of(cast.owner))
    assert key.settled.tokens == account.settled.tokens == 100
    assert (key.slots, key.reserved) == (0, Amount())


def test_it_charges_once_however_often_it_starts(cast: Cast) -> None:
    open_call(a_process(), cast.owner)
    assert [recover_reservations(write_record) for _ in range(3)] == [1, 0, 0]
    assert RequestRecord.objects.count() == 1


def test_it_charges_once_when_it_dies_between_record_and_row(cast: Cast) -> None:
    open_call(a_process(), cast.owner)
    write_record(OpenReservation.objects.get().record)  # the start that was killed came as far as this
    assert recover_reservations(write_record) == 1
    assert RequestRecord.objects.count() == 1
    assert not OpenReservation.objects.exists()


def test_it_leaves_the_final_record_when_it_died_before_the_row_was_closed(cast: Cast) -> None:
    limits = a_process()
    operation = open_call(limits, cast.owner)
    left = OpenReservation.objects.get()
    settle(limits, cast, operation, Amount(30, 5))
    left.save(force_insert=True)
    recover_reservations(write_record)
    row = RequestRecord.objects.get()
    assert (row.usage_source, row.input_tokens) == ("provider", 30)
    subject = Subject("key", str(cast.owner.key.pk), Limits())
    assert month_settled(subject, month_of(now_micros())) == Amount(30, 5)
