"""The reader of environment variables, typed, strict and silent about values, and the stores that follow from URLs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.env import ConfigurationError, Environment, cache_settings, database_settings

Read = Callable[[Environment], Any]


def text(env: Environment) -> str:
    return env.text("X", "d")


def integer(env: Environment) -> int:
    return env.integer("X", 5, minimum=1, maximum=9)


def url(env: Environment) -> str:
    return env.url("X", ("http", "redis"), "http://d")


WHOLE, RANGE = "must be a whole number", "must be a whole number from 1 to 9"
NUMBER, NUMBERS = "must be a number", "must be a number from 0.1 to 2"
SCHEMES, NO_URL, RATE = "must begin with http:// or redis://", "is not a valid URL", "must be a number of times"
#: Each reader with its default, values by what is given, and complaints about what is wrong.
READERS: list[tuple[Read, Any, dict[str, Any], dict[str, str]]] = [
    (text, "d", {" some text ": "some text"}, {}),
    (lambda env: env.choice("X", ("a", "b"), "a"), "a", {"b": "b"}, dict.fromkeys("cA", "must be one of a, b")),
    (integer, 5, {"1": 1, "9": 9}, {"0": RANGE, "10": RANGE, "5.0": WHOLE, "five": WHOLE}),
    (
        lambda env: env.number("X", 0.5, minimum=0.1, maximum=2),
        0.5,
        {"2": 2.0, "1e-1": 0.1},
        {"0.05": NUMBERS, "nan": NUMBERS, "inf": NUMBERS, "1s": NUMBER},
    ),
    (
        lambda env: env.boolean("X", True),
        True,
        {"true": True, "Yes": True, "off": False, "0": False},
        {"perhaps": "must be true or false"},
    ),
    (lambda env: env.names("X", ["d"]), ["d"], {"a, b,,c ,": ["a", "b", "c"]}, {}),
    (
        url,
        "http://d",
        {each: each for each in ("http://[::1]:8080/v1", "redis://:secret@host:1/0")},
        {"ftp://host": SCHEMES, "host:80": SCHEMES, "http://": "must name a host"}
        | dict.fromkeys(("http://h:nan", "http://h:70000", "http://[::1"), NO_URL),
    ),
    (
        lambda env: env.rate("X", "1/m"),
        "1/m",
        {"30/m": "30/m", "1/d": "1/d"},
        dict.fromkeys(("30", "0/m", "often"), RATE),
    ),
]


@pytest.mark.parametrize(("read", "default", "values", "complaints"), READERS)
def test_it_reads_a_value_of_its_type_or_names_the_variable_and_the_mend(
    read: Read, default: Any, values: dict[str, Any], complaints: dict[str, str]
) -> None:
    for unset in ({}, {"X": ""}, {"X": " \t"}, {"X_FILE": ""}):
        assert read(Environment(unset)) == default
    for raw, value in values.items():
        assert read(Environment({"X": raw})) == value
    for raw, told in complaints.items():
        with pytest.raises(ConfigurationError, match=r"\AX [^\n]+\Z") as raised:
            read(Environment({"X": raw}))
        assert told in str(raised.value)


@pytest.mark.parametrize("raw", ["sec:ret", "http://user:hunter2@ho\u2100st/", "redis://u:hunter2@h:x/0"])
def test_it_never_tells_a_value(raw: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        url(Environment({"X": raw}))
    assert raw not in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_it_reads_a_value_out_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("7\n")
    assert integer(Environment({"X_FILE": str(tmp_path / "secret"), "X": ""})) == 7


def test_it_refuses_both_a_value_and_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="X and X_FILE are both set"):
        text(Environment({"X": "a", "X_FILE": str(tmp_path)}))


def test_it_refuses_a_file_that_cant_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for content in (None, b"\xff\xfe"):
        if content:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="X_FILE names a file that can't be read"):
            text(Environment({"X_FILE": str(path)}))


def test_it_remembers_what_was_declared() -> None:
    env = Environment({})
    env.text("A", "x", secret=True)
    env.boolean("B", False)
    env.names("C", ["x", "y"])
    told = {name: (each.kind, each.default, each.secret) for name, each in env.declared.items()}
    assert told == {
        "A": ("text", "x", True),
        "B": ("true or false", "false", False),
        "C": ("comma-separated list", "x,y", False),
    }


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"REDIS_URI": "x"}, [("REDIS_URI", "REDIS_URL")]),
        ({"REDIS_URLS": "x"}, [("REDIS_URLS", "REDIS_URL")]),
        ({"redis_url": "x"}, [("redis_url", "REDIS_URL")]),
        ({"REDIS_URL": "x", "REDIS_URI": "x"}, []),
        ({"REDIS_URL_FILE": os.devnull}, []),
        ({"PATH": "x", "HOSTNAME": "x", "HOME": "x"}, []),
    ],
)
def test_it_reports_near_misses(values: dict[str, str], found: list[tuple[str, str]]) -> None:
    env = Environment(values)
    for name in ("REDIS_URL", "PORT", "HOST"):
        env.text(name)
    assert env.near_misses() == found


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
