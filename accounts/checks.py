"""System checks of keys and limits; each names the variable and the remedy."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.management.base import CommandError
from django.db import Error as DatabaseError
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

#: No random text of 32 characters has fewer different ones; a repeated letter does.
FEWEST_CHARACTERS = 10
DEMO_KEYS = ("dev_key_123", "prod_key_456")
#: A migration that only databases of earlier releases have: since then each app has one initial migration.
OLD_MIGRATION = ("accounts", "0002_lineage")
OLD_DATABASE = (
    "DATABASE_URL: the database is of an earlier release and can't be upgraded. To start fresh, use an empty one "
    "(bin/run: move var/ away). To keep its usage, first run export_usage and export_log of that release."
)


@register(Tags.security)
def check_peppers(**options: Any) -> list[CheckMessage]:
    """Refuse default, short or weak peppers in production (accounts.E001, accounts.E002)."""
    if not settings.IS_PRODUCTION:
        return []
    if not settings.API_KEY_PEPPERS or settings.API_KEY_PEPPERS == settings.DEFAULT_PEPPERS:
        return [
            Error(
                "API_KEY_PEPPERS is not set.",
                hint="Set it to a random text: python -c 'import secrets; print(secrets.token_urlsafe(48))'",
                id="accounts.E001",
            )
        ]
    if any(len(pepper) < 32 or len(set(pepper)) < FEWEST_CHARACTERS for pepper in settings.API_KEY_PEPPERS):
        hint = "Use 32 random characters or more each."
        return [Error("API_KEY_PEPPERS is too short, or weak.", hint=hint, id="accounts.E002")]
    return []


@register(Tags.database)
def check_demo_keys(databases: Any = None, **options: Any) -> list[CheckMessage]:
    """Refuse the publicly known demo keys in a production database (accounts.E003)."""
    if not databases or not settings.IS_PRODUCTION:
        return []
    from accounts.keys import digests
    from accounts.models import ApiKey

    known = [digest for key in DEMO_KEYS for digest in digests(key)]
    try:
        found = ApiKey.objects.filter(digest__in=known, revoked_at=None).exists()
    except DatabaseError:
        return []  # not migrated yet, or away: other checks report that
    hint = "Revoke them: manage.py key revoke --account demo --name dev; ... --name prod"
    return [Error("The database holds demo keys.", hint=hint, id="accounts.E003")] if found else []


def require_state_store() -> None:
    """Raise CommandError without REDIS_URL, because limits and records that are not ingested yet are stored there."""
    if not settings.REDIS_URL:
        raise CommandError(
            "REDIS_URL is not set. Set it to a Redis or Valkey, or use bin/run or the image's command `embedded`, "
            "which start one."
        )


def require_current_database() -> None:
    """Raise CommandError with one line if the database was migrated by a release before OLD_MIGRATION was removed."""
    try:
        applied = MigrationRecorder(connection).applied_migrations()
    except DatabaseError:
        return  # away: the caller reports it or waits for it
    if OLD_MIGRATION in applied:
        raise CommandError(OLD_DATABASE)
