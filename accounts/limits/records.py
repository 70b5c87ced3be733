"""The usage record of a request, and its encoding in a Redis stream.

A record may be emitted again under the same id: when a late settle corrects a charge of the bound, or when a record
that counts refusals has grown. The highest revision is the valid one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from core.json import to_json

REVISION_BOUND = 1  # the lease expired, the bound was charged
REVISION_FINAL = 2  # what the call itself reported, early or late


@dataclass(slots=True, kw_only=True)
class UsageRecord:
    """What one authenticated request to a model endpoint was, used and cost; RequestRecord has the same fields.

    Money is in nano-dollars; a `cost` of None is unknown, because a deployment has no price. `admitted_at` is in µs
    since the epoch. `id` is the request's id in hex, which is its operation in the limits. `count` is above 1 for a
    record that stands for many refusals.
    """

    id: str = ""
    revision: int = REVISION_FINAL
    label: str
    admitted_at: int
    account_id: int
    account_name: str
    key_id: int
    key_name: str
    endpoint: str
    model: str = ""
    deployment: str = ""
    status: int = 500
    error_code: str = ""
    cache: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    web_searches: int = 0
    service_tier: str = ""
    cost: int | None = 0
    usage_source: str = ""
    is_partial: bool = False
    is_overrun: bool = False
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    attempts: int = 0
    stages: str = ""
    failures: str = ""
    saved_cost: int = 0
    count: int = 1

    def as_json(self) -> bytes:
        """Encode the record for the limits, without what they add to it, and without what has its default."""
        content = {name: value for name in _WRITTEN if (value := getattr(self, name)) != _DEFAULTS[name]}
        return to_json(content)


FIELDS = tuple(field.name for field in fields(UsageRecord))
_DEFAULTS = {field.name: field.default for field in fields(UsageRecord)}
_WRITTEN = tuple(name for name in FIELDS if name not in ("id", "revision", "is_overrun", "count"))


def decode_record(entry: Mapping[bytes, bytes]) -> UsageRecord:
    """Parse a record from a stream entry, as the Lua scripts write it.

    Its fields: `o` operation, `r` the record as JSON, `x` overrun, `t c u` (tokens, cost, output) of a bound that was
    charged, and `n v` (count, revision) of counted refusals. Raises KeyError, TypeError or ValueError for an entry that
    is no record.
    """
    content: Any = json.loads(entry[b"r"])
    if not isinstance(content, dict):
        raise ValueError("no record")
    record = UsageRecord(
        id=entry[b"o"].decode(), **{name: value for name, value in content.items() if name in _WRITTEN}
    )
    if b"t" in entry:
        record.revision, record.usage_source = REVISION_BOUND, "bound"
        record.output_tokens = int(entry[b"u"])
        record.input_tokens = int(entry[b"t"]) - record.output_tokens
        record.cost = None if record.cost is None else int(entry[b"c"])
    elif b"n" in entry:
        record.count, record.revision = int(entry[b"n"]), int(entry[b"v"])
    else:
        record.is_overrun = entry[b"x"] == b"1"
    return record
