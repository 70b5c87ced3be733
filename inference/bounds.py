"""The most that a call can use, reckoned before it is sent; and an estimate of what it used where nobody says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from accounts.exceptions import InvalidRequest
from accounts.limits.bounds import MILLION, Amount, Bound
from accounts.snapshots import Identity
from inference.catalog import CatalogModel
from inference.upstream.completions import Usage

#: Tokens that a chat template may add around each message, and around the whole.
MESSAGE_OVERHEAD = 16
REQUEST_OVERHEAD = 32
#: Bytes of usual text a token: what an estimate goes by (a bound goes by one).
BYTES_A_TOKEN = 4


def wanted_output(asked: int | None, identity: Identity, model: CatalogModel) -> int:
    """Return the most output tokens that a call may get: what it asks for, the tier's maximum, the model's context."""
    most = min(identity.max_output_tokens, model.context_size)
    return most if asked is None else min(asked, most)


def bound_of(payload: Mapping[str, Any], asked: int | None, identity: Identity, model: CatalogModel) -> Bound:
    """Compute a true upper bound of a chat completion, at the dearest price among the deployments it may reach.

    No tokenizer makes more tokens than there are bytes. The output is cut to what is left of a limit where the request
    names no maximum; one that does gets it whole or is refused. Raises InvalidRequest for a request so large that it
    can't be reckoned exactly.
    """
    prompt = prompt_bound(payload)
    output = wanted_output(asked, identity, model)
    prices = model.dearest
    try:
        return Bound(
            prompt=Amount(prompt, -(-prompt * prices.input // MILLION)),
            output_tokens=output,
            output_price=prices.output,
            minimum_output=1 if asked is None else None,
        )
    except ValueError as error:
        raise InvalidRequest("The request is too large.") from error


def prompt_bound(payload: Mapping[str, Any]) -> int:
    """Return the most tokens that the messages can be: one a byte of their UTF-8, and the template's overhead."""
    messages = payload["messages"]
    return REQUEST_OVERHEAD + MESSAGE_OVERHEAD * len(messages) + sum(_size(message) for message in messages)


def _size(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    rest = {name: value for name, value in message.items() if name not in ("content", "role")}
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return len(text.encode()) + (len(json.dumps(rest, ensure_ascii=False).encode()) if rest else 0)


def estimate_usage(payload: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
    """Estimate what a call used whose provider sent no usage."""
    output = sum(len(json.dumps(choice.get("message"), ensure_ascii=False).encode()) for choice in body["choices"])
    return Usage(-(-prompt_bound(payload) // BYTES_A_TOKEN), 0, max(1, output // BYTES_A_TOKEN))
