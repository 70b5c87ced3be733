"""One request's claim on its Idempotency-Key: taken before its work, ended with its answer or given back.

A final answer (neither 429 nor 5xx, at most LARGEST_ANSWER) is kept as long as its account has room; it is found under
a digest of account key and Idempotency-Key, because what callers put into one may be telling. While the first request
runs its lease is renewed; if its process dies, the lease runs out and a retry runs anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import structlog
from django.db import Error as DatabaseError
from django.db import close_old_connections
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from redis.exceptions import RedisError
from rest_framework.request import Request

from accounts.exceptions import Conflict, DependencyUnavailable, IdempotencyKeyReused, InvalidRequest
from accounts.idempotency.store import KeptAnswer, Lease, Store, make_store
from accounts.loops import Start, WorkThread, outlived
from accounts.turns import give_turn

HEADER = "HTTP_IDEMPOTENCY_KEY"
KEY_FORMAT = re.compile(r"[\x21-\x7e]{1,255}\Z")
LARGEST_ANSWER = 1024 * 1024
RENEW_SECONDS = 4.0
#: Headers of an answer that are kept with it; what it cost is not: the replay costs nothing.
KEPT_HEADERS = ("Content-Type", "X-Cache", "X-Model", "X-Fallback")

log = structlog.get_logger(__name__)


class Replayed(Exception):
    """The request was answered before."""

    def __init__(self, answer: KeptAnswer) -> None:
        super().__init__()
        self.answer = answer

    def response(self) -> HttpResponse:
        """Make the answer again; a stream is replayed whole."""
        response = HttpResponse(self.answer.body, status=self.answer.status, headers=self.answer.headers)
        response["Idempotency-Replayed"] = "true"
        response["X-Cost-USD"] = "0.000000000"
        return response


class Claim:
    """A lease that this request holds, to be ended once. `cost` is what its answer costs, in nano-dollars."""

    def __init__(self, lease: Lease, claims: Claims) -> None:
        self.lease = lease
        self.cost = 0
        self._claims = claims

    def finish(self, response: HttpResponseBase, body: bytes | None) -> None:
        """Keep a final answer; give the lease back for any other. A body of None is one that broke off."""
        is_final = response.status_code < 500 and response.status_code != 429
        if body is None or not is_final or len(body) > LARGEST_ANSWER:
            self.release()
            return
        headers = {name: response[name] for name in KEPT_HEADERS if name in response}
        self._claims.end(self, KeptAnswer(response.status_code, headers, body, self.cost))

    def finish_stream(self, headers: Mapping[str, str], body: bytes | None) -> None:
        """Keep all that a stream wrote; give the lease back for one that broke off (None)."""
        self.finish(HttpResponse(headers=dict(headers)), body)

    def release(self) -> None:
        """Give the lease back: a retry runs anew."""
        self._claims.end(self, None)


class Claims:
    """The claims of a process, with the thread that renews their leases; `start` runs a function in a thread."""

    def __init__(self, start: Start | None = None) -> None:
        self._keeper = WorkThread(
            lambda: self.renew_each(self._claimed()),
            has_work=lambda: bool(self._open),
            seconds=lambda: RENEW_SECONDS,
            name="idempotency-keeper",
            event="idempotency_leases_not_renewed",
            start=start,
        )
        self._store: Store | None = None
        self._open: set[Claim] = set()
        self._lock = threading.Lock()
        self._pid = 0

    def claim(self, request: Request, *, owner: int, account: int, form: str = "") -> Claim | None:
        """Claim the Idempotency-Key of a request of key `owner` of an account; None without one.

        `form` is what the answer is asked to be like by more than path and body. Raises Replayed with the first answer,
        Conflict while that is made, IdempotencyKeyReused for another request, InvalidRequest for a malformed key,
        DependencyUnavailable while nobody can tell.
        """
        key = request.META.get(HEADER)
        if key is None:
            return None
        if not KEY_FORMAT.match(key):
            raise InvalidRequest("Idempotency-Key must be 1 to 255 printable characters.", param="Idempotency-Key")
        lease = Lease(_name(owner, key), _fingerprint(request, form), secrets.token_hex(16), account)
        try:
            held = self._own_store().take(lease)
        except (RedisError, DatabaseError) as error:
            log.error("idempotency_failed", cause=type(error).__name__)
            raise DependencyUnavailable from error
        if held is None:
            return self._opened(Claim(lease, self))
        if held.fingerprint != lease.fingerprint:
            raise IdempotencyKeyReused
        if held.answer is None:
            raise Conflict(headers={"Retry-After": "1"})
        raise Replayed(held.answer)

    def end(self, claim: Claim, answer: KeptAnswer | None) -> None:
        """End a claim, with the answer to keep or without one; what the store then fails to do is logged."""
        with self._lock:
            if claim not in self._open:
                return
            self._open.remove(claim)
        store = self._own_store()
        try:
            store.finish(claim.lease, answer) if answer else store.release(claim.lease)
        except (RedisError, DatabaseError) as error:
            log.error("idempotent_answer_lost", cause=type(error).__name__)

    def forget(self) -> None:
        """Let go of every claim, whose leases then run out, and build the store anew from the settings of then."""
        with self._lock:
            self._open.clear()
        self._store = None

    def _own_store(self) -> Store:
        if self._store is None or self._pid != os.getpid():
            self._store, self._pid = make_store(), os.getpid()
        return self._store

    def _claimed(self) -> list[Claim]:
        with self._lock:
            return list(self._open)

    def _opened(self, claim: Claim) -> Claim:
        with self._lock:
            self._open.add(claim)
        self._keeper.begin()
        return claim

    def _renew_one(self, claim: Claim) -> None:
        self._own_store().renew(claim.lease)

    def renew_each(self, claims: Iterable[Claim]) -> None:
        """Renew leases; whatever goes wrong with one is logged, and it is tried again the next time."""
        for claim in claims:
            outlived(partial(self._renew_one, claim), event="idempotency_lease_not_renewed")
        close_old_connections()


claims = Claims()


def _name(owner: int, key: str) -> str:
    return hashlib.sha256(f"{owner} {key}".encode()).hexdigest()


def _fingerprint(request: Request, form: str) -> str:
    """Tell a request by what it asks: method, path, form and body."""
    asked: list[Any] = [request.method, request.path_info.rstrip("/"), form, request.data]
    canonical = json.dumps(asked, sort_keys=True).encode()
    give_turn(len(canonical))
    return hashlib.sha256(canonical).hexdigest()
