"""The platform as it runs on one server: four web workers, a worker, PostgreSQL and Redis, with keys made as needed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis

from inference.fake_provider import FakeUpstream
from tests.ledgers import Ledger
from tests.servers import PEPPER, Postgres, Redis, Service

WORKERS = 4
#: An old pepper, still accepted, behind the one that makes new keys; one proxy in front; attempts counted by the day,
#: whose turn hardly ever falls into a test.
SITE_SETTINGS = {"API_KEY_PEPPERS": f"{'n' * 40},{PEPPER}", "TRUSTED_PROXIES": "1", "FAILED_KEY_RATE": "30/d"}

#: Makes keys of a tier without limits of its own, whose answers are short and not cached.
SETUP = """
import json, uuid
from decimal import Decimal
from accounts.services import BudgetFor, model_budget_set
from accounts.tests.factories import ACTOR, make_account, make_key, make_tier
tier = make_tier("short", requests_per_minute=None, max_output_tokens=16, cache_enabled=False)
def limits(fields):
    return {name: Decimal(value) if name == "monthly_cost_budget" else value for name, value in fields.items()}
made = []
for account_limits, key_limits, number in json.loads('WANTED'):
    owned, shared = (fields.pop("model_budgets", {}) for fields in (key_limits, account_limits))
    account = make_account(uuid.uuid4().hex, **limits(account_limits))
    keys = [make_key(account=account, tier=tier, **limits(key_limits)) for _ in range(number)]
    for owners, budgets in (([issued.key for issued in keys], owned), ([account], shared)):
        for owner in owners:
            for model, (tokens, cost) in budgets.items():
                budget = BudgetFor(model, tokens, None if cost is None else Decimal(cost))
                model_budget_set(owner=owner, budget=budget, actor=ACTOR)
    made.append([account.pk, account.name, [[issued.key.pk, issued.key.name, issued.plain] for issued in keys]])
print(json.dumps(made))
"""


@dataclass(frozen=True)
class OwnKey:
    """A key with its text."""

    id: int
    name: str
    plain: str


@dataclass(frozen=True)
class Owned:
    """An account with its keys."""

    id: int
    name: str
    keys: list[OwnKey]

    @property
    def key(self) -> OwnKey:
        """Return its first key."""
        return self.keys[0]

    @property
    def secrets(self) -> Iterator[str]:
        """Go through the texts of its keys round and round."""
        return itertools.cycle(key.plain for key in self.keys)


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
        script = SETUP.replace("WANTED", json.dumps(wanted))
        made = json.loads(self.service.manage("shell", "-c", script).strip().splitlines()[-1])
        return [Owned(pk, name, [OwnKey(*key) for key in keys]) for pk, name, keys in made]

    def ledger(self, owned: Owned, owner: str = "key") -> Ledger:
        """Return what counts against the month of an account's first key, or of the account itself."""
        subject = f"key:{owned.key.id}" if owner == "key" else f"account:{owned.id}"
        return Ledger(self.store, owned.id, subject)
