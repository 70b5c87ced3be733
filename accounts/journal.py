"""Open reservations of the in-process limits as database rows, so that a crash leaves a charge of the bound."""

from __future__ import annotations

from collections.abc import Callable

from accounts.limits.records import Record
from accounts.models import OpenReservation


class DatabaseJournal:
    """The journal of accounts.limits in the database; a database error reaches the caller of reserve."""

    def opened(self, operation: str, account_id: int, record: Record) -> None:
        """Keep the record that is to be written if the process dies."""
        OpenReservation.objects.update_or_create(
            operation=operation, defaults={"account_id": account_id, "record": record}
        )

    def closed(self, operation: str) -> None:
        """Forget an operation whose record was written."""
        OpenReservation.objects.filter(operation=operation).delete()


def recover_reservations(write: Callable[[Record], None]) -> int:
    """Write the records of calls that a dead process left open; answer how many there were.

    For a process that keeps its limits in itself, before it takes its first request: it is the only one, so whatever
    is open was another's. Each is charged its bound, as the record says.
    """
    left = list(OpenReservation.objects.all())
    for reservation in left:
        write(reservation.record)
        reservation.delete()
    return len(left)
