"""Django's settings for the database and the caches, from their URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import environ
from redis.backoff import NoBackoff
from redis.retry import Retry

#: Answers that a process keeps for itself where there is no cache that all share.
PROCESS_ANSWERS = 64
SQLITE_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;"
#: Seconds to wait for a PostgreSQL connection: a new one, and one of the pool's.
CONNECT_TIMEOUT = 5
#: What TCP does about a machine that is gone: in these (seconds, but the last is in milliseconds) a connection breaks.
DEAD_HOSTS = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}
#: Connections to a cache: redis-py's own limit of 100 would turn hits into misses while more callers than that ask.
MAX_CONNECTIONS = 10_000
#: Seconds after which the pool gives an attempt up. Its pauses between tries double, so that without this a database
#: that is back would go unnoticed for as long as it had been away; so the next request tries anew.
RECONNECT_TIMEOUT = 1


def database_settings(url: str, *, pool_size: int) -> dict[str, Any]:
    """Make the DATABASES entry of a postgres:// or sqlite:// URL.

    PostgreSQL connections come from a pool of each process and go back at the end of a request, so that slow model
    calls hold none; how long callers wait for them is in aiapi.postgres. SQLite runs in WAL mode and takes its write
    lock when a transaction begins: a transaction that would have to wait in its middle could not be retried. How others
    wait for that lock is in aiapi.sqlite.
    """
    config: dict[str, Any] = dict(environ.Env.db_url_config(url))
    if config["ENGINE"].endswith("sqlite3"):
        if config["NAME"] != ":memory:":
            Path(config["NAME"]).parent.mkdir(parents=True, exist_ok=True)
        config["ENGINE"] = "aiapi.sqlite"
        config["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "init_command": SQLITE_PRAGMAS}
        config["CONN_MAX_AGE"] = None
        config["TEST"] = {"NAME": ":memory:"}  # as Django's own backend has it, which test runners know by its name
        return config
    pool = {
        "min_size": 0,
        "max_size": pool_size,
        "timeout": CONNECT_TIMEOUT,
        "reconnect_timeout": RECONNECT_TIMEOUT,
        "max_idle": 60,
    }
    config["ENGINE"] = "aiapi.postgres"
    config["OPTIONS"] = {**DEAD_HOSTS, **config.get("OPTIONS", {}), "pool": pool, "connect_timeout": CONNECT_TIMEOUT}
    config["CONN_MAX_AGE"] = 0
    return config


def cache_settings(url: str, *, ttl: int, timeout: float, attempts_url: str = "") -> dict[str, dict[str, Any]]:
    """Make CACHES: `answers` for model answers, `attempts` for counters of failed log-ins, `default` for the rest.

    Without a URL they live in the process; attempts are then counted at `attempts_url`, if there is one. With one, a
    call takes at most `timeout` seconds and is not retried; exceptions are ignored, apart from `answers` and
    `attempts`: inference.cache and accounts.attempts have policies of their own for them.
    """
    wanted = (("default", url, 300), ("answers", url, ttl), ("attempts", url or attempts_url, 300))
    return {alias: _cache(alias, where, lifetime, timeout) for alias, where, lifetime in wanted}


def _cache(alias: str, url: str, lifetime: int, timeout: float) -> dict[str, Any]:
    if not url:
        return {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "LOCATION": alias,
            "TIMEOUT": lifetime,
            "OPTIONS": {"MAX_ENTRIES": PROCESS_ANSWERS if alias == "answers" else 10_000},
        }
    return {
        "BACKEND": "accounts.attempts.AttemptsCache" if alias == "attempts" else "django_redis.cache.RedisCache",
        "LOCATION": url,
        "TIMEOUT": lifetime,
        "KEY_PREFIX": f"aiapi:{alias}",
        "OPTIONS": {
            "IGNORE_EXCEPTIONS": alias == "default",
            "LOG_IGNORED_EXCEPTIONS": True,
            "SOCKET_CONNECT_TIMEOUT": timeout,
            "SOCKET_TIMEOUT": timeout,
            "CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 0), "max_connections": MAX_CONNECTIONS},
        },
    }
