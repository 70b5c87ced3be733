"""Run PostgreSQL and Redis for bin/test: print their URLs as one line of JSON, and stay until standard input ends."""

from __future__ import annotations

import json
import signal
import sys

from tests.stores import postgres_server, redis_server


def main() -> None:
    """Start both, say where, and end them when the caller is gone or asks by SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with postgres_server() as postgres, redis_server() as redis:
        print(json.dumps({"DATABASE_URL": postgres.create_database(), "REDIS_URL": redis.url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
