"""System checks of the settings, and the checks before the server starts. Each names the variable and a fix."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from django.conf import settings
from django.core.checks import ERROR, WARNING, CheckMessage, Error, Tags, Warning, register, run_checks
from django.core.management.base import CommandError, OutputWrapper
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.db.migrations.executor import MigrationExecutor
from redis.connection import parse_url

from accounts.checks import FEWEST_CHARACTERS, OLD_DATABASE, OLD_MIGRATION
from core.redis.client import same_server


@register(Tags.security)
def check_secret_key(**options: Any) -> list[CheckMessage]:
    """Reject the default or a weak SECRET_KEY in production (aiapi.E001)."""
    key = settings.SECRET_KEY
    weak = key == settings.DEFAULT_SECRET_KEY or len(key) < 50 or len(set(key)) < FEWEST_CHARACTERS
    if not settings.IS_PRODUCTION or not weak:
        return []
    hint = "Set it to 50 random characters: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
    return [Error("SECRET_KEY is not set, or weak.", hint=hint, id="aiapi.E001")]


@register(Tags.security)
def check_secrets_differ(**options: Any) -> list[CheckMessage]:
    """Reject the same secret for several purposes in production: one leak would expose all (aiapi.E004)."""
    named = [("SECRET_KEY", settings.SECRET_KEY), ("METRICS_TOKEN", settings.METRICS_TOKEN)]
    named += [("API_KEY_PEPPERS", pepper) for pepper in settings.API_KEY_PEPPERS]
    secrets = [secret for _, secret in named if secret]
    shared = sorted({name for name, secret in named if secret and secrets.count(secret) > 1})
    if not settings.IS_PRODUCTION or not shared:
        return []
    hint = "Make a random text for each: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
    return [Error(f"The same secret is used twice: {' and '.join(shared)}.", hint=hint, id="aiapi.E004")]


@register(Tags.security)
def check_allowed_hosts(**options: Any) -> list[CheckMessage]:
    """Reject missing host names and the wildcard in production (aiapi.E002)."""
    if not settings.IS_PRODUCTION or (settings.ALLOWED_HOSTS and "*" not in settings.ALLOWED_HOSTS):
        return []
    hint = "Set it to the names under which the service is reached: ALLOWED_HOSTS=api.example.com"
    return [Error("ALLOWED_HOSTS is not set, or allows every name.", hint=hint, id="aiapi.E002")]


@register()
def check_cors_origins(**options: Any) -> list[CheckMessage]:
    """Reject the wildcard origin: any web page could call the API from a browser (aiapi.E003)."""
    if "*" not in settings.CORS_ALLOWED_ORIGINS:
        return []
    return [Error("CORS_ALLOWED_ORIGINS holds *.", hint="List the origins, with https://.", id="aiapi.E003")]


@register()
def check_variable_names(**options: Any) -> list[CheckMessage]:
    """Report variables that look like misspelled names of known ones (aiapi.W001)."""
    return [
        Warning(f"{name} is set, but not known.", hint=f"Did you mean {known}?", id="aiapi.W001")
        for name, known in settings.ENV.near_misses()
    ]


@register()
def check_alert_emails(**options: Any) -> list[CheckMessage]:
    """Report ALERT_EMAILS without a mail server (aiapi.W002)."""
    if not settings.ALERT_EMAILS or settings.EMAIL_URL:
        return []
    hint = "Set it: EMAIL_URL=smtp+tls://USER:PASSWORD@mail.example.com:587"
    return [Warning("ALERT_EMAILS is set, but EMAIL_URL is not: no e-mail is sent.", hint=hint, id="aiapi.W002")]


@register(deploy=True)
def check_cache_url(**options: Any) -> list[CheckMessage]:
    """Report several workers without a shared cache (aiapi.W003)."""
    if settings.WEB_CONCURRENCY == 1 or settings.CACHE_URL:
        return []
    hint = "Set it to a Redis or Valkey with maxmemory-policy allkeys-lru."
    return [Warning("CACHE_URL is not set: each process caches a few answers of its own.", hint=hint, id="aiapi.W003")]


@register()
def check_cache_server(**options: Any) -> list[CheckMessage]:
    """Report a CACHE_URL on REDIS_URL's server (aiapi.W004); reject the same database in production (aiapi.E005)."""
    urls = (settings.CACHE_URL, settings.REDIS_URL)
    if not all(urls) or not same_server(*urls):
        return []
    hint = "Give the cache store a Redis of its own, with maxmemory-policy allkeys-lru, or leave CACHE_URL empty."
    databases = {parse_url(url.replace("+cluster", "")).get("db") or 0 for url in urls}  # type: ignore[no-untyped-call]
    if settings.IS_PRODUCTION and len(databases) == 1:
        return [
            Error("CACHE_URL names the state store (REDIS_URL): answers would fill it.", hint=hint, id="aiapi.E005")
        ]
    return [
        Warning(
            "CACHE_URL names the server of the state store (REDIS_URL): answers may fill it.",
            hint=hint,
            id="aiapi.W004",
        )
    ]


@dataclass(frozen=True, slots=True)
class Findings:
    """Problems prevent a start, warnings don't. Each is one line."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def start_findings() -> Findings:
    """Check everything that a start requires, database included; without a usable database, only that is reported."""
    away = database_problem()
    if away is not None:
        return Findings([away])
    import_module(settings.ROOT_URLCONF)  # registers the admin's classes, which have checks of their own
    found = sorted(run_checks(databases=[DEFAULT_DB_ALIAS]), key=lambda message: str(message.id))
    return Findings(
        problems=[_line(message) for message in found if message.is_serious()],
        warnings=[_line(message) for message in found if WARNING <= message.level < ERROR],
    )


def require_no_problems(output: OutputWrapper) -> None:
    """Write a line for each warning; raise CommandError with a line for each problem."""
    findings = start_findings()
    for warning in findings.warnings:
        output.write(warning)
    if findings.problems:
        raise CommandError("\n".join(findings.problems))


def database_problem() -> str | None:
    """Return one line if the database can't be reached, is too old or lacks migrations; None if it is ready."""
    connection = connections[DEFAULT_DB_ALIAS]
    try:
        executor = MigrationExecutor(connection)
        if OLD_MIGRATION in executor.loader.applied_migrations:
            return OLD_DATABASE
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError:
        return "DATABASE_URL: the database can't be reached. Start it, or correct the URL."
    finally:
        connection.close()
    return f"{len(waiting)} migrations are missing. Run: manage.py migrate" if waiting else None


def _line(message: CheckMessage) -> str:
    return f"{message.id}: {message.msg} {message.hint or ''}".strip()
