"""What the store and the database hold of a budget, read past the platform: for proofs that don't take its word."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from accounts.limits.scripts import prefix_of, records_stream
from accounts.limits.types import SHARDS, Amount
from tests.servers import Service


@dataclass
class Ledger:
    """The ledger of a subject (`key:17`, `account:4`) in a month (`202611`), the present one if none is given."""

    store: Any
    account: int
    subject: str
    values: dict[str, int] | None = field(default=None)
    month: str = ""

    @property
    def name(self) -> str:
        """Return its key in the store."""
        return f"{prefix_of(self.account % SHARDS)}{self.subject}:m:{self.month or f'{datetime.now(UTC):%Y%m}'}"

    @property
    def exists(self) -> bool:
        """Say whether the store has it."""
        return bool(self.store.exists(self.name))

    def read(self) -> dict[str, int]:
        """Read it; zeroes where it is missing."""
        if self.values is not None:
            return self.values
        found = self.store.hmget(self.name, "st", "sc", "rt", "rc")
        return {name: int(value or 0) for name, value in zip(("st", "sc", "rt", "rc"), found, strict=True)}

    def frozen(self) -> Ledger:
        """Return it as it is at this moment."""
        return Ledger(self.store, self.account, self.subject, self.read())

    @property
    def settled(self) -> Amount:
        """Return what was settled."""
        values = self.read()
        return Amount(values["st"], values["sc"])

    @property
    def reserved(self) -> Amount:
        """Return what open calls hold."""
        values = self.read()
        return Amount(values["rt"], values["rc"])

    @property
    def total(self) -> Amount:
        """Return what counts against the budget, read in one step."""
        values = self.read()
        return Amount(values["st"] + values["rt"], values["sc"] + values["rc"])

    def recorded(self, service: Service) -> Amount:
        """Sum up what the database has of this key or account."""
        kind, _, number = self.subject.partition(":")
        query = (
            "SELECT coalesce(sum(input_tokens + output_tokens), 0), coalesce(sum(cost), 0) * 1000000000 "
            "FROM monitoring_requestrecord WHERE %s = CASE %s WHEN 'key' THEN key_id ELSE account_id END"
        )
        ((tokens, nano),) = rows(service, query, int(number), kind)
        return Amount(int(tokens), int(nano))

    def is_ingested(self, service: Service) -> bool:
        """Say whether nothing is open, and all that was settled is in the database."""
        return not self.reserved.tokens and self.recorded(service) == self.settled


def rows(service: Service, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """Ask a platform's PostgreSQL."""
    with psycopg.connect(service.env["DATABASE_URL"]) as connection:
        return connection.execute(query, arguments).fetchall()


def waiting_records(store: Any) -> int:
    """Count the records that no worker has taken off yet."""
    return sum(store.xlen(records_stream(shard)) for shard in range(SHARDS))


def empty(store: Any) -> int:
    """Empty the store, and return how many records had waited there in that moment."""
    with store.pipeline(transaction=True) as pipe:
        for shard in range(SHARDS):
            pipe.xlen(records_stream(shard))
        pipe.flushall()
        return sum(pipe.execute()[:-1])


def counted_refusals(store: Any) -> int:
    """Count the counts of refusals that are not in the stream yet: they go there two seconds after they began."""
    return sum(store.zcard(f"{prefix_of(shard)}f") for shard in range(SHARDS))
