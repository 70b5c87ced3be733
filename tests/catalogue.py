"""Models, prices and keys for end-to-end tests, made in a running platform's database; and its records, read there."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.processes import wait_until
from tests.servers import Service

SETUP = """
import json
from decimal import Decimal
from accounts.tests.factories import make_account, make_key, make_tier
from inference.models import Deployment, Model, Price, Provider
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
                                 output_per_million=Decimal(row["output"]))
tier = make_tier(wanted["account"], **{"requests_per_minute": None, **wanted["tier"]})
print(make_key(account=make_account(wanted["account"]), tier=tier, name="e2e", **wanted["key"]).plain)
"""


@dataclass(frozen=True)
class Served:
    """A model, the addresses of its deployments in their order, and prices in dollars per million tokens.

    `input` None: it has no price. `provider` and `deployment`: further fields of its providers and deployments.
    """

    name: str
    urls: Sequence[str]
    kind: str = "chat"
    input: int | None = 2
    cached: int = 1
    output: int = 10
    provider: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)


def set_up(service: Service, served: Sequence[Served], *, account: str = "e2e", **tier: Any) -> str:
    """Make models, and a key of an account and a tier of its own, without limits but those given; return the key.

    Limits are those of the tier; `scopes` and budgets, whose names begin with `monthly_`, are the key's.
    """
    of_key = {name: value for name, value in tier.items() if name.startswith("monthly_") or name == "scopes"}
    limits = {name: limit for name, limit in tier.items() if name not in of_key}
    wanted = {"models": [asdict(model) for model in served], "account": account, "tier": limits, "key": of_key}
    return service.manage("shell", "-c", SETUP.replace("WANTED", repr(json.dumps(wanted)))).strip().splitlines()[-1]


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


def records(service: Service) -> list[Record]:
    """List the records of a platform, the oldest first; where nothing ingests them, those that wait too."""
    if not service.ingested:
        service.manage("worker", "--once", "ingest")
    names = list(Record.__dataclass_fields__)
    query = f"SELECT {', '.join(names)} FROM monitoring_requestrecord ORDER BY id"  # noqa: S608  (names of our own)
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
        found[:] = [record for record in records(service) if record.label == label]
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
