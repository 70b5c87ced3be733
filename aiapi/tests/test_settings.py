"""Settings from the environment: each variable has an effect, and is documented as it is declared."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Mapping
from functools import cache
from typing import Any
from unittest import mock

import pytest
from django.conf import global_settings

from aiapi.settings import BASE_DIR, ENV
from core.env import ConfigurationError, Variable

PRODUCTION = {"ENVIRONMENT": "production"}
#: A value other than the default, where one can't be made up from the variable's kind.
VALUES = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": "postgresql://user@db.example.com:5433/name",
    "REDIS_URL": "redis://redis.example.com:6380/1",
    "CACHE_URL": "redis://redis.example.com:6380/2",
    "LOG_LEVEL": "ERROR",
    "IMAGE_URLS": "data",
    "OPENAI_BASE_URL": "https://models.example.com/v1",
    "LOCAL_MODEL_URL": "http://127.0.0.1:9/v1",
    "REDIS_TIMEOUT": "0.5",
    "ALERT_WEBHOOK_URL": "https://hooks.example.com/alerts",
    "EMAIL_URL": "smtp+tls://user:secret@mail.example.com",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.example.com:4318",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector.example.com/v1/traces",
    "OTEL_TRACES_EXPORTER": "none",
}
BY_KIND = {
    "text": "another",
    "comma-separated list": "one,two",
    "comma-separated networks": "10.0.0.0/8,::1",
    "rate": "7/h",
}
#: What the names of bin/run and docker compose alone are for; the platform itself doesn't read them.
LAUNCHERS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "API_MEMORY"}


def load(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings as they are in an environment with just these variables."""
    with mock.patch.dict(os.environ, {"PATH": os.environ["PATH"], **values}, clear=True):
        names = runpy.run_path(str(BASE_DIR / "aiapi" / "settings.py"))
    return {name: value for name, value in names.items() if name.isupper() and name != "ENV"}


def other_value(variable: Variable) -> str:
    """Make up a value that is valid and not the default."""
    if variable.name in VALUES:
        return VALUES[variable.name]
    if variable.kind == "true or false":
        return "false" if variable.default == "true" else "true"
    if variable.kind in ("whole number", "number"):
        return str(int(float(variable.default)) + 1)
    return BY_KIND[variable.kind]


def changed_by(variable: Variable) -> set[str]:
    """Return the settings that a value of the variable changes."""
    base = {} if variable.name == "DATABASE_URL" else {"DATABASE_URL": VALUES["DATABASE_URL"]}
    before, after = load(base), load({**base, variable.name: other_value(variable)})
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@cache
def sources() -> str:
    """Return the code of the platform apart from the settings themselves and the tests."""
    paths = [
        path
        for app in ("accounts", "aiapi", "core", "inference", "monitoring", "operations")
        for path in (BASE_DIR / app).rglob("*.py")
    ]
    kept = [path for path in paths if "tests" not in path.parts and path.name != "settings.py"]
    return "\n".join(path.read_text() for path in kept)


@pytest.mark.parametrize("variable", ENV.declared.values(), ids=lambda variable: variable.name)
def test_it_changes_a_setting_that_something_reads_by_every_variable(variable: Variable) -> None:
    names = changed_by(variable)
    used = {name for name in names if re.search(rf"\bsettings\.{name}\b|\"{name}\"", sources())}
    others = ("CORS_", "CSRF_", "SECURE_", "SESSION_", "WHITENOISE_", "RATELIMIT_", "LOGGING")
    known = {name for name in names if hasattr(global_settings, name) or name.startswith(others)}
    assert used | known, f"{variable.name} changes {names}, which nothing reads"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"PORT": "http"}, "PORT"),
        ({"ENVIRONMENT": "staging"}, "ENVIRONMENT"),
        ({"CACHE_URL": "redis+cluster://h:1"}, "CACHE_URL"),
        ({"FAILED_KEY_RATE": "often"}, "FAILED_KEY_RATE"),
        ({"OPENAI_BASE_URL": "localhost:8080"}, "OPENAI_BASE_URL"),
        ({"SECRET_KEY": "a", "SECRET_KEY_FILE": os.devnull}, "SECRET_KEY"),
    ],
)
def test_it_refuses_a_wrong_value_by_the_variables_name(values: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\A{named} "):
        load(values)


def test_it_starts_from_a_fresh_clone_with_no_variable_set() -> None:
    found = load({})
    assert (found["ENVIRONMENT"], found["IS_PRODUCTION"], found["DEBUG"]) == ("development", False, False)
    assert (found["HOST"], found["PORT"], found["WEB_CONCURRENCY"]) == ("127.0.0.1", 8000, 1)
    assert found["DATABASES"]["default"]["NAME"] == str(BASE_DIR / "var" / "aiapi.sqlite3")
    backends = {each["BACKEND"].rpartition(".")[2] for each in found["CACHES"].values()}
    assert backends == {"LocMemCache"}
    assert found["CACHE_TTL"] == found["CACHES"]["answers"]["TIMEOUT"] == 3600
    assert found["CORS_ALLOWED_ORIGINS"] == []


@pytest.mark.parametrize(
    ("values", "answers", "attempts"),
    [
        ({"REDIS_URL": "redis://a:1/0"}, "answers", "redis://a:1/0"),
        ({"REDIS_URL": "redis+cluster://a:1"}, "answers", "attempts"),
        ({"REDIS_URL": "unix:///s.sock", "CACHE_URL": "unix:///c.sock"}, "unix:///c.sock", "unix:///c.sock"),
        ({"REDIS_URL": "redis+cluster://a:1", "CACHE_URL": "redis://b:1"}, "redis://b:1", "redis://b:1"),
    ],
)
def test_it_caches_where_it_is_told_alone_and_counts_attempts_for_all_processes(
    values: dict[str, str], answers: str, attempts: str
) -> None:
    caches = load(values)["CACHES"]
    assert (caches["answers"]["LOCATION"], caches["attempts"]["LOCATION"]) == (answers, attempts)


def test_it_turns_on_in_production_what_https_needs_and_believes_trusted_proxies_only() -> None:
    wanted = ("SECURE_SSL_REDIRECT", "SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_HSTS_SECONDS")
    found, plain = load(PRODUCTION), load({**PRODUCTION, "HTTPS_ONLY": "false", "TRUSTED_PROXIES": "1"})
    assert all(found[name] for name in wanted)
    assert not any(plain[name] for name in wanted)
    assert found["SECURE_PROXY_SSL_HEADER"] is None
    assert plain["SECURE_PROXY_SSL_HEADER"] == ("HTTP_X_FORWARDED_PROTO", "https")


def test_it_lists_every_variable_in_the_example() -> None:
    lines = (BASE_DIR / ".env.example").read_text().splitlines()
    found = [match for line in lines if (match := re.fullmatch(r"#? ?([A-Z][A-Z0-9_]*)=(.*)", line))]
    names = [match[1] for match in found]
    assert sorted(names) == sorted({*ENV.declared, *LAUNCHERS})
    shown = {match[1]: match[2] for match in found if match[1] in ENV.declared}
    assert {name: value for name, value in shown.items() if value} == {
        name: _default(variable) for name, variable in ENV.declared.items() if _default(variable)
    }


def test_it_can_be_started_with_the_example_as_it_is() -> None:
    lines = (BASE_DIR / ".env.example").read_text().splitlines()
    pairs = [line.removeprefix("# ").split("=", 1) for line in lines if re.match(r"#? ?[A-Z][A-Z0-9_]*=", line)]
    assert load(dict(pairs))["CACHE_TTL"] == 3600


def test_it_documents_every_variable() -> None:
    lines = (BASE_DIR / "docs" / "configuration.md").read_text().splitlines()
    rows = [line.removesuffix(" |").rsplit(" | ", 1) for line in lines if line.startswith("| `")]
    assert sorted(row for row, _ in rows) == sorted(map(_row, ENV.declared.values()))
    assert all(description for _, description in rows)


def _default(variable: Variable) -> str:
    """Return the default as documents show it: secrets and this machine's folder stay out of them."""
    if variable.name == "DATABASE_URL":
        return "sqlite:///var/aiapi.sqlite3"
    return "" if variable.secret else variable.default


def _row(variable: Variable) -> str:
    """Return the line of the table in docs/configuration.md, without its description."""
    default = f"`{_default(variable)}`" if _default(variable) else ""
    return f"| `{variable.name}` | {variable.kind} | {default}"


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("", ("localhost", 25, "", "", False, False)),
        ("smtp://mail.test", ("mail.test", 25, "", "", False, False)),
        ("smtp+tls://us%40er:p%2Fw@mail.test", ("mail.test", 587, "us@er", "p/w", True, False)),
        ("smtps://mail.test:2465", ("mail.test", 2465, "", "", False, True)),
    ],
)
def test_it_reads_the_mail_server_out_of_one_url(url: str, server: tuple[object, ...]) -> None:
    found = load({"EMAIL_URL": url})
    parts = ("HOST", "PORT", "HOST_USER", "HOST_PASSWORD", "USE_TLS", "USE_SSL")
    assert tuple(found[f"EMAIL_{part}"] for part in parts) == server
