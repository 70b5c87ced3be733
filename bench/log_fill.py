"""Fills a request log as 90 days of use would: made by PostgreSQL itself, so that millions of records take minutes.

Keys are used unevenly, each mostly for one endpoint and one model; sizes and times have long tails; of 100 requests 93
are answered, three of ten of those from the cache. Ids are UUIDv7 in order of time, as the platform makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psycopg

DAYS = 90
AT_A_TIME = 250_000


class Caller(NamedTuple):
    """A key of the platform, with its account."""

    account_id: int
    account: str
    key_id: int
    key: str


#: What a record's columns are made of: `n` its number, `at` its moment, `u1` ... `u6` of 0 to 1 by chance, `k` its key.
VALUES = {
    "id": "(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(noise, 1, 3) || '8'"
    " || substr(noise, 4, 15))::uuid",
    "revision": "2",
    "label": "md5(noise)",
    "admitted_at": "at",
    "account_id": "k.account_id",
    "account_name": "k.account",
    "key_id": "k.key_id",
    "key_name": "k.key",
    "endpoint": "endpoint",
    "model": "CASE WHEN status IN (400, 429) THEN '' ELSE model END",
    "deployment": "CASE WHEN cache = 'miss' THEN 'openai/' || model ELSE '' END",
    "status": "status",
    "error_code": "CASE status WHEN 400 THEN 'invalid_request' WHEN 429 THEN 'rate_limited'"
    " WHEN 502 THEN 'upstream_failed' WHEN 504 THEN 'upstream_timeout' ELSE '' END",
    "cache": "cache",
    "input_tokens": "CASE WHEN cache = 'miss' THEN input ELSE 0 END",
    "output_tokens": "CASE WHEN cache = 'miss' AND status = 200 THEN output ELSE 0 END",
    "cost": "CASE WHEN cache = 'miss' THEN input * price + output * 4 * price ELSE 0 END",
    "saved_cost": "CASE WHEN cache IN ('hit', 'coalesced') THEN input * price + output * 4 * price ELSE 0 END",
    "usage_source": "CASE cache WHEN 'miss' THEN 'provider' WHEN '' THEN '' ELSE 'cache' END",
    "latency_ms": "CASE WHEN cache = 'miss' THEN power(10, 2.2 + 1.6 * u4) ELSE 1 + 4 * u4 END",
    "first_token_ms": "CASE WHEN cache = 'miss' AND u5 < 0.3 THEN power(10, 2 + u4) END",
    "attempts": "CASE WHEN cache = 'miss' THEN 1 + (u5 > 0.98)::int ELSE 0 END",
    "count": "1",
}
#: What a column holds that is not listed above, by its type.
NOTHING = {"character varying": "''", "boolean": "false"}

DRAWN = """
SELECT n, %(begin)s::timestamptz + (n + random()) * %(step)s * interval '1 second' AS at,
       floor(%(keys)s * power(random(), 1.7))::int AS place, md5(n::text || random()::text) AS noise,
       random() AS u1, random() AS u2, random() AS u3, random() AS u4, random() AS u5, random() AS u6
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n OFFSET 0
"""
DECIDED = f"""
SELECT drawn.*, k.*,
       CASE WHEN u1 < 0.93 THEN 200 WHEN u1 < 0.95 THEN 400 WHEN u1 < 0.98 THEN 429 WHEN u1 < 0.99 THEN 502
            ELSE 504 END AS status,
       CASE WHEN u1 >= 0.95 AND u1 < 0.98 OR u1 >= 0.93 AND u1 < 0.95 THEN '' WHEN u1 >= 0.98 OR u2 < 0.7 THEN 'miss'
            WHEN u2 < 0.97 THEN 'hit' ELSE 'coalesced' END AS cache,
       (ARRAY['chat', 'chat.completions', 'summarize', 'embeddings'])
           [1 + (k.key_id + (u3 > 0.85)::int) %% 4] AS endpoint,
       (ARRAY['gpt-4o-mini', 'gpt-4o', 'gpt-3.5-turbo'])[1 + (k.key_id + (u6 > 0.85)::int) %% 3] AS model,
       (ARRAY[0.00000015, 0.0000025, 0.0000005])[1 + (k.key_id + (u6 > 0.85)::int) %% 3]::numeric AS price,
       20 + floor(-300 * ln(1 - u5))::int AS input, 1 + floor(-150 * ln(1 - u6))::int AS output
FROM ({DRAWN}) AS drawn JOIN bench_callers AS k USING (place)
"""  # noqa: S608


def fill(url: str, callers: Sequence[Caller], records: int) -> None:
    """Fill an empty log with so many records of the last 90 days; the rollups are left for the product to make."""
    with psycopg.connect(url, autocommit=True) as connection:
        _note_callers(connection, callers)
        statement = _statement(connection)
        indexes = _drop_indexes(connection)
        (begin,) = connection.execute(f"SELECT now() - interval '{DAYS} days'").fetchone() or (None,)
        for first in range(0, records, AT_A_TIME):
            last = min(first + AT_A_TIME, records) - 1
            drawn = {"begin": begin, "step": DAYS * 86_400 / records, "keys": len(callers), "first": first}
            connection.execute(statement, {**drawn, "last": last})
        for definition in indexes:
            connection.execute(definition)
        connection.execute("DROP TABLE bench_callers")
        connection.execute("VACUUM ANALYZE monitoring_requestrecord")


def _note_callers(connection: psycopg.Connection, callers: Sequence[Caller]) -> None:
    connection.execute(
        "CREATE TABLE bench_callers (place int, account_id bigint, account text, key_id bigint, key text)"
    )
    with connection.cursor() as cursor, cursor.copy("COPY bench_callers FROM STDIN") as copy:
        for place, caller in enumerate(callers):
            copy.write_row((place, *caller))


def _statement(connection: psycopg.Connection) -> str:
    found = connection.execute(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
        "WHERE table_name = 'monitoring_requestrecord' AND table_schema = 'public'"
    )
    made = {
        name: VALUES.get(name, "NULL" if nullable == "YES" else NOTHING.get(kind, "0"))
        for name, kind, nullable in found
    }
    columns, values = ", ".join(made), ", ".join(made.values())
    return f"INSERT INTO monitoring_requestrecord ({columns}) SELECT {values} FROM ({DECIDED}) AS k"  # noqa: S608


def _drop_indexes(connection: psycopg.Connection) -> list[str]:
    """Drop all indexes but the primary key's, and return the statements that make them again: so it is faster."""
    found = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes "
        "WHERE tablename = 'monitoring_requestrecord' AND indexname NOT LIKE '%_pkey'"
    ).fetchall()
    for name, _ in found:
        connection.execute(psycopg.sql.SQL("DROP INDEX {}").format(psycopg.sql.Identifier(name)))
    return [definition for _, definition in found]
