"""Usage records between the limits and the database: the fields that are added, and their encoding in a Redis stream.

A record is a JSON-able dict from the caller. Emitting adds `id` (the operation), `revision` and `overrun`. A record may
be emitted again under the same id, when a late settle corrects a charge of the bound, or when a record that counts
refusals has grown; the highest revision is the valid one.
"""

import json
from collections.abc import Mapping
from typing import Any

from accounts.limits.types import Amount

REVISION_BOUND = 1  # the lease expired, the bound was charged
REVISION_FINAL = 2  # what the call itself reported, early or late

Record = dict[str, Any]


def final_record(operation: str, record: Mapping[str, Any], *, overrun: bool = False) -> Record:
    """Return the record of a call that was settled or emitted by the call itself."""
    return {**record, "id": operation, "revision": REVISION_FINAL, "overrun": overrun}


def counted_record(operation: str, record: Mapping[str, Any], *, count: int, revision: int) -> Record:
    """Return the record of the first of `count` refusals, which represents all of them."""
    return {**record, "id": operation, "revision": revision, "overrun": False, "count": count}


def bound_record(operation: str, draft: Mapping[str, Any], held: Amount, output_tokens: int) -> Record:
    """Return the record of a call whose lease expired: it is charged all that it held."""
    return {
        **draft,
        "id": operation,
        "revision": REVISION_BOUND,
        "overrun": False,
        "usage_source": "bound",
        "input_tokens": held.tokens - output_tokens,
        "output_tokens": output_tokens,
        "cost": held.cost,
    }


def decode_record(fields: Mapping[bytes, bytes]) -> Record:
    """Parse a record from the fields of a stream entry, as the Lua scripts write them.

    Fields: `o` operation, `r` the caller's JSON, `x` overrun, `t c u` (tokens, cost, output) of a bound that was
    charged, and `n v` (count, revision) of counted refusals. Raises KeyError or ValueError for an entry that is no
    record.
    """
    operation = fields[b"o"].decode()
    content: Record = json.loads(fields[b"r"])
    if b"t" in fields:
        held = Amount(int(fields[b"t"]), int(fields[b"c"]))
        return bound_record(operation, content, held, int(fields[b"u"]))
    if b"n" in fields:
        return counted_record(operation, content, count=int(fields[b"n"]), revision=int(fields[b"v"]))
    return final_record(operation, content, overrun=fields[b"x"] == b"1")
