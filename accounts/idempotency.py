"""Idempotency-Key: a retry gets the first final answer, and is neither sent to a provider nor billed again.

A claim is a row of IdempotentAnswer, in which the answer is kept for a day. The row's name is a digest of API key and
Idempotency-Key, because callers may put sensitive text into the latter. Its token identifies the request that may
finish or delete it. 429, 5xx, streams that broke off and answers above LARGEST_ANSWER are not kept.

- A model call takes a lease first, then the row (Claim.take). The lease is renewed until the answer is kept. A request
  that gets the lease and finds a row without an answer takes the row over, because the row's request has died.
- A POST that only writes inserts the row, makes its change and keeps the answer in one transaction, without a lease
  (Claim.insert, Claim.keep). Another request with the same key waits in the database for that transaction.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import structlog
from django.db import Error as DatabaseError
from django.db.models import QuerySet
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from redis.exceptions import RedisError
from rest_framework.request import Request

from accounts.key_cache import AuthenticatedKey
from accounts.models import IdempotentAnswer
from core.background import yield_to_others
from core.database import release_connections
from core.errors import Conflict, DependencyUnavailable, IdempotencyKeyReused, InvalidRequest
from core.redis.leases import leases

HEADER = "HTTP_IDEMPOTENCY_KEY"
KEY_FORMAT = re.compile(r"[\x21-\x7e]{1,255}\Z")
LARGEST_ANSWER = 1024 * 1024
KEPT_FOR = timedelta(days=1)
#: Headers that are kept with an answer; not its cost, because the replay costs nothing.
KEPT_HEADERS = ("Content-Type", "X-Cache", "X-Model", "X-Fallback")

log = structlog.get_logger(__name__)


class Replayed(Exception):
    """Raised when the request was answered before."""

    def __init__(self, answer: IdempotentAnswer) -> None:
        super().__init__()
        self.answer = answer

    def response(self) -> HttpResponse:
        """Return the kept answer as a response; a stream is sent whole."""
        response = HttpResponse(bytes(self.answer.body), status=self.answer.status, headers=self.answer.headers)
        response["Idempotency-Replayed"] = "true"
        response["X-Cost-USD"] = "0.000000000"
        return response


class Claim:
    """One request's claim on its Idempotency-Key. `cost` is the cost of its answer, in nano-dollars.

    `form` describes the form of the answer where path and body don't decide it.
    """

    def __init__(self, key: str, request: Request, *, owner: int, form: str = "") -> None:
        if not KEY_FORMAT.match(key):
            raise InvalidRequest("Idempotency-Key must be 1 to 255 printable characters.", param="Idempotency-Key")
        self.cost = 0
        self._name = hashlib.sha256(f"{owner} {key}".encode()).hexdigest()
        self._lease = f"idempotency:{self._name}"
        self._owner = owner
        self._fingerprint = _fingerprint(request, form)
        self._token = secrets.token_hex(16)
        self._is_over = False

    @classmethod
    def of(cls, request: Request, identity: AuthenticatedKey, *, form: str = "") -> Claim | None:
        """Return the claim of a request; None without an Idempotency-Key. Raises InvalidRequest for a malformed one."""
        key = request.META.get(HEADER)
        return None if key is None else cls(key, request, owner=identity.key_id, form=form)

    def take(self) -> None:
        """Take the lease and the row.

        Raises Replayed if there is an answer, Conflict while the first request runs, IdempotencyKeyReused if the key
        came with a different request, and DependencyUnavailable if the state store or the database is down.
        """
        try:
            if not leases.take(self._lease, self._token):
                raise self._reason(
                    IdempotentAnswer.objects.filter(pk=self._name, expires_at__gt=timezone.now()).first()
                )
            try:
                self.insert(has_lease=True)
            except BaseException:
                self._release_lease()
                raise
        except (RedisError, DatabaseError) as error:
            log.error("idempotency_failed", cause=type(error).__name__)
            raise DependencyUnavailable from error
        finally:
            release_connections()

    def insert(self, *, has_lease: bool = False) -> None:
        """Insert the row, or take over one that is a day old or, with the lease, one whose request died.

        Raises what take raises, and DatabaseError.
        """
        now = timezone.now()
        mine = {
            "key_id": self._owner,
            "token": self._token,
            "fingerprint": self._fingerprint,
            "expires_at": now + KEPT_FOR,
        }
        row, is_new = IdempotentAnswer.objects.get_or_create(name=self._name, defaults=mine)
        if is_new:
            return
        if row.expires_at > now and not (has_lease and row.status is None):
            raise self._reason(row)
        rows = IdempotentAnswer.objects.filter(name=self._name, token=row.token)
        if not rows.update(**mine, status=None, headers={}, body=b"", cost=0):
            raise self._reason(None)

    def keep(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Keep the answer in the row. Raises DatabaseError."""
        expires_at = timezone.now() + KEPT_FOR
        self._rows.update(status=status, headers=dict(headers), body=body, cost=self.cost, expires_at=expires_at)

    def finish(self, response: HttpResponseBase, body: bytes | None) -> None:
        """End a claim that was taken, and keep its answer if it is final. `body` is None for a broken answer."""
        if body is None or not is_final(response) or len(body) > LARGEST_ANSWER:
            self.release()
        elif not self._is_over:
            headers = {name: response[name] for name in KEPT_HEADERS if name in response}
            try:
                self.keep(response.status_code, headers, body)
            except DatabaseError as error:
                log.error("idempotent_answer_lost", cause=type(error).__name__)
            self._end()

    def release(self) -> None:
        """End a claim that was taken without keeping an answer, unless it has ended: a retry runs again."""
        if not self._is_over:
            try:
                self._rows.delete()
            except DatabaseError as error:  # a retry gets the lease, and takes the row over
                log.error("idempotency_failed", cause=type(error).__name__)
            self._end()

    @property
    def _rows(self) -> QuerySet[IdempotentAnswer]:
        """The row, as long as it belongs to this claim and has no answer."""
        return IdempotentAnswer.objects.filter(name=self._name, token=self._token, status=None)

    def _end(self) -> None:
        self._is_over = True
        release_connections()
        self._release_lease()

    def _release_lease(self) -> None:
        try:
            leases.release(self._lease, self._token)
        except RedisError as error:  # it expires
            log.error("idempotency_failed", cause=type(error).__name__)

    def _reason(self, row: IdempotentAnswer | None) -> Exception:
        """Return the error for a request that may not run; `row` is the other request's, None if just taken."""
        if row is not None and row.fingerprint != self._fingerprint:
            return IdempotencyKeyReused()
        if row is None or row.status is None:
            return Conflict(headers={"Retry-After": "1"})
        return Replayed(row)


def is_final(response: HttpResponseBase) -> bool:
    """Return whether a retry gets the same answer: neither 429 nor 5xx."""
    return response.status_code < 500 and response.status_code != 429


def _fingerprint(request: Request, form: str) -> str:
    """Return a digest of what is requested: method, path, form and body."""
    asked: list[Any] = [request.method, request.path_info.rstrip("/"), form, request.data]
    canonical = json.dumps(asked, sort_keys=True).encode()
    yield_to_others(len(canonical))
    return hashlib.sha256(canonical).hexdigest()
