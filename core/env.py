"""Typed, strict reading of environment variables, and Django settings for database and caches from URLs.

The call that reads a variable also declares it, so `Environment.declared` lists exactly the variables that have an
effect. `NAME_FILE` names a file that holds the value of NAME (for secrets mounted by an orchestrator). An empty value
counts as unset, because compose files and hosting platforms pass `NAME=` for variables that have no value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

T = TypeVar("T")

#: Similarity from which an unknown name is reported as a misspelling of a known one (REDIS_URI for REDIS_URL: 0.89).
NEAR_MISS_RATIO = 0.85
#: Prefixes of variables that libraries read themselves. Only a few of OpenTelemetry's are declared here.
OTHERS = ("OTEL_",)
RATE = re.compile(r"[1-9][0-9]{0,8}/[smhd]")


class ConfigurationError(ImproperlyConfigured):
    """A variable is missing or has an invalid value. The message names the variable and the fix, never the value."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable that the project reads."""

    name: str
    kind: str
    default: str
    secret: bool


class Environment:
    """Reads typed values from a mapping such as os.environ and keeps a list of the declared variables.

    Each reader returns `default` if the variable is unset or empty, and raises ConfigurationError for an invalid value.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.declared: dict[str, Variable] = {}

    def text(self, name: str, default: str = "", *, secret: bool = False) -> str:
        """Read a text without its surrounding white space."""
        return self._read(name, str, default, kind="text", secret=secret)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """Read one of the words in `choices`."""

        def parse(raw: str) -> str:
            if raw not in choices:
                raise ValueError(f"must be one of {', '.join(choices)}")
            return raw

        return self._read(name, parse, default, kind=" or ".join(choices))

    def integer(self, name: str, default: int, *, minimum: int, maximum: int = 2**53) -> int:
        """Read a whole number between minimum and maximum, both included."""
        return self._read(name, _bounded(int, minimum, maximum), default, kind="whole number")

    def number(self, name: str, default: float, *, minimum: float, maximum: float = 1e9) -> float:
        """Read a number between minimum and maximum, both included."""
        return self._read(name, _bounded(float, minimum, maximum), default, kind="number")

    def boolean(self, name: str, default: bool) -> bool:
        """Read true or false (also yes, no, on, off, 1, 0)."""
        return self._read(name, _parse_boolean, default, kind="true or false")

    def names(self, name: str, default: Iterable[str] = (), *, secret: bool = False) -> list[str]:
        """Read a comma-separated list; empty parts are dropped."""

        def parse(raw: str) -> list[str]:
            return [part.strip() for part in raw.split(",") if part.strip()]

        return self._read(name, parse, list(default), kind="comma-separated list", secret=secret)

    def networks(self, name: str) -> list[IPv4Network | IPv6Network]:
        """Read a comma-separated list of networks in CIDR notation, or addresses; none by default."""

        def parse(raw: str) -> list[IPv4Network | IPv6Network]:
            try:
                return [ip_network(part.strip()) for part in raw.split(",") if part.strip()]
            except ValueError:
                raise ValueError("must be networks such as 10.0.0.0/8, without bits set after the prefix") from None

        return self._read(name, parse, [], kind="comma-separated networks")

    def rate(self, name: str, default: str) -> str:
        """Read a rate such as 30/m (s, m, h, d: per second, minute, hour, day)."""

        def parse(raw: str) -> str:
            if not RATE.fullmatch(raw):
                raise ValueError("must be a number of times in a second, minute, hour or day, such as 30/m")
            return raw

        return self._read(name, parse, default, kind="rate")

    def url(self, name: str, schemes: tuple[str, ...], default: str = "", *, secret: bool = False) -> str:
        """Read a URL of one of the schemes; http:// and https:// ones must name a host."""

        def parse(raw: str) -> str:
            scheme, host = _url_parts(raw)
            if scheme not in schemes:
                raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
            if scheme in ("http", "https") and not host:
                raise ValueError("must name a host")
            return raw

        return self._read(name, parse, default, kind="URL", secret=secret)

    def near_misses(self) -> list[tuple[str, str]]:
        """List (name that is set but unknown, known name it resembles), sorted."""
        known = set(self.declared) | {f"{name}_FILE" for name in self.declared}
        found = []
        for name in sorted(set(self._values) - known):
            if name.startswith(OTHERS):
                continue
            alike = difflib.get_close_matches(name.upper(), self.declared, n=1, cutoff=NEAR_MISS_RATIO)
            if alike and alike[0] not in self._values:
                found.append((name, alike[0]))
        return found

    def _read(self, name: str, parse: Callable[[str], T], default: T, *, kind: str, secret: bool = False) -> T:
        shown = ",".join(default) if isinstance(default, list) else str(default)
        self.declared[name] = Variable(name, kind, shown.lower() if isinstance(default, bool) else shown, secret)
        raw = self._raw(name)
        if not raw:
            return default
        try:
            return parse(raw)
        except ValueError as error:
            raise ConfigurationError(f"{name} {error}") from None

    def _raw(self, name: str) -> str:
        path = self._values.get(f"{name}_FILE", "").strip()
        if path and self._values.get(name, "").strip():
            raise ConfigurationError(f"{name} and {name}_FILE are both set: unset one of them")
        if not path:
            return self._values.get(name, "").strip()
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError(f"{name}_FILE names a file that can't be read") from None


def _bounded(kind: type[T], minimum: float, maximum: float) -> Callable[[str], T]:
    word = "a whole number" if kind is int else "a number"

    def parse(raw: str) -> T:
        try:
            value = kind(raw)  # type: ignore[call-arg]
        except ValueError:
            raise ValueError(f"must be {word}") from None
        if not minimum <= float(value) <= maximum:  # type: ignore[arg-type]
            raise ValueError(f"must be {word} from {minimum:g} to {maximum:g}")
        return value

    return parse


def _url_parts(raw: str) -> tuple[str, str | None]:
    """Return scheme and host. Python's own message for an invalid URL is dropped, because it may quote a password."""
    try:
        parts = urlsplit(raw)
        _ = parts.port
    except ValueError:
        raise ValueError(
            "is not a valid URL: check its host and port. In a password, / # ? @ % are written %2F %23 %3F %40 %25"
        ) from None
    return parts.scheme, parts.hostname


def _parse_boolean(raw: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if raw.lower() not in words:
        raise ValueError("must be true or false")
    return words[raw.lower()]


#: Answers that a process caches in its memory if there is no shared cache.
PROCESS_ANSWERS = 64
SQLITE_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;"
#: Seconds to wait for a PostgreSQL connection, new or from the pool.
CONNECT_TIMEOUT = 5
#: TCP settings that close the connection to a dead host (seconds; tcp_user_timeout in milliseconds).
DEAD_HOSTS = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}
#: Options of each connection to Redis: redis-py retries nothing, and without HELLO (protocol 3) and the driver's name a
#: new connection needs no round trip.
REDIS_OPTIONS = {"retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None}
#: Seconds after which the pool gives up reconnecting, so that the next request starts anew. The pool doubles its pauses
#: between attempts: without this limit, it could notice a recovered database only after as long again as the outage.
RECONNECT_TIMEOUT = 1


def database_settings(url: str, *, pool_size: int) -> dict[str, Any]:
    """Return the DATABASES entry for a postgres:// or sqlite:// URL.

    Each process has a pool of PostgreSQL connections, which go back to it at the end of a request (see core.postgres
    for timeouts). SQLite runs in WAL mode. Its transactions, except core.database.repeatable_read, take the write lock
    when they begin, because a transaction that had to wait for the lock later could not be retried (see core.sqlite).
    """
    config: dict[str, Any] = dict(environ.Env.db_url_config(url))
    if config["ENGINE"].endswith("sqlite3"):
        if config["NAME"] != ":memory:":
            Path(config["NAME"]).parent.mkdir(parents=True, exist_ok=True)
        config["ENGINE"] = "core.sqlite"
        config["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "init_command": SQLITE_PRAGMAS}
        config["CONN_MAX_AGE"] = None
        config["TEST"] = {"NAME": ":memory:"}  # Django's default, applied by the name of its own backend
        return config
    pool = {
        "min_size": 0,
        "max_size": pool_size,
        "timeout": CONNECT_TIMEOUT,
        "reconnect_timeout": RECONNECT_TIMEOUT,
        "max_idle": 60,
    }
    config["ENGINE"] = "core.postgres"
    config["OPTIONS"] = {**DEAD_HOSTS, **config.get("OPTIONS", {}), "pool": pool, "connect_timeout": CONNECT_TIMEOUT}
    config["CONN_MAX_AGE"] = 0
    return config


def cache_settings(url: str, *, ttl: int, timeout: float, attempts_url: str = "") -> dict[str, dict[str, Any]]:
    """Return CACHES: `answers` for model answers, `attempts` for counters of failed log-ins, and Django's `default`.

    Without `url` the caches are in the process's memory, and attempts are counted at `attempts_url`, if given. With
    `url`, a cache command takes at most `timeout` seconds (see core.cache): inference.cache and accounts.authentication
    have their own failure policies. `ttl`: seconds for which an answer is kept.
    """
    return {
        "default": _cache("default", "", 300, timeout),
        "answers": _cache("answers", url, ttl, timeout),
        "attempts": _cache("attempts", url or attempts_url, 300, timeout),
    }


def _cache(alias: str, url: str, lifetime: int, timeout: float) -> dict[str, Any]:
    if not url:
        return {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "LOCATION": alias,
            "TIMEOUT": lifetime,
            "OPTIONS": {"MAX_ENTRIES": PROCESS_ANSWERS if alias == "answers" else 10_000},
        }
    return {
        "BACKEND": "accounts.authentication.AttemptsCache" if alias == "attempts" else "django_redis.cache.RedisCache",
        "LOCATION": url,
        "TIMEOUT": lifetime,
        "KEY_PREFIX": f"aiapi:{alias}",
        "VERSION": 3,  # the values of 1 were pickled, those of 2 were JSON in a text
        "OPTIONS": {
            "REDIS_CLIENT_CLASS": "core.cache.SharedRedis",
            "SERIALIZER": "core.cache.JSONSerializer",
            "SOCKET_CONNECT_TIMEOUT": timeout,
            "SOCKET_TIMEOUT": timeout,
            "CONNECTION_POOL_KWARGS": REDIS_OPTIONS,
        },
    }
