"""`manage.py serve`: it runs gunicorn, or stops with one line for each mistake."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import OperationalError

from accounts.checks import DEMO_KEYS
from aiapi.server import Server
from aiapi.settings import BASE_DIR
from core.env import Environment
from launch.checks import PRODUCTION

Started = list[Server]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Catch the server that the command would run."""
    servers: Started = []
    monkeypatch.setattr(Server, "load_config", lambda server: None)
    monkeypatch.setattr(Server, "run", lambda server: servers.append(server))  # noqa: PLW0108  (a method)
    return servers


@pytest.fixture
def production(db: None, settings: LazySettings) -> LazySettings:
    """Make the settings those of a production that lacks nothing."""
    settings.IS_PRODUCTION = True
    settings.SECRET_KEY, settings.API_KEY_PEPPERS = PRODUCTION["SECRET_KEY"], [PRODUCTION["API_KEY_PEPPERS"]]
    settings.ALLOWED_HOSTS, settings.CACHE_URL = ["api.example.com"], "redis://cache.example.com"
    return settings


def problems() -> list[str]:
    """Return the lines with which the command stops."""
    with pytest.raises(CommandError) as raised:
        call_command("serve")
    return str(raised.value).splitlines()


def run(arguments: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run manage.py in an environment of its own."""
    command = [sys.executable, "manage.py", *arguments]
    own = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(command, env=own, cwd=BASE_DIR, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["prune_logs", "serve"])
def test_it_says_in_one_line_that_the_database_is_not_migrated_or_more_if_asked(command: str, tmp_path: Path) -> None:
    stores = {"DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3", "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = run([command], stores)
    assert done.returncode == 1
    assert re.fullmatch(r"\w+: \d+ migrations are missing. Run: manage.py migrate\n", done.stderr)
    assert run([command, "--traceback"], stores).stderr.startswith("Traceback")


@pytest.mark.parametrize(
    ("changes", "identifier", "variable"),
    [
        ({"SECRET_KEY": "development-only-secret-key-that-production-refuses-0123456789"}, "aiapi.E001", "SECRET_KEY"),
        ({"API_KEY_PEPPERS": ["development-only-pepper-that-production-refuses"]}, "accounts.E001", "API_KEY_PEPPERS"),
        ({"API_KEY_PEPPERS": ["short"]}, "accounts.E002", "API_KEY_PEPPERS"),
        ({"ALLOWED_HOSTS": []}, "aiapi.E002", "ALLOWED_HOSTS"),
        ({"CORS_ALLOWED_ORIGINS": ["*"]}, "aiapi.E003", "CORS_ALLOWED_ORIGINS"),
    ],
)
def test_it_refuses_to_start(
    production: LazySettings, started: Started, changes: dict[str, Any], identifier: str, variable: str
) -> None:
    for name, value in changes.items():
        setattr(production, name, value)
    (line,) = [line for line in problems() if not line.startswith("corsheaders.")]
    assert line.startswith(f"{identifier}: {variable} ")
    assert len(line) > len(f"{identifier}: {variable} ") + 40  # the mend
    assert started == []


@pytest.mark.parametrize("command", ["serve", "worker", "check_rollups"])
def test_it_stops_without_a_state_store_and_names_the_ways_to_one(
    production: LazySettings, started: Started, command: str
) -> None:
    production.REDIS_URL = ""
    with pytest.raises(CommandError, match=r"^REDIS_URL is not set\. [^\n]*bin/run[^\n]*`embedded`[^\n]*$"):
        call_command(command)
    assert started == []


def test_it_tells_every_mistake_at_once(production: LazySettings, started: Started) -> None:
    production.SECRET_KEY, production.ALLOWED_HOSTS = "short", []
    assert [line.partition(":")[0] for line in problems()] == ["aiapi.E001", "aiapi.E002"]


@pytest.mark.django_db(transaction=True)
def test_it_starts_in_production_once_the_demo_keys_are_revoked(production: LazySettings, started: Started) -> None:
    production.IS_PRODUCTION = False
    call_command("bootstrap", stdout=StringIO(), stderr=StringIO())
    call_command("serve")
    assert len(started) == 1
    production.IS_PRODUCTION = True
    (line,) = problems()
    assert line.startswith("accounts.E003: The database holds demo keys. Revoke them")
    assert not any(key in line for key in DEMO_KEYS)
    for name in ("dev", "prod"):
        call_command("key", "revoke", "--account", "demo", "--name", name, stdout=StringIO())
    call_command("serve")
    assert len(started) == 2


@pytest.mark.django_db(transaction=True)
def test_it_starts_in_spite_of_warnings_and_tells_them(production: LazySettings, started: Started) -> None:
    production.ENV = Environment({"REDIS_URI": "redis://secret@host"})
    production.ENV.text("REDIS_URL")
    stderr = StringIO()
    call_command("serve", stderr=stderr)
    assert "aiapi.W001: REDIS_URI is set, but not known. Did you mean REDIS_URL?" in stderr.getvalue()
    assert "secret" not in stderr.getvalue()
    assert len(started) == 1


def test_it_stops_without_a_database(
    production: LazySettings, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: Any) -> None:
        raise OperationalError("connection to postgresql://user:hunter2@host failed")

    monkeypatch.setattr("aiapi.checks.MigrationExecutor", fail)
    assert problems() == ["DATABASE_URL: the database can't be reached. Start it, or correct the URL."]


@pytest.mark.parametrize("command", ["serve", "worker", "migrate", "prepare"])
def test_it_stops_with_one_line_at_a_database_of_an_earlier_release(command: str, tmp_path: Path) -> None:
    file = tmp_path / "old.sqlite3"
    with closing(sqlite3.connect(file)) as old:
        old.execute("CREATE TABLE django_migrations (id INTEGER PRIMARY KEY, app TEXT, name TEXT, applied DATETIME)")
        rows = [("accounts", "0001_initial"), ("accounts", "0002_lineage"), ("monitoring", "0018_few_grains")]
        old.executemany("INSERT INTO django_migrations (app, name, applied) VALUES (?, ?, '2026-11-24')", rows)
        old.commit()
    done = run([command], {"DATABASE_URL": f"sqlite:///{file}", "REDIS_URL": "redis://127.0.0.1:1/0"})
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "DATABASE_URL: the database is of an earlier release" in line
    assert "empty" in line  # how to start fresh
    assert "export_usage" in line  # or to export first


def test_it_stops_with_one_line_at_a_value_that_cant_be_used() -> None:
    done = run(["serve"], {"WEB_CONCURRENCY": "many"})
    assert done.returncode == 1
    assert done.stderr == "configuration: WEB_CONCURRENCY must be a whole number\n"
