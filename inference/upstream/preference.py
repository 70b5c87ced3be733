"""The order in which a call's deployments are tried: lower orders first; within an order, by the model's routing.

Weighted, the default: the calls of a conversation go to the same deployment, whose prompt cache has the conversation's
beginning. The share of conversations is by weight. Nothing is stored: each deployment's place is computed from its id
and the conversation, so that it stays when others come or go (rendezvous hashing).

Least busy and fastest go by what this process has seen: its open calls, and how long they took lately to the first
event of a stream, or to a whole answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

from core.json import to_json
from inference.call import Call
from inference.catalog import Route
from inference.models import Model
from inference.upstream.client import upstream

#: Share of calls that are routed by weight although the fastest is asked for, so that the others are measured too.
EXPLORED = 0.05
#: Bytes of a conversation's beginning that identify it.
BEGINNING = 4096


def preferred(call: Call) -> list[Route]:
    """Return the call's deployments in the order in which to try them."""
    routes = call.routes
    if len(routes) < 2:
        return list(routes)
    routing, is_stream = call.model.routing, call.is_stream
    if routing == Model.Routing.LEAST_BUSY:
        return _sorted(routes, lambda route: (upstream.running[route.deployment_id] / route.weight, random.random()))
    if routing == Model.Routing.FASTEST and random.random() > EXPLORED:
        return _sorted(routes, lambda route: (upstream.seconds(route, is_stream=is_stream), random.random()))
    return by_weight(routes, chances_of(conversation(call)))


def by_weight(routes: Iterable[Route], chance: Callable[[Route], float]) -> list[Route]:
    """Sort routes by order; within an order, each is first with a probability proportional to its weight.

    `chance` returns a number between 0 and 1 for a route. The key u^(1/weight) is from Efraimidis and Spirakis,
    "Weighted random sampling with a reservoir" (2006).
    """
    return _sorted(routes, lambda route: -(chance(route) ** (1 / route.weight)))


def chances_of(key: bytes) -> Callable[[Route], float]:
    """Return the chances of routes for a conversation: as good as random, and always the same."""

    def chance(route: Route) -> float:
        digest = blake2b(b"%d:%b" % (route.deployment_id, key), digest_size=7).digest()
        return (int.from_bytes(digest) + 1) / 2**56

    return chance


def conversation(call: Call) -> bytes:
    """Return what is the same in all calls of a conversation, and of its account.

    That is the payload's `prompt_cache_key`, the header X-Session-Id, or `metadata.user_id` (Claude Code's session);
    without these, the beginning of the prompt: the instructions and the messages up to the first of the user.
    """
    payload, metadata = call.payload, call.payload.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    name = payload.get("prompt_cache_key") or call.session or user
    begins = [name] if isinstance(name, str) else [payload.get("system"), payload.get("instructions"), *_first(payload)]
    return b"%d:%b" % (call.identity.account_id, to_json(begins)[:BEGINNING])


def _first(payload: Any) -> Iterable[Any]:
    """Yield the messages up to the first of the user, or the beginning of another prompt."""
    prompt = next((payload[name] for name in ("messages", "input", "prompt") if payload.get(name)), "")
    for item in prompt if isinstance(prompt, list) else [prompt]:
        yield item
        if isinstance(item, dict) and item.get("role") == "user":
            return


def _sorted(routes: Iterable[Route], rank: Callable[[Route], Any]) -> list[Route]:
    return sorted(routes, key=lambda route: (route.order, rank(route)))
