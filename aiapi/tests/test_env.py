"""The reader of environment variables: typed, strict, and silent about values."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.env import ConfigurationError, Environment

Read = Callable[[Environment], Any]

text: Read = lambda env: env.text("X", "d")  # noqa: E731
choice: Read = lambda env: env.choice("X", ("a", "b"), "a")  # noqa: E731
integer: Read = lambda env: env.integer("X", 5, minimum=1, maximum=9)  # noqa: E731
number: Read = lambda env: env.number("X", 0.5, minimum=0.1, maximum=2)  # noqa: E731
boolean: Read = lambda env: env.boolean("X", True)  # noqa: E731
names: Read = lambda env: env.names("X", ["d"])  # noqa: E731
url: Read = lambda env: env.url("X", ("http", "redis"), "http://d")  # noqa: E731
rate: Read = lambda env: env.rate("X", "1/m")  # noqa: E731

DEFAULTS = [
    (text, "d"), (choice, "a"), (integer, 5), (number, 0.5), (boolean, True), (names, ["d"]), (url, "http://d"),
    (rate, "1/m"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "default"), DEFAULTS)
@pytest.mark.parametrize("values", [{}, {"X": ""}, {"X": " \t"}, {"X_FILE": ""}])
def test_it_takes_the_default_for_what_is_unset_or_empty(read: Read, default: Any, values: dict[str, str]) -> None:
    assert read(Environment(values)) == default


@pytest.mark.parametrize(
    ("read", "raw", "value"),
    [
        (text, " some text ", "some text"),
        (choice, "b", "b"),
        (integer, "1", 1),
        (integer, "9", 9),
        (number, "2", 2.0),
        (number, "1e-1", 0.1),
        (boolean, "true", True),
        (boolean, "Yes", True),
        (boolean, "off", False),
        (boolean, "0", False),
        (names, "a, b,,c ,", ["a", "b", "c"]),
        (url, "http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        (url, "redis://:secret@host:1/0", "redis://:secret@host:1/0"),
        (rate, "30/m", "30/m"),
        (rate, "1/d", "1/d"),
    ],
)
def test_it_reads_a_value_of_its_type(read: Read, raw: str, value: Any) -> None:
    assert read(Environment({"X": raw})) == value


@pytest.mark.parametrize(
    ("read", "raw", "told"),
    [
        (choice, "c", "must be one of a, b"),
        (choice, "A", "must be one of a, b"),
        (integer, "0", "must be a whole number from 1 to 9"),
        (integer, "10", "must be a whole number from 1 to 9"),
        (integer, "5.0", "must be a whole number"),
        (integer, "five", "must be a whole number"),
        (number, "0.05", "must be a number from 0.1 to 2"),
        (number, "nan", "must be a number from 0.1 to 2"),
        (number, "inf", "must be a number from 0.1 to 2"),
        (number, "1s", "must be a number"),
        (boolean, "perhaps", "must be true or false"),
        (url, "ftp://host", "must begin with http:// or redis://"),
        (url, "host:80", "must begin with http:// or redis://"),
        (url, "http://", "must name a host"),
        (url, "http://h:nan", "is not a valid URL"),
        (url, "http://h:70000", "is not a valid URL"),
        (url, "http://[::1", "is not a valid URL"),
        (rate, "30", "must be a number of times"),
        (rate, "0/m", "must be a number of times"),
        (rate, "often", "must be a number of times"),
    ],
)
def test_it_names_the_variable_and_the_mend(read: Read, raw: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\AX ") as raised:
        read(Environment({"X": raw}))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


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
