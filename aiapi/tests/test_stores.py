"""Database and cache settings, as they follow from URLs."""

from __future__ import annotations

from pathlib import Path

from core.env import cache_settings, database_settings


def test_it_opens_sqlite_for_writers_that_wait(tmp_path: Path) -> None:
    found = database_settings(f"sqlite:///{tmp_path}/deep/down/aiapi.sqlite3", pool_size=8)
    assert found["NAME"] == f"{tmp_path}/deep/down/aiapi.sqlite3"
    assert (tmp_path / "deep" / "down").is_dir()
    assert (found["ENGINE"], found["CONN_MAX_AGE"]) == ("core.sqlite", None)
    assert found["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode=WAL" in found["OPTIONS"]["init_command"]
    assert database_settings("sqlite://:memory:", pool_size=8)["NAME"] == ":memory:"


def test_it_pools_postgresql_connections() -> None:
    found = database_settings("postgresql://u:p%40ss@db.example.com:5433/name?sslmode=require", pool_size=7)
    assert found["ENGINE"] == "core.postgres"
    assert (found["HOST"], found["PORT"], found["USER"], found["PASSWORD"], found["NAME"]) == (
        "db.example.com", 5433, "u", "p@ss", "name",
    )  # fmt: skip
    assert found["OPTIONS"]["pool"]["max_size"] == 7
    assert found["OPTIONS"]["sslmode"] == "require"
    assert found["CONN_MAX_AGE"] == 0


def test_it_caches_in_the_process_without_a_url() -> None:
    found = cache_settings("", ttl=60, timeout=0.2)
    assert {each["BACKEND"].rpartition(".")[2] for each in found.values()} == {"LocMemCache"}
    assert len({each["LOCATION"] for each in found.values()}) == 3
    assert found["answers"]["OPTIONS"]["MAX_ENTRIES"] == 64
    assert found["answers"]["TIMEOUT"] == 60


def test_it_caches_in_redis_for_a_bounded_time() -> None:
    found = cache_settings("redis://h:1/0", ttl=60, timeout=0.2)
    assert {found[alias]["LOCATION"] for alias in ("answers", "attempts")} == {"redis://h:1/0"}
    assert len({each.get("KEY_PREFIX") for each in found.values()}) == 3
    assert found["answers"]["TIMEOUT"] == 60
    for alias in ("answers", "attempts"):
        options = found[alias]["OPTIONS"]
        assert options["SOCKET_TIMEOUT"] == options["SOCKET_CONNECT_TIMEOUT"] == 0.2
        assert options["CONNECTION_POOL_KWARGS"]["retry"].get_retries() == 0
