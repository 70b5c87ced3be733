"""Generate, check and digest the text of an API key.

Format: `ak_` + environment (`live` or `dev`) + `_` + 32 random bytes in base62 (43 characters) + a checksum (CRC-32 of
all before it, base62, 6 characters). Only HMAC-SHA256(pepper, key) is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings

from core.redaction import ALPHABET, CHECKSUM_LENGTH, PREFIX, RANDOM_LENGTH

RANDOM_BYTES = 32
#: Characters of a key that may be shown: `ak_live_` and four of the random part (24 bits of 256).
SHOWN_PREFIX = 12
MAX_KEY_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Pepper:
    """A secret that is part of every digest, with the id that keys store to refer to it."""

    id: str
    secret: bytes


def generate_key(environment: str) -> str:
    """Return a new key for an environment (`production` or `development`)."""
    label = "live" if environment == "production" else "dev"
    number = int.from_bytes(secrets.token_bytes(RANDOM_BYTES), "big")
    body = f"{PREFIX}{label}_{_base62(number, RANDOM_LENGTH)}"
    return body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Return whether a key could be one of ours; typos fail here, without a query.

    Keys without the prefix are accepted in development only.
    """
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isascii():
        return False
    if not key.startswith(PREFIX):
        return bool(settings.ALLOW_PLAIN_KEYS)
    return hmac.compare_digest(_checksum(key[:-CHECKSUM_LENGTH]), key[-CHECKSUM_LENGTH:])


def shown_prefix(key: str) -> str:
    """Return the visible beginning of a key, at most a third of a short one."""
    return key[: min(SHOWN_PREFIX, len(key) // 3)]


def digest_key(key: str, pepper: Pepper) -> str:
    """Return the digest under which a key is stored, 64 hexadecimal digits."""
    return hmac.digest(pepper.secret, key.encode(), hashlib.sha256).hex()


def digests(key: str) -> tuple[str, ...]:
    """Return the key's digest under every accepted pepper, the current one first."""
    return tuple(digest_key(key, pepper) for pepper in accepted_peppers())


def accepted_peppers() -> tuple[Pepper, ...]:
    """Return the peppers from the settings: the first is for new digests, all are accepted."""
    return _parse_peppers(tuple(settings.API_KEY_PEPPERS))


@lru_cache(maxsize=8)
def _parse_peppers(secrets_: tuple[str, ...]) -> tuple[Pepper, ...]:
    """Parse peppers. The id of each is a digest of its text, so that it survives reordering and reveals nothing."""
    return tuple(Pepper(hashlib.sha256(f"pepper {text}".encode()).hexdigest()[:8], text.encode()) for text in secrets_)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        digits.append(ALPHABET[rest])
    return "".join(reversed(digits))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECKSUM_LENGTH)
