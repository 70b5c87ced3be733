"""Where leases and answers under Idempotency-Keys are kept: the state Redis, or the database in the embedded mode."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.limits.redis import redis_client
from accounts.models import IdempotentAnswer

LEASE_SECONDS = 15
KEPT_SECONDS = 24 * 3600
#: Rows over their time that one new lease clears away.
CLEARED_ROWS = 20


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to answer first under a name; `fingerprint` tells the request, `token` its holder."""

    name: str
    fingerprint: str
    token: str

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
    """One key with JSON in it: the lease for a short time, then the answer for a long one. Raises RedisError."""

    RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('EXPIRE', KEYS[1], ARGV[2]) or 0"
    RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"

    def __init__(self) -> None:
        self._client: Any = redis_client(settings.REDIS_URL)

    def take(self, lease: Lease) -> Held | None:
        """Take the lease, or see what is there. A lease that runs out between the two commands counts as running."""
        if self._client.set(_place(lease), lease.text, nx=True, ex=LEASE_SECONDS):
            return None
        stored = self._client.get(_place(lease))
        value = json.loads(stored) if stored else {}
        answer = value.get("answer")
        return Held(value.get("fingerprint", lease.fingerprint), KeptAnswer.from_json(answer) if answer else None)

    def renew(self, lease: Lease) -> None:
        """Prolong the lease."""
        self._client.eval(self.RENEW, 1, _place(lease), lease.text, LEASE_SECONDS)

    def finish(self, lease: Lease, answer: KeptAnswer) -> None:
        """Keep the answer for a day."""
        value = json.dumps({"fingerprint": lease.fingerprint, "answer": answer.as_json()})
        self._client.set(_place(lease), value, ex=KEPT_SECONDS)

    def release(self, lease: Lease) -> None:
        """Give the lease back."""
        self._client.eval(self.RELEASE, 1, _place(lease), lease.text)


class DatabaseStore:
    """One row a name. Raises django.db.Error."""

    def take(self, lease: Lease) -> Held | None:
        """Take the lease, or see what is there; rows over their time go first."""
        self._clear(lease.name)
        until = timezone.now() + timedelta(seconds=LEASE_SECONDS)
        try:
            with transaction.atomic():
                IdempotentAnswer.objects.create(
                    name=lease.name, fingerprint=lease.fingerprint, token=lease.token, until=until
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
        """Keep the answer for a day."""
        IdempotentAnswer.objects.update_or_create(
            name=lease.name,
            defaults={
                "fingerprint": lease.fingerprint,
                "token": lease.token,
                "answer": answer.as_json(),
                "until": timezone.now() + timedelta(seconds=KEPT_SECONDS),
            },
        )

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
    return f"aiapi:idempotency:{lease.name}"


def make_store() -> Store:
    """Make the store that the settings ask for."""
    return RedisStore() if settings.REDIS_URL else DatabaseStore()
