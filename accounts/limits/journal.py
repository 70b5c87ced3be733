"""Where the memory backend writes its open reservations down, so that a crash leaves a charge of the bound."""

from typing import Protocol

from accounts.limits.records import Record


class Journal(Protocol):
    """Keeps one record for each open reservation of this process, durably.

    `opened` may come again for an operation whose bound grew: the later one counts. Its exceptions undo the reservation
    and reach the caller of reserve. At the next start, what is left in the journal is emitted as it is.
    """

    def opened(self, operation: str, account_id: int, record: Record) -> None:
        """Keep the record to be emitted if the process dies: complete, with revision, bound and all."""

    def closed(self, operation: str) -> None:
        """Forget an operation whose record was emitted."""


class NoJournal:
    """Keeps nothing: for tests, and where a crash may forget what was open."""

    def opened(self, operation: str, account_id: int, record: Record) -> None:
        """Do nothing."""

    def closed(self, operation: str) -> None:
        """Do nothing."""
