"""Where leases and answers under Idempotency-Keys are kept: the state Redis, or the database in the embedded mode.

An account keeps at most IDEMPOTENCY_BYTES: an answer that there is no room for takes that of the account's oldest ones.
"""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Sum
from django.utils import timezone

from accounts.limits import ask_state_store
from accounts.limits.redis import redis_client
from accounts.models import IdempotentAnswer
from accounts.room import KEPT_SHARE, ROOM

LEASE_SECONDS = 15
KEPT_SECONDS = 24 * 3600
#: Rows over their time that one new lease clears away.
CLEARED_ROWS = 20
#: Bytes that an answer takes beside itself, roughly, and rows that one statement drops (SQLite bounds its parameters).
OVERHEAD = 300
DROPPED_AT_ONCE = 500

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to answer first under a name; `fingerprint` tells the request, `token` its holder, `account` whose."""

    name: str
    fingerprint: str
    token: str
    account: int

    @property
    def text(self) -> str:
        """Write it as it is stored."""
        return json.dumps({"fingerprint": self.fingerprint, "token": self.token})


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it was given first, and what it cost then, in nano-dollars (0 where unknown)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cost: int = 0

    def as_json(self) -> dict[str, Any]:
        """Write it as JSON."""
        return {**asdict(self), "body": base64.b64encode(self.body).decode()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> KeptAnswer:
        """Read it from what as_json wrote."""
        return cls(value["status"], value["headers"], base64.b64decode(value["body"]), value.get("cost", 0))


@dataclass(frozen=True, slots=True)
class Held:
    """What stands under a name already: whose request it is, and its answer, or None while that is made."""

    fingerprint: str
    answer: KeptAnswer | None


class Store(Protocol):
    """Keeps leases and answers by name."""

    def take(self, lease: Lease) -> Held | None:
        """Take a lease (None), or return what stands under its name."""

    def renew(self, lease: Lease) -> None:
        """Prolong a lease that is still held."""

    def finish(self, lease: Lease, answer: KeptAnswer) -> None:
        """Put the answer in the lease's place; one that was lost meanwhile doesn't matter: the answer is a true one."""

    def release(self, lease: Lease) -> None:
        """Give a lease back without an answer."""


class RedisStore:
    """One key with JSON in it: the lease for a short time, then the answer for a long one. Raises RedisError.

    It is the Redis of the limits, so while they know that it is away, nobody waits for it here either.
    """

    KEEP = ROOM + Path(__file__).with_name("keep.lua").read_text()
    RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('EXPIRE', KEYS[1], ARGV[2]) or 0"
    RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"

    def __init__(self) -> None:
        self._client: Any = redis_client(settings.REDIS_URL)

    def take(self, lease: Lease) -> Held | None:
        """Take the lease, or see what is there. A lease that runs out between the two commands counts as running."""
        attempts = itertools.count()
        return ask_state_store(lambda: self._take(lease, again=next(attempts) > 0))

    def _take(self, lease: Lease, *, again: bool) -> Held | None:
        if self._client.set(_place(lease), lease.text, nx=True, ex=LEASE_SECONDS):
            return None
        stored = self._client.get(_place(lease))
        value = json.loads(stored) if stored else {}
        if again and value.get("token") == lease.token:  # by the call before, whose reply was lost
            return None
        answer = value.get("answer")
        return Held(value.get("fingerprint", lease.fingerprint), KeptAnswer.from_json(answer) if answer else None)

    def renew(self, lease: Lease) -> None:
        """Prolong the lease."""
        self._eval(self.RENEW, [_place(lease)], lease.text, LEASE_SECONDS)

    def finish(self, lease: Lease, answer: KeptAnswer) -> None:
        """Keep the answer for a day, and drop what there is no room for; give the lease back if there is none."""
        value = json.dumps({"fingerprint": lease.fingerprint, "answer": answer.as_json()})
        size, most = len(value) + OVERHEAD, settings.IDEMPOTENCY_BYTES
        places = [_place(lease), *(f"{_folder(lease)}{part}" for part in ("order", "sizes"))]
        arguments = (value, KEPT_SECONDS, lease.name, size, most, KEPT_SHARE)
        if size > most or not self._eval(self.KEEP, places, *arguments):
            log.warning("idempotent_answer_not_kept", bytes=size)
            self.release(lease)

    def release(self, lease: Lease) -> None:
        """Give the lease back."""
        self._eval(self.RELEASE, [_place(lease)], lease.text)

    def _eval(self, source: str, keys: list[str], *arguments: str | int | float) -> Any:
        return ask_state_store(lambda: self._client.eval(source, len(keys), *keys, *arguments))


class DatabaseStore:
    """One row a name. Raises django.db.Error."""

    def take(self, lease: Lease) -> Held | None:
        """Take the lease, or see what is there; rows over their time go first."""
        self._clear(lease.name)
        until = timezone.now() + timedelta(seconds=LEASE_SECONDS)
        try:
            with transaction.atomic():
                IdempotentAnswer.objects.create(
                    name=lease.name,
                    fingerprint=lease.fingerprint,
                    token=lease.token,
                    account_id=lease.account,
                    until=until,
                )
        except IntegrityError:
            row = IdempotentAnswer.objects.filter(name=lease.name).first()
            if row is None:  # given back just now: to its retry it looks as if it were still running
                return Held(lease.fingerprint, None)
            return Held(row.fingerprint, KeptAnswer.from_json(row.answer) if row.answer else None)
        return None

    def renew(self, lease: Lease) -> None:
        """Prolong the lease."""
        until = timezone.now() + timedelta(seconds=LEASE_SECONDS)
        IdempotentAnswer.objects.filter(name=lease.name, token=lease.token, answer__isnull=True).update(until=until)

    def finish(self, lease: Lease, answer: KeptAnswer) -> None:
        """Keep the answer for a day, and drop what there is no room for."""
        value = answer.as_json()
        size = len(json.dumps(value)) + OVERHEAD
        if size > settings.IDEMPOTENCY_BYTES:
            self.release(lease)
            return
        kept = {
            "fingerprint": lease.fingerprint,
            "token": lease.token,
            "account_id": lease.account,
            "answer": value,
            "size": size,
            "until": timezone.now() + timedelta(seconds=KEPT_SECONDS),
        }
        with transaction.atomic():
            IdempotentAnswer.objects.update_or_create(name=lease.name, defaults=kept)
            self._make_room(lease.account)

    def _make_room(self, account: int) -> None:
        """Drop the oldest answers of an account that keeps too much."""
        own = IdempotentAnswer.objects.filter(account_id=account, size__gt=0)
        excess = (own.aggregate(total=Sum("size"))["total"] or 0) - settings.IDEMPOTENCY_BYTES
        dropped = []
        for name, size in own.order_by("until").values_list("name", "size").iterator() if excess > 0 else ():
            if excess <= 0:
                break
            dropped.append(name)
            excess -= size
        for start in range(0, len(dropped), DROPPED_AT_ONCE):
            IdempotentAnswer.objects.filter(name__in=dropped[start : start + DROPPED_AT_ONCE]).delete()

    def release(self, lease: Lease) -> None:
        """Give the lease back."""
        IdempotentAnswer.objects.filter(name=lease.name, token=lease.token, answer__isnull=True).delete()

    def _clear(self, name: str) -> None:
        now = timezone.now()
        IdempotentAnswer.objects.filter(name=name, until__lte=now).delete()
        old = list(IdempotentAnswer.objects.filter(until__lte=now).values_list("pk", flat=True)[:CLEARED_ROWS])
        if old:
            IdempotentAnswer.objects.filter(pk__in=old, until__lte=now).delete()


def _place(lease: Lease) -> str:
    return _folder(lease) + lease.name


def _folder(lease: Lease) -> str:
    """Begin the names of all that an account keeps: in one slot of a cluster."""
    return f"aiapi:idempotency:{{{lease.account}}}:"


def make_store() -> Store:
    """Make the store that the settings ask for."""
    return RedisStore() if settings.REDIS_URL else DatabaseStore()
