"""Read, correct and delete the ledgers in Redis, for reconciliation with the records; reading never seeds a ledger."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from accounts.limits.records import UsageRecord, decode_record
from accounts.limits.scripts import load, prefix_of, records_stream
from accounts.limits.types import Amount, Subject
from core.redis.client import redis_client, wire_for
from core.redis.wire import Argument

READ_TIMEOUT = 5.0  # seconds
PAGE = 1_000  # entries of a stream that are read at a time


@dataclass(frozen=True, slots=True)
class Ledger:
    """The settled and reserved amounts of a subject in a month, and what its open calls hold.

    `reserved` and `held` are equal unless something went wrong. `seeded_at` is when (µs) the ledger was created from
    the database.
    """

    settled: Amount
    reserved: Amount
    held: Amount
    seeded_at: int


class LedgerStore:
    """Reads ledgers, and the records that are not yet ingested. Raises redis.RedisError."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis_client(url, read_timeout=READ_TIMEOUT)
        self._wire = wire_for(self._client)

    def read(self, shard: int, subjects: Sequence[Subject], month: int) -> dict[Subject, Ledger]:
        """Return the ledgers of a shard's subjects in a month (YYYYMM), read atomically; missing ones are left out."""
        arguments: list[Argument] = ["", month, *(subject.name for subject in subjects)]
        found = self._wire.call(load("ledgers"), prefix_of(shard), arguments)
        return {subject: _ledger(row) for subject, row in zip(subjects, found, strict=True) if row}

    def waiting(self, shard: int) -> Iterator[UsageRecord]:
        """Yield the records that are in a shard's stream now, oldest first; skip invalid entries."""
        stream = records_stream(shard)
        newest = self._client.xrevrange(stream, count=1)
        if not newest:
            return
        last, after = newest[0][0].decode(), "-"
        while entries := self._client.xrange(stream, min=after, max=last, count=PAGE):
            for _, fields in entries:
                with suppress(KeyError, ValueError, TypeError):
                    yield decode_record(fields)
            after = f"({entries[-1][0].decode()}"

    def correct(self, shard: int, subject: Subject, month: int, *, settled: Amount, reserved: Amount) -> None:
        """Add amounts, which may be negative, to a ledger; a missing ledger stays missing."""
        amounts = [settled.tokens, settled.cost, reserved.tokens, reserved.cost]
        self._wire.call(load("correct"), prefix_of(shard), ["", month, subject.name, *amounts])

    def drop(self, shard: int, subject: Subject, months: Iterable[int]) -> None:
        """Delete a subject's ledgers of some months, which must have no open calls; the next use seeds them anew."""
        for month in months:
            self._client.delete(f"{prefix_of(shard)}{subject.name}:m:{month}")

    def close(self) -> None:
        """Close all connections."""
        self._wire.close()
        self._client.close()


def _ledger(row: Sequence[int]) -> Ledger:
    settled_tokens, settled_cost, reserved_tokens, reserved_cost, held_tokens, held_cost, seeded_at = row
    return Ledger(
        Amount(settled_tokens, settled_cost),
        Amount(reserved_tokens, reserved_cost),
        Amount(held_tokens, held_cost),
        seeded_at,
    )
