"""The platform as it runs on one server: four web workers, a worker, PostgreSQL and Redis, with keys made as needed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import redis

from inference.fake_provider import FakeUpstream
from tests.catalogue import Owned, make
from tests.ledgers import Ledger
from tests.servers import PEPPER, Service
from tests.stores import Postgres, Redis

WORKERS = 4
#: An old pepper, still accepted, behind the one that makes new keys; one proxy in front; attempts counted by the day,
#: whose turn hardly ever falls into a test.
SITE_SETTINGS = {"API_KEY_PEPPERS": f"{'n' * 40},{PEPPER}", "TRUSTED_PROXIES": "1", "FAILED_KEY_RATE": "30/d"}

#: Of each key's tier: answers are short and not cached.
SHORT = {"max_output_tokens": 16, "cache_enabled": False}


@dataclass
class Site:
    """A running platform with its stores and its provider."""

    service: Service
    fake: FakeUpstream
    redis: Redis
    postgres: Postgres

    @property
    def store(self) -> Any:
        """Return a client of its Redis."""
        return redis.Redis.from_url(self.redis.url, socket_timeout=5)

    def make(self, *wanted: tuple[dict[str, Any], dict[str, Any], int]) -> list[Owned]:
        """Make accounts with keys: of each, the account's limits, those of its keys, and how many keys."""
        accounts = [
            (uuid.uuid4().hex, of_account, {f"key-{n}": {**SHORT, **of_key} for n in range(number)})
            for of_account, of_key, number in wanted
        ]
        return make(self.service, [], *accounts)

    def ledger(self, owned: Owned, owner: str = "key") -> Ledger:
        """Return what counts against the month of an account's first key, or of the account itself."""
        subject = f"key:{owned.key.id}" if owner == "key" else f"account:{owned.id}"
        return Ledger(self.store, owned.id, subject)
