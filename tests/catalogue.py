"""Models, prices, accounts and keys for end-to-end tests, made in a running platform's database; and its records."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.processes import wait_until
from tests.servers import Service

#: Each key has a tier of its own, without limits but those given; budgets, overrides and scopes are the key's.
SETUP = """
import json
from decimal import Decimal
from accounts.services import BudgetFor, model_budget_set
from accounts.tests.factories import ACTOR, make_account, make_key, make_tier
from inference.models import Deployment, Model, Price, Provider

def parsed(fields):
    return {name: Decimal(value) if name == "monthly_cost_budget" else value for name, value in fields.items()}

def set_budgets(owner, budgets):
    for model, (tokens, cost) in budgets.items():
        budget = BudgetFor(model, tokens, None if cost is None else Decimal(cost))
        model_budget_set(owner=owner, budget=budget, actor=ACTOR)

wanted = json.loads(WANTED)
for row in wanted["models"]:
    fields = {"kind": row["kind"], "context_size": 128000}
    model, _ = Model.objects.get_or_create(public_name=row["name"], defaults=fields)
    for order, url in enumerate(row["urls"]):
        defaults = {"base_url": url, "from_environment": True, **row["provider"]}  # as such it may be on this machine
        provider, _ = Provider.objects.get_or_create(
            name=f"provider-{order}-{url.rpartition(':')[2].partition('/')[0]}", defaults=defaults)
        deployment = Deployment.objects.create(
            model=model, provider=provider, upstream_name=row["name"], order=order, **row["deployment"])
        if row["input"] is not None:
            Price.objects.create(deployment=deployment, input_per_million=Decimal(row["input"]),
                                 cached_input_per_million=Decimal(row["cached"]),
                                 output_per_million=Decimal(row["output"]),
                                 **{field: Decimal(price) for field, price in row["prices"].items()})
made = []
for name, limits, keys in wanted["accounts"]:
    shared = limits.pop("model_budgets", {})
    account = make_account(name, **parsed(limits))
    set_budgets(account, shared)
    issued = []
    for key_name, fields in keys.items():
        own = fields.pop("model_budgets", {})
        of_key = {field for field in fields if field.startswith("monthly_") or field.endswith(("scopes", "_override"))}
        of_tier = {field: value for field, value in fields.items() if field not in of_key}
        tier = make_tier(name if len(keys) == 1 else f"{name}-{key_name}", **{"requests_per_minute": None, **of_tier})
        of_key = parsed({field: fields[field] for field in of_key})
        issued.append(make_key(account=account, tier=tier, name=key_name, **of_key))
        set_budgets(issued[-1].key, own)
    made.append([account.pk, name, [[each.key.pk, each.key.name, each.plain] for each in issued]])
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
    def plain(self) -> dict[str, str]:
        """Return the texts of its keys by their names."""
        return {key.name: key.plain for key in self.keys}

    @property
    def secrets(self) -> Iterator[str]:
        """Go through the texts of its keys round and round."""
        return itertools.cycle(key.plain for key in self.keys)


@dataclass(frozen=True)
class Served:
    """A model, the addresses of its deployments in their order, and prices in dollars per million tokens.

    `input` None: it has no price. `provider`, `deployment`, `prices`: further fields of its providers, deployments and
    prices.
    """

    name: str
    urls: Sequence[str]
    kind: str = "chat"
    input: int | None = 2
    cached: int = 1
    output: int = 10
    provider: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)
    prices: Mapping[str, int | str] = field(default_factory=dict)


#: An account to be made: its name, its limits, and its keys by name, each with its limits.
Wanted = tuple[str, Mapping[str, Any], Mapping[str, Mapping[str, Any]]]


def make(service: Service, served: Sequence[Served], *accounts: Wanted) -> list[Owned]:
    """Make models and accounts with keys."""
    wanted = json.dumps({"models": [asdict(model) for model in served], "accounts": accounts})
    made = service.manage("shell", "-c", SETUP.replace("WANTED", repr(wanted))).strip().splitlines()[-1]
    return [Owned(pk, name, [OwnKey(*key) for key in keys]) for pk, name, keys in json.loads(made)]


def set_up(service: Service, served: Sequence[Served], *, account: str = "e2e", **limits: Any) -> str:
    """Make models, and an account with a key named e2e, without limits but those given; return the key."""
    (owned,) = make(service, served, (account, {}, {"e2e": limits}))
    return owned.key.plain


@dataclass(frozen=True)
class Record:
    """A request as the platform recorded it; costs in nano-dollars, None where the cost is unknown."""

    label: str
    endpoint: str
    model: str
    status: int
    error_code: str
    cache: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: Any
    saved_cost: int
    usage_source: str
    is_partial: bool
    attempts: int
    failures: str
    first_token_ms: float | None


def records(service: Service, label: str = "") -> list[Record]:
    """List the records of a platform or one request, the oldest first; where nothing ingests, those that wait too."""
    if not service.ingested:
        service.manage("worker", "--once", "ingest")
    names = list(Record.__dataclass_fields__)
    query = f"SELECT {', '.join(names)} FROM monitoring_requestrecord WHERE '{label}' IN ('', label) ORDER BY id"  # noqa: S608
    rows = [
        dict(row, is_partial=bool(row["is_partial"])) | {name: _nano(row[name]) for name in ("cost", "saved_cost")}
        for row in query_rows(service, query)
    ]
    return [Record(**row) for row in rows]


def _nano(dollars: Any) -> int | None:
    return None if dollars is None else round(float(dollars) * 10**9)


def record_of(service: Service, label: str) -> Record:
    """Wait for the record of a request, and return it."""
    found: list[Record] = []

    def is_there() -> bool:
        found[:] = records(service, label)
        return bool(found)

    wait_until(is_there, f"the record of {label}", 15)
    (record,) = found
    return record


def query_rows(service: Service, query: str) -> list[dict[str, Any]]:
    """Ask a platform's database, once its worker has written what was recorded."""
    service.await_records()
    url = service.env["DATABASE_URL"]
    if url.startswith("sqlite:///"):
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=10) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]
    with psycopg.connect(url, row_factory=dict_row) as database:
        return database.execute(query).fetchall()
